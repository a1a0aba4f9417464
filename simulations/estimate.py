"""Estimate, before a run starts, of what it will move, hold and take (docs/estimate.md has its error).

Bytes follow from the data, the fleet and the protocol; memory and time from constants, measured on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.fleet.fleet import Fleet, FleetBudgets, load_fleet
from clients.node.channel import METRIC_BYTES, SIGNAL_BYTES
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import Splits
from fl_peel.errors import ScenarioError
from fl_peel.exchange.release import wants_signals
from fl_peel.pretraining.spectral import drawn_items
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import SpectralConfig
from fl_peel.steps.base import HeldItems, Step, StepTerms
from fl_peel.steps.choice import ChoiceStep
from fl_peel.steps.passes import CountsStep, PassStep
from fl_peel.steps.user_groups import GroupsStep, MapsStep, MomentsStep, VectorsStep
from simulations.engine.inputs import data_folder, layout_of, run_folder, splits_to_run
from strategies.groups.state import MOST_IN_MEMORY
from strategies.run.prepare import REFIT_PASSES
from strategies.run.stage1_outcome import given_data

WITHIN = 4.0
"""Memory and time are within this factor, either way, on two cores of a server of today; docs/estimate.md."""
ROUNDS_LOOKED_AT = 8
"""Rounds whose budgets stand for those of all."""
START_S, COMPILE_S = {"ray": 10.0}, 3.0
"""Ray with its workers; the first round, in which loops are compiled or their code is read."""
DEVICE_S = {"joining": 0.9e-3, "refinement": 3.5e-4, "evaluation": 2.0e-4, "heterogeneity": 1.2e-3}
"""A device, in: joining and grouping; a round; one table that is measured; budgets that move and fair sizes."""
ROUND_S = 0.4
"""Seconds of any round: messages, the tables of user groups."""
DENSE_S, SPARSE_S, SUMS_S = 1.0e-9, 3.0e-10, 6.0e-8
"""Seconds of pretraining: per user, drawn item and epoch, times the width; per interaction, layer and step, times the
width; per interaction, column and pass by sums.
"""
BASE_BYTES, NODE_BYTES, DEVICE_BYTES = 0.9e9, 0.45e9, 2000
"""Bytes of the server's process with Ray's own; of a node's process; of a device's state and items, on the server and
on nodes.
"""
TABLES = 5
"""Times that the tables of all user groups are held, in the server, the nodes and messages; what is above
``MOST_IN_MEMORY`` lies in a file, and is in memory once at most.
"""
REPEATED = ("pretraining", "joining", "refinement")
"""Stages that ``data.refit`` does twice."""
STUDIES = {"compare": 20, "ablate": 8, "audit": 20}
"""Runs that a study with one seed is worth, pretraining apart."""


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of a run. Bytes are those of a device on average over the whole run, in stage 1 and in refinement,
    down and up. seconds: seconds of every stage, pretraining without kept tables; rounds: rounds of refinement;
    participants: devices of one round, on average.
    """

    scenario: str
    data: str
    devices: int
    items: int
    train: int
    validation: int
    test: int
    full_table_bytes: int
    blocks: int
    user_groups: int
    rounds: int
    participants: float
    stage1_download_bytes: float
    stage1_upload_bytes: float
    download_bytes: float
    upload_bytes: float
    memory_bytes: float
    seconds: dict[str, float]
    notes: tuple[str, ...]

    @property
    def bytes_per_device(self) -> float:
        """Down and up, both stages."""
        return self.stage1_download_bytes + self.stage1_upload_bytes + self.download_bytes + self.upload_bytes

    @property
    def total_bytes(self) -> float:
        """Return the bytes of all devices."""
        return self.devices * self.bytes_per_device

    @property
    def total_s(self) -> float:
        """Return the seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def study_s(self) -> float:
        """Return the seconds of what a study repeats with every variation: all but the start and pretraining."""
        return self.total_s - self.seconds["start"] - self.seconds["pretraining"]


def estimate(scenario: Scenario, data_dir: str | Path | None) -> RunEstimate:
    """Estimate what a checked scenario takes. Its data is read; nothing is written that stays.

    Raises:
        FlPeelError: as a run would raise before it starts; or a timeline, which is not estimated.
    """
    if scenario.data.timeline is not None:
        raise ScenarioError("data.timeline: timelines are not estimated; leave out --dry-run")
    with run_folder() as run_dir:
        return _estimate_run(scenario, splits_to_run(scenario, data_folder(data_dir), str(run_dir)))


def _estimate_run(scenario: Scenario, splits: Splits) -> RunEstimate:
    layout, fleet = layout_of(scenario, splits), load_fleet(scenario.fleet)
    traffic = _refinement(scenario, splits, layout, fleet)
    stage1 = _stage1(scenario, splits, fleet, layout)
    times = 2 if scenario.data.refit else 1
    seconds = _seconds(scenario, splits, traffic)
    return RunEstimate(
        scenario=scenario.name,
        data=scenario.data.name or str(scenario.data.path),
        devices=splits.num_users,
        items=splits.num_items,
        train=splits.train.num_interactions,
        validation=splits.validation.num_interactions,
        test=splits.test.num_interactions,
        full_table_bytes=layout.full_table_bytes,
        blocks=layout.num_blocks,
        user_groups=scenario.user_groups.count,
        rounds=scenario.refinement.rounds,
        participants=traffic.participants,
        stage1_download_bytes=stage1[0],
        stage1_upload_bytes=stage1[1],
        download_bytes=times * traffic.download_bytes,
        upload_bytes=times * traffic.upload_bytes,
        memory_bytes=BASE_BYTES
        + NODE_BYTES * scenario.engine.nodes
        + DEVICE_BYTES * splits.num_users
        + _table_bytes(scenario.user_groups.count * layout.full_table_bytes),
        seconds={name: (times if name in REPEATED else 1) * value for name, value in seconds.items()},
        notes=_notes(scenario),
    )


def _table_bytes(all_tables: int) -> int:
    """Memory that the tables of all user groups take."""
    in_memory = min(all_tables, MOST_IN_MEMORY)
    return TABLES * in_memory + all_tables - in_memory


@dataclass(frozen=True)
class _Traffic:
    """Traffic of refinement: devices in a round, and bytes of a device over all rounds, as means over all devices."""

    participants: float
    download_bytes: float
    upload_bytes: float


def _refinement(scenario: Scenario, splits: Splits, layout: BlockLayout, fleet: Fleet) -> _Traffic:
    """Devices read all blocks that fit, by the popularity of their items, and answer with the rows that they touch."""
    refinement, local = scenario.refinement, scenario.refinement.local
    if not refinement.rounds:
        return _Traffic(0.0, 0.0, 0.0)
    devices = np.arange(splits.num_users, dtype=np.int64)
    popularity = splits.train.popularity(splits.num_items)
    by_group = np.bincount(layout.item_group, popularity, layout.num_item_groups)
    order = np.argsort(-np.repeat(by_group / layout.group_sizes, layout.num_slices), kind="stable")
    cost = np.concatenate([[0], np.cumsum(layout.block_bytes(scenario.blocks.precision)[order])])
    pieces = np.concatenate([[0], np.cumsum(layout.group_sizes[order // layout.num_slices])])
    met = np.concatenate([[0], np.cumsum(by_group[order // layout.num_slices] / layout.num_slices)])
    items, number = splits.train.counts(), scenario.secure_aggregation.devices_per_group
    budgets = FleetBudgets(fleet, scenario.seed, devices, layout.full_table_bytes)
    participants, down, up = [], [], []
    for server_round in range(1, min(refinement.rounds, ROUNDS_LOOKED_AT) + 1):
        bytes_now = np.floor(scenario.budget_factor * budgets.at(server_round)).astype(np.int64)
        fit = np.searchsorted(cost, bytes_now - overhead_bytes(layout.embedding_dim), side="right") - 1
        takes_part = fleet.available(scenario.seed, devices, server_round) & (fit > 0)
        takes_part &= bytes_now >= refinement.min_budget_share * layout.full_table_bytes
        share = refinement.sampling_rate
        if scenario.secure_aggregation.enabled and number is not None:
            share = min(share, number * scenario.user_groups.count / max(int(takes_part.sum()), 1))
        fit = np.maximum(fit, 0)
        read = np.full_like(fit, fit.max()) if scenario.privacy.requests == "group-prefix" else fit
        positives = items * met[fit] / max(met[-1], 1)
        touched = _touched(pieces[fit] / layout.num_slices, positives, local.num_negatives * local.epochs)
        answer = METRIC_BYTES + layout.num_slices * touched * (layout.id_dtype.itemsize + 4 * layout.slice_dim)
        if scenario.privacy.rows == "all-sent":
            answer = 4.0 * layout.slice_dim * pieces[read]
        if wants_signals(scenario):
            answer = answer + SIGNAL_BYTES * np.minimum(scenario.controller.list_length, pieces[fit])
        participants.append(share * takes_part.sum())
        down.append(share * (takes_part * cost[read]).sum())
        up.append(share * (takes_part * answer).sum())
    every = refinement.rounds / splits.num_users
    return _Traffic(float(np.mean(participants)), every * float(np.mean(down)), every * float(np.mean(up)))


def _touched(rows: NDArray[np.float64], positives: NDArray[np.float64], drawn: int) -> NDArray[np.float64]:
    """Return the number of rows that are trained on: a device's own, and those that are drawn at least once."""
    positives = np.minimum(positives, rows)
    others = np.maximum(rows - positives, 1.0)
    return positives + (rows - positives) * -np.expm1(-drawn * positives / others)


