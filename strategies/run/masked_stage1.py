"""Stage 1 by federation under secure aggregation: the server learns what all devices of a step add up to, no more.

A step is one group of all devices that are there in one of its windows. It takes the exchanges of a round of refinement
(:mod:`strategies.rounds.masked`): keys, sealed shares, masked vectors, opened shares. Unlike a round, no step can be
left out: one that too few devices last out ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import cast

import numpy as np

from fl_peel import wire
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.array_specs import MessageContext
from fl_peel.exchange.contributors import Bits, opened_rows, packed_rows
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.pretraining.costs import Step
from fl_peel.pretraining.sketch import RowSketch
from fl_peel.pretraining.spectral_steps import FilterRequest, Floats, GroupSums, Ints, Moments
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.stage1_vector import Part, StepVector, moments_of
from fl_peel.secure.unmask import Mask, added, without
from fl_peel.secure.vector import CHECK, Values
from strategies.nodes.nodes import NodeRequest
from strategies.rounds.masked_group import AnnouncedKeys, BoolArray, SecureGroup
from strategies.run.stage1 import FederatedSums, SumsRecord

PART_BYTES = 4 << 20
"""Bytes of a vector's part in one message: what a node holds of one device at a time."""

Inboxes = dict[int, wire.Inbox]
Request = Callable[[Part, Inboxes], object]
"""Function that makes the request for a part of the vector, from what neighbours sealed for the devices of a node."""


