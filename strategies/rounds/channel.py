"""The server's half of the channels: how sums are transported, in the clear or masked.

A channel brings the contributions of devices to the server as one round's sums, whatever they are. ``clear``: nodes add
up, the server reads; ``masked``: secure aggregation, the server reads sums alone.

A round takes four exchanges with every node: keys, sealed shares, masked vectors, opened shares. A node that does not
answer one of them has dropped out with all of its devices. A user group too few devices of which last out is void: its
table stays as it is, and the report says so.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, MessageContext
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts, RoundTotals
from fl_peel.exchange.release import layout_of, sparse
from fl_peel.secure.protocol_plan import DeviceBytes
from fl_peel.secure.vector import MaskWords, Values, VectorLayout
from fl_peel.wire import RoundReply, RoundRequest
from strategies.nodes.members import bounds_of
from strategies.nodes.nodes import NodeRequest
from strategies.rounds.federation import Federation, SecureRecord, SentRound
from strategies.rounds.masked_exchange import (
    BoolArray,
    IntArray,
    MaskedExchange,
    MaskedPart,
    SecureGroup,
    VoidSumError,
    drawn_devices,
)
from strategies.rounds.suspects import Suspects

Expects = Callable[[SentRound, int, int], MessageContext | None]
"""Function that returns what a right contribution of a node to a user group looks like, for so many requested devices.
"""


@dataclass(frozen=True)
class OpenedSum:
    """The size of one opened sum of a user group: number of devices that announced keys, and of those that the sum is
    over.
    """

    announced: int
    survivors: int


@dataclass(frozen=True)
class RoundDevices:
    """The devices of a round, ascending: those that are asked, and of these the ones that may be asked for a
    contribution.
    """

    asked: IntArray
    ready: IntArray


class ServerChannel(ABC):
    """The server half of a channel for one refinement. Each round calls begin, then message for every node, then
    collect.

    kind: of its messages; answer: what a node answers; records: one a round, where the channel keeps any; opened: the
    last round's sums by user group, where the channel opens them.
    """

    kind: ClassVar[str]
    answer: ClassVar[type[Any]]

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.records: list[SecureRecord] = []
        self.opened: Mapping[int, OpenedSum] = {}

    @abstractmethod
    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """A round begins for the devices of a cohort (N,), ascending."""

    @abstractmethod
    def message(self, request: RoundRequest) -> RoundRequest:
        """Return what a node is sent for a request, as :attr:`kind`."""

    @abstractmethod
    def known(self, sent: SentRound, request: RoundRequest, expects: Expects) -> MessageContext:
        """Return what is known of the right answer to a message. expects: what the contents expect."""

    @abstractmethod
    def collect(self, sent: SentRound, replies: Iterable[Any]) -> Iterable[RoundReply]:
        """The round's sums, from what nodes replied, each an :attr:`answer`; in any order, and in as many parts as the
        channel likes.
        """


class ClearServerChannel(ServerChannel):
    """The clear channel of the server, whose messages are sent as they are."""

    kind = wire.ROUND
    answer = wire.RoundReply

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Return the cohort: all of its devices may be asked."""
        return RoundDevices(cohort, cohort)

    def message(self, request: wire.RoundRequest) -> wire.RoundRequest:
        """Return the request itself."""
        return request

    def known(self, sent: SentRound, request: wire.RoundRequest, expects: Expects) -> MessageContext:
        """Return what right replies look like: what the contributions expect of every user group, and totals that
        differ when a device is counted twice or not at all.
        """
        members = self.federation.members.groups_of(request.devices)
        counts = {group: int((members == group).sum()) for group in request.groups}
        anything = MessageContext(arrays=None)
        return MessageContext(
            {"C": self.federation.num_classes, **bounds_of(len(request.devices))},
            {"traced": np.sort(request.traced)},
            groups={group: expects(sent, group, count) or anything for group, count in counts.items()},
            totals={"counts.clock.sampled": len(request.devices)},
        )

    def collect(self, sent: SentRound, replies: Iterable[wire.RoundReply]) -> Iterable[wire.RoundReply]:
        """One part a node and message, as they come."""
        return replies


