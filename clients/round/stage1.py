"""A step of stage 1 on a node: which of its devices take part, what that takes of them, and their sums.

Devices are away, are late and run out of memory as in a round of refinement. Who takes part depends on the device and
the time alone, so a step that is sent in several messages has the same devices in all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.clock import Spent, spend
from clients.node.cohort import Cohort
from clients.round.accounts import clock_counts
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClassCounts, RoundCounts
from fl_peel.pretraining.by_sums import (
    Question,
    Shapes,
    Units,
    add_rows,
    count_items,
    group_moments,
    group_sums,
    nearest,
    pass_sums,
    unit_vectors,
)
from fl_peel.pretraining.costs import Asked, Step, StepCost, choice_cost, cost_of
from fl_peel.pretraining.sketch import RowSketch
from fl_peel.randomness import device_uniforms
from fl_peel.wire import EVERYBODY, ChoiceReply, ChoiceRequest, GroupSum, SumsReply, SumsRequest

NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class There:
    """Who comes to a step, of N hosted devices. window: (N,) in which each is there first, -1 for never; small: (N,)
    those with too little memory then; reached: places of the others that come; costs: (N,).
    """

    window: IntArray
    small: NDArray[np.bool_]
    reached: IntArray
    costs: StepCost

    @staticmethod
    def of(cohort: Cohort, cost: Callable[[IntArray], StepCost], time: int, asked: NDArray[np.bool_]) -> There:
        """Of the devices ``asked`` (N,). cost: of all devices, with so many bytes of memory (N,)."""
        everybody = np.arange(len(cohort.devices))
        window = np.full(len(everybody), -1)
        budgets = np.zeros(len(everybody), np.int64)
        for number in range(cohort.scenario.pretraining.windows):
            now = asked & (window < 0) & cohort.available(everybody, time + number)
            window[now] = number
            budgets[now] = cohort.budgets.at(time + number)[now]
        costs = cost(budgets)
        small = (window >= 0) & (budgets < costs.least_bytes)
        return There(window, small, np.flatnonzero((window >= 0) & ~small), costs)


@dataclass(frozen=True)
class Reached:
    """Who takes part in a step. places: of devices whose sums count; counts: what it takes of all that are reached;
    waits_us: (W,) of the slowest device in each window.
    """

    places: IntArray
    counts: RoundCounts
    waits_us: IntArray

    @staticmethod
    def of(cohort: Cohort, cost: Callable[[IntArray], StepCost], time: int, asked: NDArray[np.bool_]) -> Reached:
        """Of the devices ``asked`` (N,); each takes part when it is there first, with the memory that it has then.

        cost: of all devices, with so many bytes of memory (N,).
        """
        there = There.of(cohort, cost, time, asked)
        reached, costs, window = there.reached, there.costs, there.window
        rates = cohort.rates.select(reached)
        spent = spend(
            replace(rates, latency_s=costs.exchanges[reached] * rates.latency_s),
            costs.download_bytes[reached],
            costs.samples[reached],
            costs.upload_bytes[reached],
            cohort.scenario.pretraining.deadline_s,
        )
        waits = np.zeros(cohort.scenario.pretraining.windows, np.int64)
        np.maximum.at(waits, window[reached], spent.time_us)
        return Reached(reached[~spent.late], _counts(cohort, asked, window >= 0, there.small, reached, spent), waits)


def there_for_sums(cohort: Cohort, request: SumsRequest) -> Reached:
    """Who takes part in a step, and what it takes."""
    items, dim = cohort.splits.train.counts(), cohort.scenario.pretraining.embedding_dim
    all_rows = cohort.splits.num_items if request.all_rows else 0
    word_bytes = cohort.scenario.pretraining.sum_bits // 8
    asked = Asked(
        cast(Step, request.step), request.columns, len(request.centroids), dim, all_rows, word_bytes=word_bytes
    )
    everybody = np.ones(len(cohort.devices), np.bool_)
    return Reached.of(cohort, lambda budgets: cost_of(asked, items, budgets), request.time, everybody)


def sums_round(cohort: Cohort, request: SumsRequest) -> SumsReply:
    """One step, or some columns of it, for all devices of a node."""
    reached = there_for_sums(cohort, request)
    sums = said(cohort, reached.places, request)
    counts = reached.counts if request.counted else RoundCounts.nothing(len(cohort.fleet.names))
    return SumsReply(sums, counts, reached.waits_us)


def said(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    """What the devices at these places add up to, whoever they are, by user group."""
    return _STEPS[request.step](cohort, places, request)


def there_to_choose(cohort: Cohort, request: ChoiceRequest) -> Reached:
    """Who takes part in a choice, and what it takes."""
    panel = asked_to_choose(cohort, request.panel) & (cohort.splits.validation.counts() > 0)
    splits = cohort.splits

    def cost(budgets: IntArray) -> StepCost:
        drawn, filters = len(request.drawn), len(request.value_exponents)
        train, wanted = splits.train.counts(), splits.validation.counts()
        return choice_cost(len(request.values), drawn, request.place, filters, train, wanted, budgets)

    return Reached.of(cohort, cost, request.time, panel)


def choice(cohort: Cohort, request: ChoiceRequest) -> ChoiceReply:
    """Some devices say which filter ranks their validation items best."""
    reached = there_to_choose(cohort, request)
    won, answered = chosen(cohort, reached.places, request)
    return ChoiceReply(won, answered, reached.counts, reached.waits_us)


def chosen(cohort: Cohort, places: IntArray, request: ChoiceRequest) -> tuple[IntArray, int]:
    """What the devices at these places answer, added up: (C,) and how many have validation items."""
    rows, wanted = cohort.splits.train.select(places), cohort.splits.validation.select(places)
    return question_of(request).answer(rows, wanted, cohort.scenario.pretraining.item_exponent)


def question_of(request: ChoiceRequest) -> Question:
    """As the server asked it."""
    shapes = Shapes(request.count_exponents, request.value_exponents)
    return Question(request.directions, request.values, request.counts, shapes, request.drawn, request.place)


def sketch_of(request: SumsRequest) -> RowSketch | None:
    """Of the rows of a pass, None where all rows are said."""
    return RowSketch(request.place, request.buckets) if request.buckets else None


def asked_to_choose(cohort: Cohort, panel: int) -> NDArray[np.bool_]:
    """Which hosted devices (N,) are among about ``panel`` of all."""
    drawn = device_uniforms(cohort.scenario.seed, "panel", devices=cohort.devices)
    return np.asarray(drawn * cohort.population < panel)


def units_of(cohort: Cohort) -> Units:
    """Of what devices say."""
    return Units.of(cohort.scenario.pretraining.spectral(), cohort.population, cohort.splits.num_items)


def _counts(
    cohort: Cohort,
    asked: NDArray[np.bool_],
    available: NDArray[np.bool_],
    small: NDArray[np.bool_],
    reached: IntArray,
    spent: Spent,
) -> RoundCounts:
    num_classes = len(cohort.fleet.names)
    in_time, away = ~spent.late, asked & ~available
    clock = clock_counts(cohort.classes, num_classes, sampled=asked, unavailable=away, excluded=small)
    classes = cohort.classes[reached]
    clock += clock_counts(classes, num_classes, stragglers=spent.late, time_us=spent.time_us, energy_mj=spent.energy_mj)
    moved = ClassCounts.zeros(len(reached))
    moved.devices[:] = in_time
    moved.download_bytes[:], moved.upload_bytes[:] = spent.download_bytes, spent.upload_bytes
    return dataclasses.replace(
        RoundCounts.nothing(num_classes),
        classes=moved.by_cell(classes, num_classes),
        clock=clock,
    )


def _counted(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    rows = cohort.splits.train.select(places)
    items = count_items(rows, cohort.splits.num_items)
    return {EVERYBODY: GroupSum(np.array([len(places)]), NONE, NONE, items)}


def _passed(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    rows = cohort.splits.train.select(places)
    exponent, scale = cohort.scenario.pretraining.user_exponent, units_of(cohort).passes
    sums = pass_sums(request.table, rows, exponent, scale, sketch_of(request))
    return {EVERYBODY: GroupSum(np.array([len(places)]), sums, NONE, NONE)}


def _vectors(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    """All devices make theirs, those that are away as soon as they come: it depends on nobody else."""
    path, stop = cohort.vectors_file, request.first + request.table.shape[1]
    if request.first == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float32, (len(cohort.devices), request.columns))
    vectors = np.load(path, mmap_mode="r+")
    vectors[:, request.first : stop] = add_rows(request.table, cohort.splits.train)
    if stop == request.columns:
        vectors[:] = unit_vectors(vectors)
    vectors.flush()
    return {EVERYBODY: GroupSum(np.array([len(places)]), NONE, NONE, NONE)}


def _grouped(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    vectors = np.asarray(np.load(cohort.vectors_file, mmap_mode="r")[places])
    found = group_sums(vectors, request.centroids, units_of(cohort).groups)
    return {EVERYBODY: GroupSum(found.sizes, found.sums, NONE, NONE)}


def _moments(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    vectors = np.asarray(np.load(cohort.vectors_file, mmap_mode="r")[places])
    known = np.flatnonzero(vectors.any(axis=1))
    groups = nearest(vectors[known], request.centroids)
    sums = {}
    for group in request.groups.tolist():
        members = known[groups == group]
        rows = cohort.splits.train.select(places[members])
        moments = group_moments(vectors[members], rows, cohort.splits.num_items, units_of(cohort).moments)
        sums[group] = GroupSum(np.array([moments.size]), moments.first, moments.second, moments.items)
    return sums


def _mapped(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    """Maps come with the request to join; here is what that takes."""
    return {}


_STEPS = {
    "counts": _counted,
    "pass": _passed,
    "vectors": _vectors,
    "groups": _grouped,
    "moments": _moments,
    "maps": _mapped,
}

__all__ = [
    "There",
    "asked_to_choose",
    "choice",
    "chosen",
    "question_of",
    "said",
    "sketch_of",
    "sums_round",
    "there_for_sums",
    "there_to_choose",
    "units_of",
]
