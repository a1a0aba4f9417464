"""Stage 1, and what else is known before the first round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout, budget_bytes
from fl_peel.blocks.ranked import check_budget
from fl_peel.data.interactions import UserItems, collected
from fl_peel.disks import device_splits
from fl_peel.events import Event, OnEvent, silent
from fl_peel.grouping.clusters import UserGroups
from fl_peel.pretraining.cache import pretraining_key, read_tables, write_tables
from fl_peel.pretraining.train import EpochFigures, PretrainedEmbeddings, pretrain
from fl_peel.privacy.plan import Plan, make_plan
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.processor import pretraining_device
from strategies.groups.start import make_groups, make_layout
from strategies.rounds.sampling import sample_cohort
from strategies.run.place import Place, Stages


@dataclass(frozen=True)
class Prepared:
    """What the server has after stage 1."""

    given: UserItems
    has_data: NDArray[np.bool_]
    pretrained: PretrainedEmbeddings
    groups: UserGroups
    layout: BlockLayout


def prepare(scenario: Scenario, place: Place, stages: Stages, on_event: OnEvent = silent) -> Prepared:
    """Stage 1: collected interactions -> pretrained tables -> user groups, item groups, blocks.

    Raises:
        DataError: the data set cannot be had.
        BudgetError: an evaluation budget is below one block.
    """
    with stages("data"):
        splits = device_splits(scenario, place.data_dir, place.run_dir)
        given, has_data = given_data(scenario, splits.train)
    on_event(Event("data", 1, 1, f"{splits.num_users:,} devices, {splits.num_items:,} items"))
    config = scenario.pretraining.config()

    def show(figures: EpochFigures) -> None:
        on_event(Event("pretraining", figures.epoch, config.epochs, f"loss {figures.loss:.4f}"))

    with stages("pretraining"):
        device = pretraining_device(scenario.engine.device)
        key = pretraining_key(given, splits.num_items, config, scenario.seed, device)
        kept = read_tables(Path(place.cache_dir), key) if place.cache_dir else None
        pretrained = kept or pretrain(given, splits.num_items, config, seed=scenario.seed, device=device, progress=show)
        if place.cache_dir and kept is None:
            write_tables(Path(place.cache_dir), key, pretrained)
    on_event(Event("pretraining", config.epochs, config.epochs, "kept from an earlier run" if kept else ""))
    with stages("grouping"):
        groups = make_groups(scenario, pretrained, has_data)
        layout = make_layout(scenario, splits.num_items, given, pretrained.items)
    on_event(Event("grouping", 1, 1, f"{groups.num_groups} user groups, {layout.num_blocks:,} blocks"))
    check_budgets(scenario, layout)
    return Prepared(given, has_data, pretrained, groups, layout)


def given_data(scenario: Scenario, train: UserItems) -> tuple[UserItems, NDArray[np.bool_]]:
    """The train interactions that the server may see, and which users gave any, (U,)."""
    part = scenario.pretraining.collected
    return collected(train, seed=scenario.seed, share=part.share, mode=part.mode)


def check_budgets(scenario: Scenario, layout: BlockLayout) -> None:
    """Refuse budgets to evaluate at that hold nothing.

    Raises:
        BudgetError: an evaluation budget is below one block.
    """
    for share in scenario.evaluation.budgets:
        for precision in scenario.evaluation.precisions or (scenario.blocks.precision,):
            check_budget(layout, precision, budget_bytes(layout, share), f"evaluation.budgets {share:.4%}")


def privacy_plan(scenario: Scenario, place: Place) -> Plan | None:
    """How much noise the run adds, and what it spends; None where no mechanism is named.

    Raises:
        ScenarioError: a target that cannot be met, or keys under which its epsilon would not be true.
    """
    if not scenario.privacy.noised:
        return None
    splits, refinement = device_splits(scenario, place.data_dir, place.run_dir), scenario.refinement
    _, has_data = given_data(scenario, splits.train)
    most = None
    if refinement.sampling == "fixed":  # a schedule that depends on no data: count the rounds of each device
        devices = np.arange(splits.num_users, dtype=np.int64)
        counts = np.zeros(splits.num_users, np.int64)
        for server_round in range(1, refinement.rounds + 1):
            counts[sample_cohort(scenario.seed, server_round, devices, refinement.sampling_rate)] += 1
        most = int(counts.max(initial=0))
    return make_plan(scenario, most_rounds=most, asks_groups=not has_data.all())