logger = logging.getLogger("fl_peel")


class MaskedServerChannel(ServerChannel):
    """Secure aggregation. ``records``: one a round; ``opened``: the last round's sums by user group."""

    kind = wire.SECURE_ROUND
    answer = wire.SecureRoundReply

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._scenario, self._setting, self._nodes = federation.scenario, federation.setting, federation.nodes
        self._suspects = Suspects(self._scenario.secure_aggregation.min_devices)
        self._exchange = self._new_exchange(0)
        self._right: dict[int, MessageContext | None] = {}
        self._clock = ClockCounts.zeros(federation.num_classes)

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Run stages 1 and 2: of the sampled devices, those that shared their secrets may be asked for vectors."""
        asked = drawn_devices(self._scenario, server_round, cohort, self.federation.members.groups_of(cohort))
        record = SecureRecord(server_round)
        self.records.append(record)
        self._exchange = exchange = self._new_exchange(server_round)
        exchange.settle(self._announced(server_round, asked))
        record.groups, record.sat_out_groups = len(exchange.groups), exchange.sat_out
        record.announced = sum(len(one.devices) for one in exchange.groups.values())
        exchange.share()
        ready = [one.devices[one.shared] for one in exchange.groups.values()]
        return RoundDevices(asked, np.sort(np.concatenate(ready)) if ready else asked[:0])

    def _new_exchange(self, server_round: int) -> MaskedExchange:
        return MaskedExchange(self._scenario, self._setting, self._nodes, server_round, self._suspects)

    def _announced(self, server_round: int, devices: IntArray) -> list[wire.SecureKeysReply]:
        """Stage 1: devices that are reached announce their keys."""
        members = self.federation.members

        def keys(partition: int) -> NodeRequest | None:
            mine = devices[self._nodes.partitions_of(devices) == partition]
            known = MessageContext(
                {"C": self.federation.num_classes, "first group": 0, "last group": len(self.federation.states) - 1},
                {"devices": mine},
                totals={"clock.sampled": len(mine)},
            )
            return NodeRequest(wire.SecureKeysRequest(self._setting, server_round, mine), known) if len(mine) else None

        replies = self._exchange.ask_keys(wire.SECURE_KEYS, keys)
        # nobody announces keys in another group than it joined
        replies = [reply for reply in replies if (members.groups_of(reply.devices) == reply.groups).all()]
        self._clock = ClockCounts.zeros(self.federation.num_classes)
        for reply in replies:
            self._clock += reply.clock
        return replies

    def message(self, request: wire.RoundRequest) -> wire.SecureRoundRequest:
        """Stage 3: a round's request with what the devices' neighbours sealed for them; of single devices nothing."""
        secure = {}
        for group in request.groups:
            one = self._exchange.groups[group]
            secure[group] = one.inbox(one.shared & np.isin(one.devices, request.devices))
        fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
        return wire.SecureRoundRequest(**(fields | {"traced": request.traced[:0]}), secure=secure)

    def known(self, sent: SentRound, request: wire.RoundRequest, expects: Expects) -> MessageContext:
        """Return which devices may be in a sum, and how many words it has."""
        groups = {}
        for group in request.groups:
            one = self._exchange.groups[group]
            self._right[group] = expects(sent, group, len(one.devices))
            narrow, wide = self._vector_layout(one, sent).num_words
            mine = one.devices[one.shared & np.isin(one.devices, request.devices)]
            groups[group] = MessageContext({"narrow": narrow, "wide": wide}, {"devices": mine})
        return MessageContext({"C": self.federation.num_classes}, groups=groups)

    def collect(self, sent: SentRound, replies: Iterable[wire.SecureRoundReply]) -> Iterable[wire.RoundReply]:
        """Stage 4: the sums, as if one node had hosted all devices, user group by user group."""
        record, exchange = self.records[-1], self._exchange
        counts = replace(RoundCounts.nothing(self.federation.num_classes), clock=self._clock)
        sums: dict[int, MaskWords] = {}
        survived = {group: np.zeros(len(one.devices), np.bool_) for group, one in exchange.groups.items()}
        for reply in replies:
            exchange.device_s += reply.protocol_s
            counts = replace(
                counts,
                classes=counts.classes + reply.classes,
                clock=counts.clock + reply.clock,
                slowest_us=max(counts.slowest_us, reply.slowest_us),
            )
            for group, masked in reply.groups.items():
                survived[group][np.searchsorted(exchange.groups[group].devices, masked.devices)] = True
                words = MaskWords(masked.narrow, masked.wide)
                sums[group] = sums[group] + words if group in sums else words
        whole = [group for group, one in exchange.groups.items() if one.why_void(survived[group]) is None]
        shares = exchange.unmask(whole, survived)
        self.opened = opened = dict[int, OpenedSum]()
        for group, one in exchange.groups.items():
            start = time.perf_counter()
            layout, there = self._vector_layout(one, sent), survived[group]
            self._count(record, one, there, layout)
            parts = [MaskedPart(sums.pop(group), layout)] if group in sums else []

            def finish(_: int, values: Values, group: int = group) -> tuple[Values, wire.Arrays]:
                counters: Values = {name: values.pop(name) for name in ("classes", "clock", "totals") if name in values}
                content, known = sparse(values), self._right.get(group)
                if known is not None:
                    arrays = {name: of for name, of in (known.arrays or {}).items() if not name.startswith("wide_")}
                    known = replace(known.with_sizes(**{TOTAL: MOST}), arrays=arrays)
                    ArrayChecker.from_context(known).group(content, "the devices' vectors")
                return counters, content

            try:
                ((counters, content),) = exchange.opened(group, there, shares.get(group, []), parts, finish)
            except VoidSumError as error:
                record.void_groups += 1
                record.void_devices += int(there.sum())
                record.why_void[group] = str(error)
                logger.warning("round %d, user group %d is void: %s", record.server_round, group, error)
                continue
            record.devices += int(there.sum())
            record.recovered += int((one.shared & ~there).sum())
            counts = _with_counters(counts, counters)
            opened[group] = OpenedSum(len(one.devices), int(there.sum()))
            exchange.server_s += time.perf_counter() - start
            yield wire.RoundReply({group: content}, RoundCounts.nothing(self.federation.num_classes))
        self._right.clear()
        record.device_s, record.server_s = exchange.device_s, exchange.server_s
        yield wire.RoundReply({}, counts)

    def _count(self, record: SecureRecord, one: SecureGroup, survived: BoolArray, layout: VectorLayout) -> None:
        record.dropped += len(survived) - int(survived.sum())
        moved = DeviceBytes.from_sizes(one.neighbours.shape[1], layout.num_bytes)
        shared = int(one.shared.sum())
        record.shared += shared
        record.vector_bytes += shared * moved.vector
        record.download_bytes += shared * moved.download
        record.upload_bytes += shared * moved.upload

    def _vector_layout(self, one: SecureGroup, sent: SentRound) -> VectorLayout:
        blocks = sent.blocks.get(one.group, np.zeros(0, np.int64))
        return layout_of(
            self._scenario,
            num_devices=len(one.devices),
            group=GroupShape.from_blocks(self.federation.layout, blocks),
            num_classes=self.federation.num_classes,
            signals=sent.signals,
        )


def _with_counters(counts: RoundCounts, counters: Values) -> RoundCounts:
    """Return the counts with those counters that were words of a user group's vectors, if any were."""
    if not counters:
        return counts
    return replace(
        counts,
        classes=counts.classes + ClassCounts.unstacked(counters["classes"]),
        clock=counts.clock + ClockCounts.unstacked(counters["clock"]),
        totals=counts.totals + RoundTotals.unstacked(counters["totals"]),
    )