@dataclass
class MaskedSums(FederatedSums):
    """:class:`fl_peel.pretraining.stage1.Stage1Sums` of devices that mask their contribution.

    Devices make vectors and fetch maps as in the clear, where they answer nothing; of a table, they fetch all rows.
    """

    scenario: Scenario = field(kw_only=True)
    num_devices: int = field(kw_only=True)
    all_rows: bool = field(default=True, kw_only=True)
    _steps: int = 0

    @property
    def position(self) -> tuple[int, ...]:
        """Return the position as in the clear, and how many steps have had keys."""
        return (*super().position, self._steps)

    def resume(self, where: Sequence[int], records: Sequence[SumsRecord]) -> None:
        """Resume from a position, as in the clear."""
        *others, self._steps = where
        super().resume(others, records)

    def counts(self) -> Ints:
        """Return how many devices have each item, (I,)."""
        self._time += self.windows
        (sums,) = self._added(*self._requests("counts"))
        return self._owned(sums["items"])

    def passed(self, table: Floats, weights: Floats, sketch: RowSketch | None = None) -> Ints:
        """Return the sums of a pass, (I, K), under a sketch (B, K); each message has some of the columns."""
        parts = self._sums("pass", table.shape[1], table=table, weights=weights, sketch=sketch)
        return np.ascontiguousarray(np.concatenate([part["columns"] for part in parts]).T)

    def choice(self, request: FilterRequest) -> tuple[Ints, int]:
        """Return the votes of some devices for each filter, (C,), and how many devices answered."""
        self._time += self.windows
        if self.counts_contributors:
            (sums,) = self._choice(request, counts_contributors=True)
            if not opened_rows(sums["contributors"], self.min_owners)[0]:
                return np.zeros(len(request.shapes.value_exponents), np.int64), 0
        (sums,) = self._choice(request)
        return sums["won"], int(sums["answered"][0])

    def _choice(self, filter_request: FilterRequest, *, counts_contributors: bool = False) -> list[Values]:
        step_request, _ = self._requests(
            "choice",
            len(filter_request.values),
            panel=self.panel,
            drawn=len(filter_request.drawn),
            place=filter_request.place,
            shapes=len(filter_request.shapes.value_exponents),
            counts_contributors=counts_contributors,
        )

        def request(part: Part, secure: Inboxes) -> wire.SecureChoiceRequest:
            return wire.SecureChoiceRequest(
                self.setting,
                step_request.time,
                step_request.panel,
                filter_request.place,
                filter_request.directions,
                filter_request.values,
                filter_request.counts.astype(np.float64),
                filter_request.shapes.count_exponents,
                filter_request.shapes.value_exponents,
                filter_request.drawn,
                all_rows=self.all_rows,
                noise_multiplier=self.multiplier,
                server_round=step_request.server_round,
                secure=secure,
                counts_contributors=counts_contributors,
            )

        return self._added(step_request, request, wire.SECURE_CHOICE)

    def groups(self, centroids: Floats) -> GroupSums:
        """One round of Lloyd's algorithm."""
        (sums,) = self._sums("groups", centroids.shape[1], centroids=centroids)
        return GroupSums(sums["sizes"], sums["sums"])

    def moments(self, centroids: Floats, groups: Sequence[int]) -> Iterator[Moments]:
        """Yield the moments of the user groups, one after the other; a message asks for as many as a reply may hold."""
        assert list(groups) == list(range(len(centroids))), "a device says which group is its own by zeros for the rest"
        for part in self._sums("moments", self._columns, centroids=centroids):
            for words in part["moments"]:
                yield moments_of(words, self._columns)

    def _sums(
        self,
        step: Step,
        columns: int,
        *,
        table: Floats | None = None,
        centroids: Floats | None = None,
        sketch: RowSketch | None = None,
        weights: Floats | None = None,
    ) -> list[Values]:
        """Return the sums of a step, by part of the vector, where enough devices contribute."""
        self._time += self.windows
        opened = None
        if self.counts_contributors:
            (counted,) = self._added(
                *self._requests(step, columns, centroids=centroids, sketch=sketch, counts_contributors=True)
            )
            opened = packed_rows(opened_rows(counted["contributors"], self.min_owners))
        start, request = self._requests(
            step, columns, table=table, centroids=centroids, sketch=sketch, weights=weights, opened=opened
        )
        return self._added(start, request)

    def _requests(
        self,
        step: Step,
        columns: int = 0,
        *,
        table: Floats | None = None,
        centroids: Floats | None = None,
        sketch: RowSketch | None = None,
        weights: Floats | None = None,
        opened: Bits | None = None,
        counts_contributors: bool = False,
        **choice: int,
    ) -> tuple[wire.SecureStepRequest, Request]:
        """Return the requests of the next step: those before it begins, and those of the step itself."""
        self._steps += 1
        centres = np.zeros((0, 0), np.float32) if centroids is None else centroids
        place, buckets = (np.zeros(0, np.int32), 0) if sketch is None else (sketch.place, sketch.buckets)
        start = wire.SecureStepRequest(
            self.setting,
            -self._steps,
            self._time,
            step,
            columns,
            len(centres),
            buckets=buckets,
            counts_contributors=counts_contributors,
            **choice,
        )

        whole = self.bounded and step == "pass"  # devices need all columns to answer any

        def request(part: Part, secure: Inboxes) -> wire.SecureSumsRequest:
            first, stop = part
            rows = np.zeros((0, 0), np.float32) if table is None else table
            return wire.SecureSumsRequest(
                self.setting,
                step,
                columns,
                start.time,
                first == 0,
                first,
                rows if whole else np.ascontiguousarray(rows[:, first:stop]),
                centres,
                np.arange(first, stop if whole or step == "moments" else first),
                all_rows=self.all_rows,
                buckets=buckets,
                place=place,
                weights=weights if whole and weights is not None else np.zeros(0, np.float32),
                noise_multiplier=self.multiplier,
                server_round=start.server_round,
                secure=secure,
                counts_contributors=counts_contributors,
                opened=np.zeros(0, np.uint8) if opened is None else opened,
            )

        return start, request

    def _added(self, start: wire.SecureStepRequest, request: Request, kind: str = wire.SECURE_SUMS) -> list[Values]:
        """A step: the sums over all devices that stayed, by part of the vector.

        Raises:
            SecureAggregationError: too few of them did.
        """
        one, clock = self._begin(start)
        vector = StepVector(
            cast(Step, start.step),
            start.columns,
            start.groups,
            start.shapes,
            self.num_items,
            0 if self.bounded else len(clock.sampled),
            len(one.devices),
            start.buckets,
            self.units.bits,
            start.counts_contributors,
        )
        parts = vector.parts(PART_BYTES)
        replies: dict[int, list[wire.SecureSumsReply]] = {partition: [] for partition in range(len(self.nodes.ids))}
        for part in parts:
            narrow, wide = vector.part(part).num_words
            sizes = {"C": len(clock.sampled), "W": self.windows, "narrow": narrow, "wide": wide}
            answers = self._sent(kind, one, part, request, replies, sizes)
            # a node that fails has dropped out with all of its devices, whatever it sent before
            replies = {partition: [*replies[partition], reply] for partition, reply in answers.items()}
        survived = np.isin(one.devices, [device for each in replies.values() for device in each[0].sum.devices])
        masks = self._opened(start, one, survived, clock)
        sums = []
        for number, part in enumerate(parts):
            words = (MaskWords(each[number].sum.narrow, each[number].sum.wide) for each in replies.values())
            sums.append(vector.part(part).values(without(added(words), masks, vector.start(part))))
        if sums[0].pop(CHECK).tolist() != [survived.sum()]:
            raise SecureAggregationError(
                f"secure aggregation, stage 1, {start.step}: masks are left in the sum; a device masked its vector "
                "with other keys than it announced"
            )
        if start.counts_contributors:  # what both parts of a step take is counted once, with its sums
            return sums
        self._remember(start, clock, sums[0], [each[0] for each in replies.values()], len(one.devices))
        return sums

    def _begin(self, start: wire.SecureStepRequest) -> tuple[SecureGroup, ClockCounts]:
        """Settle which devices take part: they have announced keys and shared their secrets."""
        everybody = {"first group": wire.EVERYBODY, "last group": wire.EVERYBODY}

        def hosted(partition: int) -> NodeRequest:
            here = self.nodes.hosted(partition, self.num_devices)
            return NodeRequest(start, MessageContext(everybody, {"devices": here}, agreed=("C",)))

        announced = list(self.nodes.ask_some(wire.SECURE_STEP, wire.SecureKeysReply, hosted).values())
        if not announced:
            raise self._too_few(start, "no node answered, the log says why", None)
        clock = reduce(add, (reply.clock for reply in announced))
        devices = np.concatenate([reply.devices for reply in announced])
        order = np.argsort(devices)
        channel, mask = (
            np.concatenate([getattr(reply, name) for reply in announced])[order]
            for name in ("channel_keys", "mask_keys")
        )
        least = self.scenario.secure_aggregation.min_devices
        if len(devices) < least:
            over = wire.SecureUnmaskRequest(self.setting, start.server_round, {})
            self.nodes.ask_some(
                wire.SECURE_UNMASK, wire.SecureUnmaskReply, lambda _: NodeRequest(over)
            )  # keys are forgotten
            raise self._too_few(
                start, f"{len(devices)} devices announced keys, secure_aggregation.min_devices is {least}", clock
            )
        keys = AnnouncedKeys(devices[order], channel, mask)
        one = SecureGroup.from_keys(self.scenario, start.server_round, wire.EVERYBODY, keys)

        def shares(partition: int) -> NodeRequest | None:
            here = self._hosted(one, partition)
            request = wire.SecureSharesRequest(self.setting, start.server_round, {wire.EVERYBODY: one.directory(here)})
            known = MessageContext(groups={wire.EVERYBODY: one.known(one.devices[here])}, every_group=True)
            return NodeRequest(request, known) if here.any() else None

        shared = self.nodes.ask_some(wire.SECURE_SHARES, wire.SecureSharesReply, shares).values()
        return one.with_shares(reply.groups[wire.EVERYBODY] for reply in shared), clock

    def _sent(
        self,
        kind: str,
        one: SecureGroup,
        part: Part,
        request: Request,
        nodes: dict[int, list[wire.SecureSumsReply]],
        sizes: dict[str, int],
    ) -> dict[int, wire.SecureSumsReply]:
        """A part of the vectors, of the nodes that have sent all before it. sizes: of a right answer."""

        def content(partition: int) -> NodeRequest | None:
            here = one.shared & self._hosted(one, partition)
            if partition not in nodes or not here.any():
                return None
            payload = request(part, {wire.EVERYBODY: one.inbox(here)} if part[0] == 0 else {})
            first = next(iter(nodes[partition]), None)  # all parts are of the same devices
            mine = one.devices[here] if first is None else first.sum.devices
            known = MessageContext({**sizes, **({} if first is None else {"N": len(mine)})}, {"devices": mine})
            return NodeRequest(payload, known)

        return self.nodes.ask_some(kind, wire.SecureSumsReply, content)

    def _opened(
        self, start: wire.SecureStepRequest, one: SecureGroup, survived: BoolArray, clock: ClockCounts
    ) -> list[Mask]:
        """The masks that are left in the sum over ``survived`` (M,). Devices forget the step, whatever comes of it."""
        why = one.why_void(survived)

        def questions(partition: int) -> NodeRequest | None:
            hosted = self._hosted(one, partition)
            here = hosted & survived
            groups = {} if why is not None or not here.any() else {wire.EVERYBODY: one.questions(here, survived)}
            request = wire.SecureUnmaskRequest(self.setting, start.server_round, groups)
            known = {group: one.known(asked.devices) for group, asked in groups.items()}
            return NodeRequest(request, MessageContext(groups=known, every_group=True)) if hosted.any() else None

        replies = self.nodes.ask_some(wire.SECURE_UNMASK, wire.SecureUnmaskReply, questions).values()
        if why is None:
            contents = [reply.groups[wire.EVERYBODY] for reply in replies if reply.groups]
            answered = np.isin(one.devices, [device for content in contents for device in content.devices])
            why = one.why_void(survived, answered)
        if why is not None:
            raise self._too_few(start, why, clock)
        if not self.scenario.secure_aggregation.masked:
            return []
        return one.masks_left(start.server_round, survived, contents)

    def _remember(
        self,
        start: wire.SecureStepRequest,
        clock: ClockCounts,
        sums: Values,
        replies: list[wire.SecureSumsReply],
        announced: int,
    ) -> None:
        """Record what the step took: for devices in the sum as words of it, for the others as the simulation knows; for
        all of them as it knows where devices withhold counters.
        """
        classes = ClassCounts.zeros(len(clock.sampled))
        if not self.bounded:
            classes = ClassCounts.unstacked(sums.pop("classes"))
            clock = clock + ClockCounts.unstacked(sums.pop("clock"))
        classes = reduce(add, (reply.classes for reply in replies), classes)
        clock = reduce(add, (reply.clock for reply in replies), clock)
        counts = replace(RoundCounts.nothing(len(clock.sampled)), classes=classes, clock=clock)
        waits = np.max([reply.waits_us for reply in replies], axis=0)
        self.records.append(SumsRecord(cast(Step, start.step), counts, int(waits.sum()) / 1e6, announced))

    def _hosted(self, one: SecureGroup, partition: int) -> BoolArray:
        """Return which of the devices (M,) the node of a partition hosts."""
        return np.asarray(self.nodes.partitions_of(one.devices) == partition)

    def _too_few(self, start: wire.SecureStepRequest, why: str, clock: ClockCounts | None) -> SecureAggregationError:
        asked = ""
        if clock is not None:
            total = clock.total()
            asked = (
                f" (of {int(total.sampled)} requested, {int(total.unavailable)} were offline, "
                f"{int(total.excluded)} had insufficient memory)"
            )
        panel = ", pretraining.filter_devices" if start.panel else ""
        return SecureAggregationError(
            f"secure aggregation, stage 1, {start.step}: {why}{asked}; raise pretraining.open_rounds or "
            f"deadline_s{panel}, or secure_aggregation.neighbours, lower secure_aggregation.min_devices or threshold, "
            "or take another fleet"
        )


__all__ = ["MaskedSums"]
