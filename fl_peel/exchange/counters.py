"""What rounds and evaluations count besides updates: typed sums over devices, with ``+``. (C,): per device class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import TOTAL, ArraySpec, Counters, IntArray, IntColumns, hosted, metric_of


@dataclass(frozen=True)
class ClassCounts(Counters):
    """Memory and traffic of a round's devices, (C,) each.

    devices, budget_bytes, stored_bytes, peak_bytes (stored, and what choosing and training take in addition): over
    devices whose update counts; the others: over all that were reached. violations, working_violations: of budgets at
    each step of the round, and of working memory.
    """

    devices: IntArray
    budget_bytes: IntArray
    download_bytes: IntArray
    upload_bytes: IntArray
    reselections: IntArray
    violations: IntArray
    stored_bytes: IntArray
    peak_bytes: IntArray
    working_violations: IntArray

    def without_update(self) -> Self:
        """Return the counts of devices that moved all this, but whose update does not count."""
        nothing = np.zeros_like(self.devices)
        return replace(self, devices=nothing, budget_bytes=nothing, stored_bytes=nothing, peak_bytes=nothing)


@dataclass(frozen=True)
class ClockCounts(Counters):
    """Outcomes of a round's devices and their virtual time, (C,) each: devices that were sampled, that were not
    available, whose budget was too small to be let in, that missed the deadline, that ended without a block, that lost
    blocks while they trained; microseconds and millijoules spent; fixed-point recall, and the number of devices it is
    summed over.
    """

    sampled: IntArray
    unavailable: IntArray
    excluded: IntArray
    stragglers: IntArray
    memory_dropouts: IntArray
    memory_drops: IntArray
    time_us: IntArray
    energy_mj: IntArray
    recall: IntArray
    evaluated: IntArray

    def without_update(self) -> Self:
        """Return the counts of devices whose update does not count: their recall does not, either."""
        nothing = np.zeros_like(self.recall)
        return replace(self, recall=nothing, evaluated=nothing)

    def asked_alone(self) -> Self:
        """Return how many were sampled, all in the first class: the true one would identify a lone device."""
        lumped = type(self).zeros(*self.sampled.shape)
        lumped.sampled[0] = self.sampled.sum()
        return lumped


@dataclass(frozen=True)
class RoundTotals(Counters):
    """Sums over all devices of a round, () each: how many trained; fixed-point sums of their loss, recall and NDCG; and
    how many devices were evaluated, which recall and NDCG are sums over.
    """

    trained: IntArray
    loss: IntArray
    recall: IntArray
    ndcg: IntArray
    evaluated: IntArray


@dataclass(frozen=True)
class DeviceTraces(IntColumns):
    """Single devices that the report follows, (X,) each: their number, class, budget and stored bytes, kept blocks."""

    device: IntArray
    device_class: IntArray
    budget_bytes: IntArray
    stored_bytes: IntArray
    kept_blocks: IntArray

    def __add__(self, other: Self) -> Self:
        return self.joined([self, other])


_HOSTED, _METRIC = hosted(cells=0), metric_of("evaluated")
_OUTCOMES = ("sampled", "unavailable", "excluded", "stragglers", "memory_dropouts", "memory_drops", "evaluated")
_CLOCK = {**dict.fromkeys(_OUTCOMES, _HOSTED), "recall": _METRIC}
_TOTALS = {
    **dict.fromkeys(("trained", "evaluated"), _HOSTED),
    **dict.fromkeys(("recall", "ndcg"), _METRIC),
    "loss": ArraySpec(least=f"-{TOTAL}", most=TOTAL),
}


@dataclass(frozen=True)
class RoundCounts:
    """All that a round counts besides updates; of disjoint sets of devices it adds up with ``+``.

    slowest_us: virtual microseconds of the slowest device whose update counts; traces: of devices the report follows.
    """

    classes: Annotated[ClassCounts, ArraySpec(("C",), least=0, most=TOTAL, columns={"devices": _HOSTED})]
    clock: Annotated[ClockCounts, ArraySpec(("C",), least=0, most=TOTAL, columns=_CLOCK)]
    totals: Annotated[RoundTotals, ArraySpec((), least=0, most=TOTAL, columns=_TOTALS)]
    slowest_us: Annotated[int, ArraySpec(least=0, most=TOTAL)]
    traces: Annotated[
        DeviceTraces,
        ArraySpec(
            ("traces",), least=0, columns={"device": ArraySpec(among="traced"), "device_class": ArraySpec(within="C")}
        ),
    ]

    @classmethod
    def nothing(cls, num_classes: int) -> Self:
        return cls(
            ClassCounts.zeros(num_classes),
            ClockCounts.zeros(num_classes),
            RoundTotals.zeros(),
            0,
            DeviceTraces.zeros(0),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.classes + other.classes,
            self.clock + other.clock,
            self.totals + other.totals,
            max(self.slowest_us, other.slowest_us),
            self.traces + other.traces,
        )

    def withheld(self) -> Self:
        """Return what is left where devices withhold counters: how many were sampled, which the server knows."""
        return replace(self.nothing(len(self.classes.devices)), clock=self.clock.asked_alone())


@dataclass(frozen=True)
class OwnCounts(Counters):
    """Memory of tables that devices would serve from, (X, C): devices, bytes of budgets and stored, violations."""

    devices: IntArray
    budget_bytes: IntArray
    stored_bytes: IntArray
    violations: IntArray


@dataclass(frozen=True)
class RefreshCounts(Counters):
    """Traffic and memory of devices that read a period's tables, (X, C) each under X budgets: number of devices, bytes
    sent, bytes of all that they then hold, devices over budget; devices that changed their user group, and bytes sent
    to these.
    """

    devices: IntArray
    sent_bytes: IntArray
    held_bytes: IntArray
    violations: IntArray
    moved: IntArray
    moved_bytes: IntArray


@dataclass(frozen=True)
class StepCounts(Counters):
    """What devices that are followed do at a step: how many they are, those with test items, bytes of their budgets and
    of what they store, blocks kept, devices over budget; devices that grew, that shrank, stored bytes of the blocks the
    former lacked and bytes sent for them; devices with test items that re-selected, their fixed-point recall before and
    after; recall of all, and squared; and of devices that always hold what their smallest budget holds: recall, and
    squared, bytes that they store.
    """

    devices: IntArray
    counted: IntArray
    budget_bytes: IntArray
    stored_bytes: IntArray
    kept_blocks: IntArray
    violations: IntArray
    grew: IntArray
    shrank: IntArray
    missing_bytes: IntArray
    moved_bytes: IntArray
    reselected: IntArray
    recall_before: IntArray
    recall_after: IntArray
    recall: IntArray
    recall_square: IntArray
    floor_recall: IntArray
    floor_square: IntArray
    floor_bytes: IntArray


@dataclass(frozen=True)
class StepTraces(IntColumns):
    """Devices and steps that are traced one by one, (X,) each: device, its class, the step."""

    device: IntArray
    device_class: IntArray
    step: IntArray


# ---- Which items or rows devices have, as counts within a bound: of a round, and of stage 1


BELOW = 1.0 - 1e-12
"""Bounds are met from below, by more than a sum of squares can be rounded."""


def counts_within(
    owners: NDArray[np.int64],
    places: NDArray[np.integer],
    num_places: int,
    bound: float,
    unit: float,
    *,
    l1: bool,
) -> NDArray[np.int64]:
    """Devices that have each place (P,), in units of 1 / unit: one that has n places counts bound / sqrt(n) in each
    (L1: bound / n), 1 at most. owners, places: (N,) pairs, of which each counts once.
    """
    pairs = np.unique(owners * num_places + places)
    owners, places = pairs // max(num_places, 1), pairs % max(num_places, 1)
    distinct = np.bincount(owners)
    spread = np.maximum(distinct, 1) if l1 else np.sqrt(np.maximum(distinct, 1))
    each = np.floor(np.minimum(1.0, bound * BELOW / spread) * unit).astype(np.int64)
    counts = np.zeros(num_places, np.int64)
    np.add.at(counts, places, each[owners])
    return counts