def _stage1(scenario: Scenario, splits: Splits, fleet: Fleet, layout: BlockLayout) -> tuple[float, float]:
    """Bytes of a device down and up, on average, where devices take part in stage 1."""
    pretraining = scenario.pretraining
    if not pretraining.by_devices:
        return 0.0, 0.0
    config = _limited(scenario, splits)
    wide = config.columns + config.oversampling
    groups, devices = scenario.user_groups.count, np.arange(splits.num_users, dtype=np.int64)
    budgets = FleetBudgets(fleet, scenario.seed, devices, layout.full_table_bytes).at(1)
    # bytes exclude what a mechanism and masks take besides
    terms = StepTerms.from_scenario(scenario, splits.num_items, splits.num_users)
    train = splits.train.counts()
    items = HeldItems(train, train, splits.validation.counts())

    def bytes_of(*steps: tuple[float, Step]) -> tuple[float, float]:
        costs = [(times, step.whole_cost(terms, items, budgets)) for times, step in steps]
        return (
            sum(times * float(cost.download_bytes.mean()) for times, cost in costs),
            sum(times * float(cost.upload_bytes.mean()) for times, cost in costs),
        )

    tables: tuple[tuple[float, Step], ...] = (
        (1, VectorsStep(config.columns)),
        (1 + (groups > 1), GroupsStep(groups, config.group_columns)),
        (1, MomentsStep(groups, config.group_columns, config.columns)),
        (1, MapsStep(config.columns)),
    )
    # refinement is rehearsed on the first half's tables; without rounds the filter is all that is chosen
    refit = scenario.data.refit
    makes_tables = not refit or scenario.refinement.rounds > 0
    parts = [bytes_of((1, CountsStep()), (config.passes, PassStep(wide)), *(tables if makes_tables else ()))]
    if refit:
        parts.append(bytes_of((1, CountsStep()), (REFIT_PASSES, PassStep(wide)), *tables))
    if config.chooses:
        parts.append(bytes_of(_choice(config, splits, scenario.seed)))
    return sum(down for down, _ in parts), sum(up for _, up in parts)


