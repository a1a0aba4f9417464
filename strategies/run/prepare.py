"""Stage 1 of a run: item tables and user groups, from what was collected or from sums over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.device_storage import device_splits
from fl_peel.events import Event, OnEvent, silent
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.model.device import FittedJoining, MappedJoining
from fl_peel.pretraining.clusters import UserGroups
from fl_peel.pretraining.spectral import Axes, turned
from fl_peel.pretraining.stage1 import (
    GroupPlan,
    PooledSums,
    Progress,
    SpectralFilter,
    SpectralStart,
    run_passes,
    run_stage1,
)
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import pretraining_device
from fl_peel.steps import Stage, find_stage
from fl_peel.steps.base import Floats, Ints, StepChannel, StepTerms, answer_to
from fl_peel.steps.user_groups import MapsStep, VectorsStep
from fl_peel.training.workers import fixed_threads
from strategies.figures.schema import AddedStage, Stage1Result
from strategies.figures.stage_figures import stage1_result, step_row
from strategies.groups.start import (
    TEMPERATURE,
    CollectedUsers,
    make_groups,
    make_layout,
    spectral_states,
    starting_states,
    starting_tables,
)
from strategies.groups.state import FloatArray, UserGroupState
from strategies.nodes import Members
from strategies.rounds.step_channels import ClearSteps, CountedSteps, MaskedSteps, NoisedSteps, SumsRecord
from strategies.run.run import CheckpointedSteps, Run
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import Stage1Outcome, check_budgets, given_data

if TYPE_CHECKING:
    from fl_peel.pretraining.central_training import EpochFigures, PretrainedEmbeddings


@dataclass(frozen=True)
class CentralStage1Outcome(Stage1Outcome):
    """One table, an embedding for who gave data, their user groups; axes: of the groups' tables, if turned."""

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
            items[:0],
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
        from fl_peel.pretraining.central_training import (
            cached_groups,
            pretrain,  # with torch, of which nodes' first answers need nothing
            pretraining_key,
            read_tables,
            write_tables,
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


REFIT_PASSES = 2
"""Passes of a stage 1 that starts from the directions of another one, which had a little less data."""


@dataclass(frozen=True)
class FederatedStage1Outcome(Stage1Outcome):
    """The user groups with a table each, and the maps that turn a device's vector into one of its group's embeddings.
    epsilon: privacy loss of the contributions, None without a mechanism; former, pull: as in
    :class:`fl_peel.wire.JoinRequest`, None for nothing.
    """

    start: SpectralStart
    num_devices: int
    records: tuple[SumsRecord, ...]
    epsilon: float | None = None
    former: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    pull: Floats | None = None

    @property
    def steps(self) -> tuple[SumsRecord, ...]:
        return self.records

    @staticmethod
    def from_start(scenario: Scenario, start: SpectralStart, num_devices: int) -> FederatedStage1Outcome:
        """Return the outcome that joining and user groups start from; no step is recorded in it yet.

        Raises:
            BudgetError: an evaluation budget is below one block.
        """
        scored = start.scored[:, : scenario.pretraining.embedding_dim]
        layout = make_layout(scenario, len(scored), start.counts, scored)
        check_budgets(scenario, layout)
        return FederatedStage1Outcome(layout, TEMPERATURE, start, num_devices, ())

    def chosen(self) -> dict[str, float]:
        """The filter's exponents; and fewer passes, as the next stage 1 goes on from these directions."""
        return _chosen(self.start)

    @property
    def directions(self) -> FloatArray:
        """Orthonormal (I, K), to go on from."""
        return self.start.directions

    def figures(self, members: Members, seconds: float, before: tuple[SumsRecord, ...] = ()) -> Stage1Result | None:
        steps = before + self.steps
        return stage1_result(steps, self.start, members, seconds, self.epsilon) if steps else None

    def states(self, scenario: Scenario, folder: str = "") -> list[UserGroupState]:
        """Return every user group with its table, and statistics from the sums alone."""
        return spectral_states(scenario, self.layout, self.start, self.num_devices, folder)

    @property
    def joining(self) -> MappedJoining:
        """It makes its vector of the rows of its items, as all devices did."""
        return MappedJoining.from_rows(self.start.centroids, self.start.own, self.start.maps)

    def join_request(self, setting: wire.RunSetting, devices: Ints) -> wire.JoinRequest:
        """Centroids and maps: a device finds its group and embedding from the vector that it has."""
        dim = self.layout.embedding_dim
        nobody = np.zeros(0, np.int64)
        return wire.JoinRequest(
            setting,
            self.layout.item_group,
            self.start.centroids,
            np.zeros((0, dim), np.float32),
            nobody,
            np.zeros((0, dim), np.float32),
            nobody.astype(np.int32),
            self.start.maps,
            np.zeros((0, dim), np.float32) if self.pull is None else self.pull,
            self.former,
        )


def asked_devices(run: Run, splits: Splits, plan: Plan | None = None, begin: int = 1) -> ClearSteps:
    """Return devices as a server asks them, clear or masked. plan: of noise, if any; begin: the first step's round."""
    kind = MaskedSteps if run.scenario.secure_aggregation.enabled else ClearSteps
    multiplier = 0.0 if plan is None else plan.multiplier
    setting = run.setting(splits.num_users)
    return kind(run.nodes, run.scenario, setting, splits.num_items, multiplier, begin)


def channel_to(devices: ClearSteps, scenario: Scenario, plan: Plan | None) -> StepChannel:
    """Return the way to the sums of devices: noised or, as noise hides who contributes, with contributors counted."""
    return CountedSteps(devices, scenario.privacy.min_owners) if plan is None else NoisedSteps(devices, scenario, plan)


def group_plan(scenario: Scenario) -> GroupPlan:
    """Return the user groups that a scenario asks for."""
    groups = scenario.user_groups
    return GroupPlan(scenario.pretraining.embedding_dim, groups.count, groups.min_size, scenario.seed)


@dataclass(frozen=True)
class ChosenFilter:
    """The result of the first half of stage 1: a filter that devices chose, and directions (I, K) to continue from."""

    filter: SpectralFilter
    steps: tuple[SumsRecord, ...]

    def chosen(self) -> dict[str, float]:
        """Return the chosen settings, as :meth:`FederatedStage1Outcome.chosen` does."""
        return _chosen(self.filter)

    @property
    def directions(self) -> FloatArray:
        """Return the directions, as :attr:`FederatedStage1Outcome.directions` does."""
        return self.filter.directions.astype(np.float32)


def _chosen(outcome: SpectralFilter | SpectralStart) -> dict[str, float]:
    return {
        "passes": REFIT_PASSES,
        "columns": len(outcome.values),
        "count_exponent": outcome.count_exponent,
        "value_exponent": outcome.value_exponent,
    }


@dataclass(frozen=True)
class _Stage1Inputs:
    """The inputs of stage 1. devices: of the federation; checkpointed: their sums, kept; sums: these, or collected."""

    given: UserItems
    num_devices: int
    devices: ClearSteps
    checkpointed: CheckpointedSteps
    sums: StepChannel
    plan: Plan | None
    progress: Progress

    @staticmethod
    def from_run(run: Run) -> _Stage1Inputs:
        scenario = run.scenario
        with run.stages("data"):
            splits = device_splits(scenario, run.paths.data_dir, run.paths.run_dir)
            given, _ = given_data(scenario, splits.train)
        run.on_event(Event("data", 1, 1, f"{splits.num_users:,} devices, {splits.num_items:,} items"))
        by_devices = scenario.pretraining.by_devices
        plan = run.plan if by_devices else None
        devices = asked_devices(run, splits, plan)
        checkpointed = CheckpointedSteps(channel_to(devices, scenario, plan), devices, run.checkpoints)
        collected = StepTerms(splits.num_items, scenario.pretraining.user_exponent)
        sums = checkpointed if by_devices else PooledSums(given, collected, choosing=checkpointed)

        def show(done: int, total: int, text: str) -> None:
            run.on_event(Event("pretraining", min(done, total), total, text))

        return _Stage1Inputs(given, splits.num_users, devices, checkpointed, sums, plan, show)


def choose_by_sums(run: Run) -> ChosenFilter:
    """Run counts, passes, and the choice of a filter by devices; make no user groups, and add no noise.

    Raises:
        DataError: the data set cannot be had, or nobody has any item.
        EngineError: a node failed, or a step reached nobody.
    """
    ready = _Stage1Inputs.from_run(run)
    pretraining = run.scenario.pretraining
    with run.stages("pretraining"):
        chosen = run_passes(
            ready.sums,
            pretraining.spectral(),
            seed=run.scenario.seed,
            given=ready.given if pretraining.by_devices else None,
            progress=ready.progress,
        )
    return ChosenFilter(chosen, tuple(ready.devices.records) if pretraining.by_devices else ())


def prepare_by_sums(run: Run, earlier: FloatArray | None = None) -> FederatedStage1Outcome:
    """Sums -> directions -> user groups with tables, blocks. Devices make their vectors on the way. earlier: directions
    (I, K) of a stage 1 before, to go on from.

    Raises:
        DataError: the data set cannot be had, or nobody has any item.
        EngineError: a node failed, or a step reached nobody.
        BudgetError: an evaluation budget is below one block.
    """
    ready, scenario = _Stage1Inputs.from_run(run), run.scenario
    pretraining = scenario.pretraining
    with run.stages("pretraining"):
        start = run_stage1(
            ready.sums,
            pretraining.spectral(),
            group_plan(scenario),
            given=ready.given if pretraining.by_devices else None,
            earlier=earlier,
            progress=ready.progress,
        )
        if pretraining.by_devices:
            MapsStep.ask(ready.devices, start.own.shape[1])
        else:
            VectorsStep.ask(ready.checkpointed, start.own)
    outcome = FederatedStage1Outcome.from_start(scenario, start, ready.num_devices)
    run.on_event(Event("grouping", 1, 1, f"{len(start.groups)} user groups, {outcome.layout.num_blocks:,} blocks"))
    steps = tuple(ready.devices.records) if pretraining.by_devices else ()
    return replace(outcome, records=steps, epsilon=None if ready.plan is None else ready.plan.stage1_epsilon)


def prepare(run: Run, before: Stage1Outcome | ChosenFilter | None = None) -> Stage1Outcome:
    """Stage 1 as the scenario has it, on the server or on nodes. before: an earlier one's, on part of the data."""
    if run.scenario.pretraining.model == "spectral":
        directions = before.directions if isinstance(before, FederatedStage1Outcome | ChosenFilter) else None
        return prepare_by_sums(run, directions)
    return prepare_collected(run.scenario, run.paths, run.stages, run.on_event)


# ---- Stages of installed packages, each after the stage of the run that it names


@dataclass
class AddedStages:
    """Those of a run's scenario. clock: round of the fleet's clock in which the next one opens; results: by name."""

    run: Run
    clock: int
    results: dict[str, AddedStage] = field(default_factory=dict)

    def ask(self, after: str, tables: Sequence[Floats], clock: int = 0) -> None:
        """Ask those that stand after a stage. tables: item tables (I, d) of the user groups as they are now; clock: the
        earliest round in which one opens.
        """
        run, self.clock = self.run, max(self.clock, clock)
        for name in run.scenario.stages:
            stage = find_stage(name)
            if stage.after == after:
                what = f"added-{name}"
                self.results[name] = run.checkpoints.stage(what, lambda: self._ask(stage, tables), timed=name)  # noqa: B023
                self.clock += run.scenario.pretraining.open_rounds
                run.on_event(Event(name, 1, 1))

    def _ask(self, stage: Stage, tables: Sequence[Floats]) -> AddedStage:
        run = self.run
        splits = device_splits(run.scenario, run.paths.data_dir, run.paths.run_dir)
        devices = asked_devices(run, splits, run.plan, self.clock)
        channel = channel_to(devices, run.scenario, run.plan)
        sums = answer_to(channel, stage, stage.sent(tables))
        units = {part.field: part.unit for part in stage.noised if channel.terms.bounded}
        values = {name: total / units.get(name, 1.0) for name, total in sums.items()}
        figures = tuple(stage.figures(values, tables))
        return AddedStage(after=stage.after, step=step_row(stage.name, devices.records), figures=figures)
