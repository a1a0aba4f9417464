"""A step of stage 1 on a node: which of its devices take part, what that costs them, and their sums.

Devices are away, are late and run out of memory as in a round of refinement. Who takes part depends on the device and
the time alone, so a step that is sent in several messages has the same devices in all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.clock import RoundCost, spend
from clients.node.cohort import Cohort
from clients.round.accounts import clock_counts
from clients.round.noised_stage1 import Noise, noise_of
from fl_peel.data.interactions import IntArray
from fl_peel.errors import EngineError
from fl_peel.exchange.contributors import Bools, unpacked_rows
from fl_peel.exchange.counters import ClassCounts, RoundCounts
from fl_peel.pretraining.contribution import Stage1Contribution
from fl_peel.pretraining.costs import COUNTED, AnswerCost, Step, StepCost, StepShape, choice_cost, cost_of, hidden
from fl_peel.pretraining.sketch import RowSketch
from fl_peel.pretraining.spectral_steps import (
    FilterGrid,
    FilterRequest,
    Floats,
    Moments,
    Units,
    add_rows,
    group_sizes,
    half_of,
    nearest,
    unit_vectors,
)
from fl_peel.privacy.stage1_noise import Stage1Noise, make_contribution
from fl_peel.randomness import device_uniforms
from fl_peel.secure.stage1_vector import StepVector
from fl_peel.wire import EVERYBODY, ChoiceReply, ChoiceRequest, GroupSum, SumsReply, SumsRequest

NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class StepAttendance:
    """The attendance of a step, for N hosted devices. window: (N,) in which each is there first, -1 for never; small:
    (N,) those with too little memory then; reached: places of the others that come; costs: (N,).
    """

    window: IntArray
    small: NDArray[np.bool_]
    reached: IntArray
    costs: StepCost

    @staticmethod
    def from_cohort(
        cohort: Cohort, cost: Callable[[IntArray], StepCost], time: int, asked: NDArray[np.bool_]
    ) -> StepAttendance:
        """Determine when each of the devices marked in ``asked`` (N,) comes to the step. cost: function from the memory
        of all devices (N,), in bytes, to what the step takes of them.
        """
        everybody = np.arange(len(cohort.devices))
        window = np.full(len(everybody), -1)
        budgets = np.zeros(len(everybody), np.int64)
        for number in range(cohort.scenario.pretraining.open_rounds):
            now = asked & (window < 0) & cohort.available(everybody, time + number)
            window[now] = number
            budgets[now] = cohort.budgets.at(time + number)[now]
        costs = cost(budgets)
        small = (window >= 0) & (budgets < costs.least_bytes)
        return StepAttendance(window, small, np.flatnonzero((window >= 0) & ~small), costs)


@dataclass(frozen=True)
class StepParticipants:
    """The participants of a step. places: places of devices whose sums count; counts: what the step takes of all that
    are reached; waits_us: (W,) of the slowest device in each window.
    """

    places: IntArray
    counts: RoundCounts
    waits_us: IntArray

    @staticmethod
    def from_cohort(
        cohort: Cohort, cost: Callable[[IntArray], StepCost], time: int, asked: NDArray[np.bool_]
    ) -> StepParticipants:
        """Determine which of the devices marked in ``asked`` (N,) take part; each does when it is first available, with
        the memory that it has then.

        cost: of all devices, with so many bytes of memory (N,).
        """
        attendance = StepAttendance.from_cohort(cohort, cost, time, asked)
        reached, costs, window = attendance.reached, attendance.costs, attendance.window
        rates = cohort.rates.select(reached)
        spent = spend(
            replace(rates, latency_s=costs.exchanges[reached] * rates.latency_s),
            costs.download_bytes[reached],
            costs.samples[reached],
            costs.upload_bytes[reached],
            cohort.scenario.pretraining.deadline_s,
        )
        waits = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
        np.maximum.at(waits, window[reached], spent.time_us)
        return StepParticipants(
            reached[~spent.late], _counts(cohort, asked, window >= 0, attendance.small, reached, spent), waits
        )


def sums_participants(cohort: Cohort, request: SumsRequest) -> StepParticipants:
    """Return the participants of a step, and what it takes of them."""
    items, scenario = cohort.splits.contributed_items.counts(), cohort.scenario
    all_rows = cohort.splits.num_items if request.all_rows else 0
    step, groups = cast(Step, request.step), len(request.centroids)
    asked = StepShape(
        step,
        request.columns,
        groups,
        scenario.pretraining.embedding_dim,
        all_rows,
        word_bytes=scenario.pretraining.sum_bits // 8,
        weighted=scenario.privacy.noised,
        counts_contributors=scenario.privacy.counts_contributors,
    )

    def cost(budgets: IntArray) -> StepCost:
        taken = cost_of(asked, items, budgets)
        if all_rows and step not in ("vectors", "maps"):  # in which nothing is said
            vector = StepVector(step, request.columns, groups, 0, all_rows, 0, 1, bits=scenario.pretraining.sum_bits)
            return hidden(taken, clear_contribution(vector, counted=asked.counts_contributors), budgets)
        return taken

    return StepParticipants.from_cohort(
        cohort, cost, request.time, cohort.joining if step == "vectors" else cohort.contributing
    )


def sums_round(cohort: Cohort, request: SumsRequest) -> SumsReply:
    """One step, or some columns of it, for all devices of a node."""
    reached = sums_participants(cohort, request)
    sums = contribute(cohort, reached.places, request)
    # what both parts of a step take is counted once, with its sums
    counted = request.counted and not request.counts_contributors
    counts = reached.counts if counted else RoundCounts.nothing(len(cohort.fleet.names))
    return SumsReply(sums, counts, reached.waits_us)


def contribute(cohort: Cohort, places: IntArray, request: SumsRequest) -> dict[int, GroupSum]:
    """Return the sums of the devices at these places, by user group, with the noise that the devices add."""
    if request.counts_contributors:
        return {EVERYBODY: GroupSum(contributors(cohort, places, request), NONE, NONE, NONE)}
    return STEPS[request.step](cohort, places, request, noise_of(cohort, request))


def contributors(cohort: Cohort, places: IntArray, request: SumsRequest) -> IntArray:
    """Return how many of the devices at these places would contribute to each row of a step (R,): of a pass to each
    item's, else to each user group's.
    """
    if request.step == "pass":
        return cohort_contribution(cohort).counts(cohort.splits.contributed_items.select(places))
    return group_sizes(np.load(cohort.vectors_file, mmap_mode="r")[places], request.centroids)


def _opened(cohort: Cohort, request: SumsRequest, rows: int) -> Bools | None:
    """Return the rows (R,) of a step that the server opens; None for all of them."""
    return unpacked_rows(request.opened, rows) if cohort.scenario.privacy.counts_contributors else None


def clear_contribution(vector: StepVector, *, counted: bool) -> AnswerCost:
    """Return the cost of sending all words of a vector at once, in the clear. counted: whether the device first sends
    to which rows it would contribute.
    """
    answer = AnswerCost(vector.contribution_bytes, 0, 0, 1)
    return (
        answer + AnswerCost(vector.counting.contribution_bytes, 0, 0, 0)
        if counted and vector.step in COUNTED
        else answer
    )


def choice_participants(cohort: Cohort, request: ChoiceRequest) -> StepParticipants:
    """Return the participants of a choice, and what it takes of them."""
    splits, panel = cohort.splits, choice_panel(cohort, request.panel)
    if not cohort.scenario.privacy.noised:  # else that a device answers would say that it has any
        panel &= splits.validation.counts() > 0
    all_rows = splits.num_items if request.all_rows else 0
    filters = len(request.value_exponents)

    def cost(budgets: IntArray) -> StepCost:
        train, wanted = splits.train.counts(), splits.validation.counts()
        sizes = (len(request.values), len(request.drawn), request.place, filters)
        counted = cohort.scenario.privacy.counts_contributors
        taken = choice_cost(*sizes, train, wanted, budgets, all_rows, counted=counted)
        vector = StepVector("choice", len(request.values), 0, filters, splits.num_items, 0, 1)
        return hidden(taken, clear_contribution(vector, counted=counted), budgets) if all_rows else taken

    return StepParticipants.from_cohort(cohort, cost, request.time, panel)


def choice(cohort: Cohort, request: ChoiceRequest) -> ChoiceReply:
    """Let some devices vote for the filter that ranks their validation items best."""
    reached = choice_participants(cohort, request)
    won, answered = chosen(cohort, reached.places, request, noise_of(cohort, request))
    counts = RoundCounts.nothing(len(cohort.fleet.names)) if request.counts_contributors else reached.counts
    return ChoiceReply(won, answered, counts, reached.waits_us)


def chosen(cohort: Cohort, places: IntArray, request: ChoiceRequest, noise: Noise | None) -> tuple[IntArray, int]:
    """Return the votes of devices at these places for each filter (C,), and how many of the devices vote."""
    fresh = request.fresh_exponents if len(request.recent) else np.zeros_like(request.value_exponents)
    shapes = FilterGrid(request.count_exponents, request.value_exponents, fresh)
    recent = request.recent if len(request.recent) else None
    asked = (request.directions, request.values, request.counts, shapes, request.drawn, request.place)
    filter_request = FilterRequest(*asked, recent, cohort.fading)
    splits = cohort.splits
    if request.counts_contributors:
        return np.zeros(len(request.value_exponents), np.int64), filter_request.answering(
            splits.validation.select(places)
        )
    won, answered = cohort_contribution(cohort).choice(
        filter_request, splits.train.select(places), splits.validation.select(places)
    )
    for one in noises(cohort, places, noise):
        won = won + one.choice(len(won))
    return won, answered


def noises(cohort: Cohort, places: IntArray, noise: Noise | None) -> Iterator[Stage1Noise]:
    """Return the noise that each of the devices at these places adds; None where they add none."""
    if noise is not None:
        yield from map(noise, cohort.devices[places].tolist())


def sketch_of(request: SumsRequest) -> RowSketch | None:
    """Return the sketch that the rows of a pass are sent in, or None where every row is sent by itself."""
    return RowSketch(request.place, request.buckets) if request.buckets else None


def choice_panel(cohort: Cohort, panel: int) -> NDArray[np.bool_]:
    """Return which hosted devices (N,) are among about ``panel`` of all."""
    drawn = device_uniforms(cohort.scenario.seed, "panel", devices=cohort.devices)
    return np.asarray(drawn * cohort.population < panel)


def cohort_contribution(cohort: Cohort) -> Stage1Contribution:
    """Return what devices contribute, and in which units."""
    num_items = cohort.splits.num_items
    units = Units.from_config(cohort.scenario.pretraining.spectral(), cohort.population, num_items)
    return make_contribution(cohort.scenario, num_items, units)


def _counts(
    cohort: Cohort,
    asked: NDArray[np.bool_],
    available: NDArray[np.bool_],
    small: NDArray[np.bool_],
    reached: IntArray,
    spent: RoundCost,
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


def _counted(cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None) -> dict[int, GroupSum]:
    num_items = cohort.splits.num_items
    items = cohort_contribution(cohort).counts(cohort.splits.contributed_items.select(places))
    for one in noises(cohort, places, noise):
        items = items + one.counts(num_items)
    return {EVERYBODY: GroupSum(np.array([len(places)]), NONE, NONE, items)}


def _passed(cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None) -> dict[int, GroupSum]:
    words = cohort_contribution(cohort)
    columns = range(request.table.shape[1])
    if words.bounded:
        columns = range(int(request.groups[0]), int(request.groups[-1]) + 1)
    part = slice(columns.start, columns.stop)
    rows = cohort.splits.contributed_items.select(places)
    opened = _opened(cohort, request, len(request.table))
    sums = words.passed(request.table, request.weights, part, rows, sketch_of(request), opened)
    for one in noises(cohort, places, noise):
        sums += one.passed(len(sums), columns)
    return {EVERYBODY: GroupSum(np.array([len(places)]), _sent(cohort, sums), NONE, NONE)}


def _sent(cohort: Cohort, sums: IntArray) -> IntArray:
    """Sums as wide as the scenario's words, which hold those of all devices: half of the bytes to move where that is
    enough (``pretraining.sum_bits``).
    """
    return cast(IntArray, sums.astype(np.int32)) if cohort.scenario.pretraining.sum_bits == 32 else sums


def _vectors(cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None) -> dict[int, GroupSum]:
    """Compute the vectors of all devices, also of those that are offline as soon as they come back: a vector depends on
    no other device.
    """
    path, stop = cohort.vectors_file, request.first + request.table.shape[1]
    rows = add_rows(request.table, cohort.rows, cohort.fading)
    if request.table.shape[1] < request.columns:  # as they are, so that any part of them may be asked for again
        rows = _in_parts(path.with_suffix(".parts.npy"), request, rows)
    if stop == request.columns:
        vectors = unit_vectors(rows)
        nothing = cohort.joining & (cohort.rows.counts() == 0)
        if len(request.weights) == request.columns:  # what a device is taken for that has no row of its own yet
            vectors[nothing] = request.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        done = path.with_suffix(".done.npy")
        np.save(done, vectors)
        done.replace(path)
    return {EVERYBODY: GroupSum(np.array([len(places)]), NONE, NONE, NONE)}


def _in_parts(path: Path, request: SumsRequest, part: Floats) -> Floats:
    """All columns of devices' vectors (N, K) so far, with this part (N, k) of them.

    Raises:
        EngineError: the parts before it are not there.
    """
    shape = (len(part), request.columns)
    if request.first == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float32, shape)
    try:
        rows = np.load(path, mmap_mode="r+")
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: devices have not computed the first columns of their vectors") from error
    if rows.shape != shape:
        raise EngineError(f"{path}: of shape {rows.shape}, not {shape}; start the run again")
    rows[:, request.first : request.first + part.shape[1]] = part
    rows.flush()
    return cast(Floats, rows)


def _grouped(cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None) -> dict[int, GroupSum]:
    vectors = np.asarray(np.load(cohort.vectors_file, mmap_mode="r")[places])
    sums = cohort_contribution(cohort).groups(
        vectors, request.centroids, _opened(cohort, request, len(request.centroids))
    )
    for one in noises(cohort, places, noise):
        sums = sums + one.groups(*request.centroids.shape)
    return {EVERYBODY: GroupSum(sums.sizes, sums.sums, NONE, NONE)}


def _moments(cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None) -> dict[int, GroupSum]:
    return {
        group: GroupSum(np.array([moments.size]), moments.first, _sent(cohort, half_of(moments.second)), moments.items)
        for group, moments in moments_by_group(cohort, places, request, noise)
    }


def moments_by_group(
    cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None, *, empty: bool = True
) -> Iterator[tuple[int, Moments]]:
    """Return the moments of the devices at these places in each user group that is asked for. empty: whether groups
    that none of them is in are answered too, by zeros or noise.
    """
    vectors = np.load(cohort.vectors_file, mmap_mode="r")
    num_items = cohort.splits.num_items
    words = cohort_contribution(cohort)
    # every message of the step comes here, so that no more is read of the vectors than decides the group
    leading = np.asarray(vectors[:, : request.centroids.shape[1]])[places]
    some = np.asarray(leading.any(axis=1))
    some[~some] = np.asarray(vectors[places[~some]]).any(axis=1)
    known = np.flatnonzero(some)
    groups = nearest(leading[known], request.centroids)
    opened = _opened(cohort, request, len(request.centroids))
    if opened is not None:
        groups = np.where(opened[groups], groups, -1)
    for group in request.groups.tolist():
        members = known[groups == group]
        if not (empty or noise is not None or len(members)):
            continue
        mine = np.asarray(vectors[places[members]])
        moments = words.moments(mine, cohort.splits.contributed_items.select(places[members]))
        for one in noises(cohort, places, noise):
            moments = moments + one.moments(group, vectors.shape[1], num_items)
        yield group, moments


def _mapped(cohort: Cohort, places: IntArray, request: SumsRequest, noise: Noise | None) -> dict[int, GroupSum]:
    """Maps come with the request to join; here is what that takes."""
    return {}


STEPS = {
    "counts": _counted,
    "pass": _passed,
    "vectors": _vectors,
    "groups": _grouped,
    "moments": _moments,
    "maps": _mapped,
}

__all__ = [
    "STEPS",
    "StepAttendance",
    "choice",
    "choice_panel",
    "choice_participants",
    "chosen",
    "contribute",
    "contributors",
    "moments_by_group",
    "sketch_of",
    "sums_participants",
    "sums_round",
]