def _choice(config: SpectralConfig, splits: Splits, seed: int) -> tuple[float, ChoiceStep]:
    """Return the share of the devices that choose the filter, and the step in which they do."""
    drawn, place = drawn_items(splits.train.popularity(splits.num_items), seed)
    step = ChoiceStep(config.columns, len(drawn), place, config.num_filters, config.filter_devices)
    return min(1.0, config.filter_devices / splits.num_users), step


def _limited(scenario: Scenario, splits: Splits) -> SpectralConfig:
    """Return the settings of sums over devices, with as many columns as passes may have for these items."""
    owners = scenario.privacy.min_owners if scenario.pretraining.by_devices else 1
    with_row = splits.train.popularity(splits.num_items) >= owners
    return scenario.pretraining.spectral().limited(int(with_row.sum()))


def _seconds(scenario: Scenario, splits: Splits, traffic: _Traffic) -> dict[str, float]:
    """Return the seconds of every stage, each run once."""
    evaluation, devices = scenario.evaluation, splits.num_users
    refinement = scenario.refinement.rounds * (ROUND_S + DEVICE_S["refinement"] * traffic.participants)
    tables = len(evaluation.budgets) * len(evaluation.selectors) * max(1, len(evaluation.precisions))
    tables += 4 if evaluation.full_tables else 1
    refined = (scenario.fairness.exclude_below is not None) + len(scenario.elasticity.trained_for)
    refined += 2 * len(scenario.poisoning.compare)
    return {
        "start": START_S.get(scenario.engine.backend, 1.0),
        "pretraining": _pretraining_s(scenario, splits),
        "joining": DEVICE_S["joining"] * devices,
        "refinement": refinement + (COMPILE_S if scenario.refinement.rounds else 0.0),
        "evaluation": DEVICE_S["evaluation"] * devices * tables,
        "heterogeneity": DEVICE_S["heterogeneity"] * devices + refined * refinement,
    }


def _pretraining_s(scenario: Scenario, splits: Splits) -> float:
    pretraining = scenario.pretraining
    if pretraining.model == "spectral":
        config = _limited(scenario, splits)
        wide = config.columns + config.oversampling
        return SUMS_S * config.passes * wide * splits.train.num_interactions
    given, has_data = given_data(scenario, splits.train)
    users = int(has_data.sum())
    steps = -(-users // pretraining.batch_size)
    layers = pretraining.num_layers if pretraining.model == "lightgcn" else 1
    drawn = pretraining.num_negatives or splits.num_items
    if pretraining.loss == "bpr":
        drawn *= given.num_interactions // max(users, 1)
    dense = DENSE_S * users * min(drawn, splits.num_items)
    sparse = SPARSE_S * steps * layers * given.num_interactions
    return pretraining.epochs * pretraining.embedding_dim * (dense + sparse)


def _notes(scenario: Scenario) -> tuple[str, ...]:
    """Return notes on what the figures leave out."""
    notes = []
    if scenario.secure_aggregation.enabled:
        notes.append("bytes exclude the keys, shares and masked vectors of secure aggregation")
    if scenario.privacy.noised:
        notes.append("bytes and seconds exclude those of the privacy mechanism")
    if scenario.refinement.rounds and scenario.compares:
        notes.append("bytes exclude the comparison by which user groups accept refinement")
    if not scenario.pretraining.by_devices and scenario.pretraining.model != "spectral":
        notes.append("tables that an earlier run pretrained are taken from the cache and need no time")
    return tuple(notes)
