"""Stage 1 on the server alone: tables trained on the interactions that it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.data.interactions import UserItems
from fl_peel.device_storage import device_splits
from fl_peel.events import Event, OnEvent, silent
from fl_peel.grouping.clusters import UserGroups
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.model.joining import FittedJoining
from fl_peel.pretraining.principal_axes import Axes, turned
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.settings import pretraining_device
from fl_peel.training.workers import fixed_threads
from strategies.groups.start import CollectedUsers, make_groups, make_layout, starting_states, starting_tables
from strategies.groups.state import FloatArray, UserGroupState
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import Stage1Outcome, check_budgets, given_data

if TYPE_CHECKING:
    from fl_peel.pretraining.central_training import EpochFigures, PretrainedEmbeddings


@dataclass(frozen=True)
class CentralStage1Outcome(Stage1Outcome):
    """One table, an embedding for every user who gave data, user groups of these; axes: of each group's table, None
    where it stays as it was trained.
    """

    given: UserItems
    has_data: NDArray[np.bool_]
    pretrained: PretrainedEmbeddings
    groups: UserGroups
    axes: Axes | None = None

    @property
    def global_table(self) -> FloatArray:
        """The table as pretrained, (I, d)."""
        return self.pretrained.items

    @property
    def global_tables(self) -> FloatArray | Callable[[int], FloatArray]:
        """The table as pretrained, on each group's axes."""
        if self.axes is None:
            return self.pretrained.items
        rows = self.axes.rows
        return lambda group: self.pretrained.items @ rows[group]

    @cached_property
    def users(self) -> FloatArray:
        """Embeddings (U, d) that users have as devices: on the axes of their group."""
        if self.axes is None:
            return self.pretrained.users
        return turned(self.pretrained.users, self.groups.assignment, self.axes.users)

    def states(self, scenario: Scenario, folder: str = "") -> list[UserGroupState]:
        """Return every user group with its table, and statistics from the collected interactions."""
        plain, axes = starting_tables(scenario, self.pretrained, self.groups, self.given), self.axes

        def table(group: int) -> FloatArray:
            return plain(group) if axes is None else plain(group) @ axes.rows[group]

        users = CollectedUsers(self.users, self.groups, self.given)
        return starting_states(scenario, self.layout, table, users, folder)

    @property
    def joining(self) -> FittedJoining:
        """It fits its embedding to the table as pretrained."""
        return FittedJoining(self.groups.centroids, self.pretrained.items, self._maps)

    @property
    def _maps(self) -> FloatArray:
        dim = self.layout.embedding_dim
        return np.zeros((0, dim, dim), np.float32) if self.axes is None else self.axes.users

    @property
    def sends_own_embeddings(self) -> bool:
        """Return whether a device is sent its own embedding."""
        return True

    def join_request(self, setting: wire.RunSetting, devices: NDArray[np.int64]) -> wire.JoinRequest:
        """Embeddings and groups of the devices that gave data; to the others the table, to find theirs."""
        items, mine = self.pretrained.items, devices[self.has_data[devices]]
        users, alone = self.users[mine], len(mine) < len(devices)
        drop_pages_now(self.pretrained.users)
        return wire.JoinRequest(
            setting,
            self.layout.item_group,
            self.groups.centroids,
            items if alone else items[:0],
            mine,
            users,
            self.groups.assignment[mine],
            self._maps if alone else self._maps[:0],
        )


def prepare_collected(
    scenario: Scenario, paths: RunPaths, stages: StageTimes, on_event: OnEvent = silent
) -> CentralStage1Outcome:
    """Collected interactions -> pretrained tables -> user groups, item groups, blocks.

    Raises:
        DataError: the data set cannot be had.
        BudgetError: an evaluation budget is below one block.
    """
    with stages("data"):
        splits = device_splits(scenario, paths.data_dir, paths.run_dir)
        given, has_data = given_data(scenario, splits.train)
    on_event(Event("data", 1, 1, f"{splits.num_users:,} devices, {splits.num_items:,} items"))
    config = scenario.pretraining.config()

    def show(figures: EpochFigures) -> None:
        figures_by_name = {"pretraining/loss": figures.loss}
        on_event(Event("pretraining", figures.epoch, config.epochs, f"loss {figures.loss:.4f}", figures_by_name))

    with stages("pretraining"):
        from fl_peel.pretraining.cache import cached_groups, pretraining_key, read_tables, write_tables
        from fl_peel.pretraining.central_training import (
            pretrain,  # with torch, of which nodes' first answers need nothing
        )

        device = pretraining_device(scenario.engine.device)
        key = pretraining_key(given, splits.num_items, config, scenario.seed, device)
        kept = read_tables(Path(paths.cache_dir), key) if paths.cache_dir else None
        pretrained = kept or pretrain(given, splits.num_items, config, seed=scenario.seed, device=device, progress=show)
        if paths.cache_dir and kept is None:
            write_tables(Path(paths.cache_dir), key, pretrained)
    on_event(Event("pretraining", config.epochs, config.epochs, "loaded from the cache" if kept else ""))
    with stages("grouping"):
        part = scenario.user_groups
        groups = cached_groups(
            paths.cache_dir, key, part.count, part.min_size, lambda: make_groups(scenario, pretrained, has_data)
        )
        layout = make_layout(scenario, splits.num_items, given.popularity(splits.num_items), pretrained.items)
        axes = None
        if config.diversity_form == "axes" and layout.num_slices > 1:
            with fixed_threads(1):
                axes = Axes.from_embeddings(pretrained.users, groups.assignment, groups.num_groups, pretrained.items)
    on_event(Event("grouping", 1, 1, f"{groups.num_groups} user groups, {layout.num_blocks:,} blocks"))
    check_budgets(scenario, layout)
    return CentralStage1Outcome(layout, pretrained.temperature, given, has_data, pretrained, groups, axes)


__all__ = ["CentralStage1Outcome", "prepare_collected"]
