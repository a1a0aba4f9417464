"""Stage 1 by federation: sums over devices, a step at a time, and what each step took of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.errors import EngineError
from fl_peel.exchange.array_specs import MessageContext, summed
from fl_peel.exchange.contributors import Bits, opened_rows, packed_rows
from fl_peel.exchange.counters import RoundCounts
from fl_peel.pretraining.costs import Step
from fl_peel.pretraining.sketch import RowSketch
from fl_peel.pretraining.spectral_steps import FilterRequest, Floats, GroupSums, Ints, Moments, Units, whole_of
from strategies.nodes.nodes import NodeRequest, Nodes

COLUMNS = 128
"""Columns of a table in one message to a node: 20 MB for 40,000 rows."""
MOMENT_BYTES = 64 << 20
"""Bytes of second moments in one reply of a node."""


@dataclass(frozen=True)
class SumsRecord:
    """The cost of one step for devices, and which devices it reached. classes, clock: see :class:`RoundCounts`;
    announced: devices that began it under secure aggregation.
    """

    step: Step
    counts: RoundCounts
    virtual_seconds: float
    announced: int = 0


@dataclass
class FederatedSums:
    """:class:`fl_peel.pretraining.stage1.Stage1Sums` of the devices of a federation.

    records: of the steps so far, one after the other on the virtual clock; windows: rounds that each lasts;
    panel: devices that choose the filter, about; units: of contributions; bounded: whether devices keep to bounds;
    multiplier: of noise that they add; min_owners: devices that a sum needs to be opened; all_rows: whether they fetch
    all rows of a table, or those of their items; begin: round of the fleet's clock in which the first step opens.
    """

    nodes: Nodes
    setting: wire.RunSetting
    num_items: int
    panel: int
    windows: int
    units: Units = field(default_factory=Units)
    records: list[SumsRecord] = field(default_factory=list)
    bounded: bool = field(default=False, kw_only=True)
    multiplier: float = field(default=0.0, kw_only=True)
    min_owners: int = field(default=1, kw_only=True)
    all_rows: bool = field(default=False, kw_only=True)
    begin: int = field(default=1, kw_only=True)
    _time: int = field(init=False)

    def __post_init__(self) -> None:
        self._time = self.begin - self.windows

    def std(self, part: str) -> float:
        """Nothing is noised on the way; see :class:`strategies.run.noised_stage1.NoisedSums`."""
        return 0.0

    def counts(self) -> Ints:
        """Return how many devices have each item, (I,)."""
        self._time += self.windows
        return self._owned(np.asarray(self._total(self._asked("counts")[wire.EVERYBODY], "items")))

    def passed(self, table: Floats, weights: Floats, sketch: RowSketch | None = None) -> Ints:
        """Return the sums of a pass, (I, K), some columns a message; for bounds, a device needs all of them to answer
        any.
        """
        assert sketch is None, "hides nothing without masks"
        self._time += self.windows
        sums = np.zeros(table.shape, np.int64)
        columns = table.shape[1]
        opened = self._opened_rows("pass", columns)
        for first in range(0, columns, COLUMNS):
            if self.bounded:
                some = np.arange(first, min(first + COLUMNS, columns))
                replies = self._asked("pass", columns, first=first, table=table, groups=some, weights=weights)
            else:
                part = np.ascontiguousarray(table[:, first : first + COLUMNS])
                replies = self._asked("pass", columns, first=first, table=part, opened=opened)
            sums[:, first : first + COLUMNS] = self._total(replies[wire.EVERYBODY], "first")
        return sums

    def choice(self, filter_request: FilterRequest) -> tuple[Ints, int]:
        """Return the votes of some devices for each filter, (C,), and how many devices answered."""
        self._time += self.windows
        request = wire.ChoiceRequest(
            self.setting,
            self._time,
            self.panel,
            filter_request.place,
            filter_request.directions,
            filter_request.values,
            filter_request.counts.astype(np.float64),
            filter_request.shapes.count_exponents,
            filter_request.shapes.value_exponents,
            filter_request.drawn,
            all_rows=self.all_rows,
            noise_multiplier=self.multiplier,
            recent=np.zeros(0) if filter_request.recent is None else np.asarray(filter_request.recent, np.float64),
            fresh_exponents=filter_request.shapes.fresh_exponents,
        )
        known = MessageContext(
            {"filters": len(filter_request.shapes.value_exponents), "W": self.windows}, agreed=("C",)
        )
        if self.counts_contributors:
            counting = replace(request, counts_contributors=True)
            replies = self.nodes.ask(wire.CHOICE, wire.ChoiceReply, lambda partition: NodeRequest(counting, known))
            answering = np.array([sum(reply.answered for reply in replies)])
            if not opened_rows(answering, self.min_owners)[0]:
                return np.zeros(len(filter_request.shapes.value_exponents), np.int64), 0
        replies = self.nodes.ask(wire.CHOICE, wire.ChoiceReply, lambda partition: NodeRequest(request, known))
        self._record("choice", replies, alone=True)
        return np.sum([reply.won for reply in replies], axis=0), sum(reply.answered for reply in replies)

    @property
    def position(self) -> tuple[int, ...]:
        """Return the position of the sums: what :meth:`resume` takes."""
        return self._time, self._columns

    def resume(self, where: Sequence[int], records: Sequence[SumsRecord]) -> None:
        """Be as far as another one was, with what its steps took."""
        self._time, self._columns = where
        self.records[:] = records

    @property
    def now(self) -> int:
        """Return the round after the last step, on the fleet's clock."""
        return self._time + self.windows

    def vectors(self, own: Floats, instead: Floats | None = None) -> None:
        """Let devices make their vectors. instead: (K,) vector of a device none of whose items has a row yet."""
        self._time += self.windows
        for first in range(0, own.shape[1], COLUMNS):
            part = np.ascontiguousarray(own[:, first : first + COLUMNS])
            self._asked("vectors", own.shape[1], first=first, table=part, weights=instead)
        self._columns = own.shape[1]

    def groups(self, centroids: Floats) -> GroupSums:
        """One round of Lloyd's algorithm."""
        self._time += self.windows
        opened = self._opened_rows("groups", centroids.shape[1], centroids)
        replies = self._asked("groups", centroids.shape[1], centroids=centroids, opened=opened)[wire.EVERYBODY]
        return GroupSums(self._total(replies, "sizes"), self._total(replies, "first"))

    def moments(self, centroids: Floats, groups: Sequence[int]) -> Iterator[Moments]:
        """Yield the moments of the user groups, one after the other; a message asks for as many as a reply may hold."""
        self._time += self.windows
        at_once = max(1, MOMENT_BYTES // (4 * self._columns**2))
        opened = self._opened_rows("moments", self._columns, centroids)
        for start in range(0, len(groups), at_once):
            some = np.array(groups[start : start + at_once], np.int64)
            # the first message says what the step takes, whatever groups it is of
            sums = self._asked("moments", self._columns, first=start, centroids=centroids, groups=some, opened=opened)
            for group in some.tolist():
                size, first, second, items = (
                    self._total(sums[group], name) for name in ("sizes", "first", "second", "items")
                )
                yield Moments(int(size[0]), first, whole_of(second, self._columns), items)

    def maps(self, columns: int) -> None:
        """Devices fetch the map of their user group, as they join; counted here."""
        self._time += self.windows
        self._asked("maps", columns)

    _columns: int = 0

    @property
    def counts_contributors(self) -> bool:
        """Whether a step counts who contributes before its sums are opened."""
        return self.min_owners > 1 and not self.bounded

    def _owned(self, counts: Ints) -> Ints:
        """Return item counts (I,) without those of items that have too few owners, as if nobody had them."""
        return np.where(opened_rows(counts, self.min_owners), counts, 0) if self.counts_contributors else counts

    def _opened_rows(self, step: Step, columns: int, centroids: Floats | None = None) -> Bits:
        """Return which sums of the next step are opened, as they are sent, once its contributors are counted."""
        if not self.counts_contributors:
            return np.zeros(0, np.uint8)
        replies = self._asked(step, columns, centroids=centroids, counts_contributors=True)
        return packed_rows(opened_rows(self._total(replies[wire.EVERYBODY], "sizes"), self.min_owners))

    def _asked(
        self,
        step: Step,
        columns: int = 0,
        *,
        first: int = 0,
        table: Floats | None = None,
        centroids: Floats | None = None,
        groups: NDArray[np.int64] | None = None,
        weights: Floats | None = None,
        opened: Bits | None = None,
        counts_contributors: bool = False,
    ) -> dict[int, list[wire.GroupSum]]:
        """The nodes' sums by user group."""
        request = wire.SumsRequest(
            self.setting,
            step,
            columns,
            self._time,
            first == 0,
            first,
            np.zeros((0, 0), np.float32) if table is None else table,
            np.zeros((0, 0), np.float32) if centroids is None else centroids,
            np.zeros(0, np.int64) if groups is None else groups,
            all_rows=self.all_rows,
            weights=np.zeros(0, np.float32) if weights is None else weights,
            noise_multiplier=self.multiplier,
            counts_contributors=counts_contributors,
            opened=np.zeros(0, np.uint8) if opened is None else opened,
        )
        known = MessageContext({"W": self.windows}, groups=self._contribution(request), every_group=True, agreed=("C",))
        replies = self.nodes.ask(wire.SUMS, wire.SumsReply, lambda partition: NodeRequest(request, known))
        if first == 0 and not counts_contributors:
            self._record(step, replies, alone=step == "vectors" and weights is not None)
        by_group: dict[int, list[wire.GroupSum]] = {}
        for reply in replies:
            for group, sums in reply.sums.items():
                by_group.setdefault(group, []).append(sums)
        return by_group

    def _contribution(self, request: wire.SumsRequest) -> dict[int, MessageContext]:
        """Return what a right reply of a node in a step looks like, by user group."""
        count, columns = request.centroids.shape
        part = len(request.groups) if self.bounded else request.table.shape[1]
        parts: dict[str, dict[str, tuple[int, ...]]] = {
            "counts": {"sizes": (1,), "items": (self.num_items,)},
            "pass": {"sizes": (1,), "first": (self.num_items, part)},
            "vectors": {"sizes": (1,)},
            "groups": {"sizes": (count,), "first": (count, columns)},
            "moments": {
                "sizes": (1,),
                "first": (request.columns,),
                "second": (request.columns * (request.columns + 1) // 2,),
                "items": (self.num_items,),
            },
        }
        if request.counts_contributors:
            parts = {request.step: {"sizes": (self.num_items if request.step == "pass" else count,)}}
        if request.step not in parts:  # devices fetch their maps, and say nothing
            return {}
        nothing = dict.fromkeys(("sizes", "first", "second", "items"), (0,))
        shapes = nothing | parts[request.step]
        known = MessageContext(arrays={name: summed(*shape) for name, shape in shapes.items()})
        by_group = request.step == "moments" and not request.counts_contributors
        return dict.fromkeys(request.groups.tolist() if by_group else [wire.EVERYBODY], known)

    def _record(self, step: Step, replies: Sequence[wire.SumsReply | wire.ChoiceReply], *, alone: bool = False) -> None:
        """Remember what a step took. alone: it goes on without anybody, too."""
        counts = reduce(add, (reply.counts for reply in replies))
        waits = np.max([reply.waits_us for reply in replies], axis=0)
        if not alone and not counts.classes.devices.any():
            clock = counts.clock.total()
            raise EngineError(
                f"stage 1, {step}: of {int(clock.sampled)} devices {int(clock.unavailable)} were offline, "
                f"{int(clock.excluded)} had insufficient memory, {int(clock.stragglers)} missed the deadline, none was "
                "left; raise pretraining.deadline_s, or take another fleet"
            )
        self.records.append(SumsRecord(step, counts, int(waits.sum()) / 1e6))

    @staticmethod
    def _total(sums: list[wire.GroupSum], name: str) -> Ints:
        total: Ints = np.array(getattr(sums[0], name), np.int64)
        for part in sums[1:]:
            total += getattr(part, name)
        return total


__all__ = ["FederatedSums", "SumsRecord"]
