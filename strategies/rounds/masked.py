"""The server's side of secure aggregation: it brings devices together, adds up what it cannot read, opens the sum.

A round takes four exchanges with every node: keys, sealed shares, masked vectors, opened shares. Where few owners open
nothing (:mod:`fl_peel.exchange.release`), it takes four more before these, for their count, and the devices of the
round are those that counted. A node that does not answer one of them has dropped out with all of its devices. A user
group too few devices of which last out is void: its table stays as it is, and the report says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, MessageContext
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts, RoundTotals
from fl_peel.exchange.release import (
    OWNER_ARRAYS,
    GroupShape,
    layout_of,
    owners_bytes,
    owners_layout,
    spare_devices,
    sparse,
)
from fl_peel.secure.device_protocol import DeviceBytes
from fl_peel.secure.keys import exchange_number
from fl_peel.secure.vector import MaskWords, Values, VectorLayout
from fl_peel.steps.base import opened_rows, packed_rows
from strategies.nodes import NodeRequest
from strategies.rounds.federation import (
    Expects,
    Federation,
    OpenedSum,
    Request,
    Requests,
    RoundDevices,
    SecureRecord,
    SentRound,
    ServerChannel,
)
from strategies.rounds.masked_exchange import (
    BoolArray,
    IntArray,
    MaskedExchange,
    MaskedPart,
    SecureGroup,
    Sum,
    Suspects,
    VoidSumError,
    drawn_devices,
)

logger = logging.getLogger("fl_peel")


class MaskedServerChannel(ServerChannel):
    """Secure aggregation. ``records``: one a round; ``opened``: the last round's sums by user group."""

    kind = wire.SECURE_ROUND

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._scenario, self._setting, self._nodes = federation.scenario, federation.setting, federation.nodes
        self._counts_owners = federation.scenario.counts_owners
        self._suspects = Suspects(self._scenario.secure_aggregation.min_devices)
        # who spoils rounds may count honestly: a search of its own, for the same devices to be left out
        self._count_suspects = Suspects(
            self._suspects.least, devices=self._suspects.devices, nodes=self._suspects.nodes
        )
        self._exchange = self._new_exchange(0)
        self._right: dict[int, MessageContext | None] = {}
        self._counts = RoundCounts.nothing(federation.num_classes)
        self._opened_rows: dict[int, BoolArray] = {}

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Run stages 1 and 2: of the sampled devices, those that shared their secrets may be asked for vectors."""
        asked = drawn_devices(self._scenario, server_round, cohort, self.federation.members.groups_of(cohort))
        record = SecureRecord(server_round)
        self.records.append(record)
        self._counts = RoundCounts.nothing(self.federation.num_classes)
        self._opened_rows = {}
        ready, clock = self._settled(server_round, asked, counts=self._counts_owners)
        self._counts = replace(self._counts, clock=clock)
        record.groups, record.sat_out_groups = len(self._exchange.groups), self._exchange.sat_out
        record.announced = sum(len(one.devices) for one in self._exchange.groups.values())
        return RoundDevices(asked, ready)

    def counted(self, sent: SentRound, ready: IntArray, requests: Requests) -> IntArray:
        """Run stages 3 and 4 of the count of owners, and the first two of the round with the devices that counted."""
        if not self._counts_owners:
            return ready
        record, server_round, least = self.records[-1], self.records[-1].server_round, self._scenario.privacy.min_owners

        def replies() -> Iterator[wire.SecureRoundReply]:
            for request in requests(ready):

                def content(partition: int, request: Request = request) -> NodeRequest | None:
                    plain = request(partition)
                    if plain is None:
                        return None
                    known = self._known(plain, {group: self._owners_layout(group, sent) for group in plain.groups})
                    return NodeRequest(self.message(plain), known)

                yield from self._nodes.ask_some(wire.SECURE_OWNERS, content).values()

        def finish(group: int, survivors: int, values: Values) -> Values:
            shape = self._shape(group, sent)
            sizes = {"R": shape.rows, "S": shape.slices, "N": survivors}
            ArrayChecker.from_context(MessageContext(sizes, arrays=OWNER_ARRAYS)).group(values, "the devices' counts")
            return values

        counted = list(self._sums(replies(), partial(self._owners_layout, sent=sent), finish))
        left = np.sort(np.concatenate([ready[:0], *(devices for _, devices, _ in counted)]))
        spare = {
            group: spare_devices(int(self._exchange.groups[group].shared.sum()) - len(devices))
            for group, devices, _ in counted
        }
        ready, _ = self._settled(server_round, left, counts=False)
        for group, devices, counts in counted:
            one = self._exchange.groups.get(group)
            if one is None:
                continue
            shared = int(one.shared.sum())
            # whoever was lost since, and who may yet be, is taken to own every row
            lost = len(devices) - shared + spare[group]
            self._exchange.groups[group] = replace(one, quorum=max(one.quorum, shared - spare[group]))
            self._opened_rows[group] = opened = opened_rows(counts["owners"], least + lost)
            owned = (counts["owners"] > 0).any(axis=1)
            record.owned_rows += int(owned.sum())
            record.few_owner_rows += int((owned & ~opened.any(axis=1)).sum())
        record.sat_out_groups += self._exchange.sat_out
        record.dropped += len(left) - self._exchange.announced
        return ready

    def _settled(self, server_round: int, devices: IntArray, *, counts: bool) -> tuple[IntArray, ClockCounts]:
        """Begin an exchange: return its devices that shared their secrets, and what is known of all that were asked."""
        self._exchange = exchange = self._new_exchange(server_round, counts=counts)
        replies, clock = self._announced(server_round, devices, counts=counts)
        if not self._counts_owners:
            exchange.settle(replies)
        else:  # whoever sits out of a round does so from its count on
            exchange.settle(replies, (self._count_suspects, self._suspects) if counts else ())
        exchange.share()
        ready = [one.devices[one.shared] for one in exchange.groups.values()]
        return np.sort(np.concatenate(ready)) if ready else devices[:0], clock

    def _new_exchange(self, server_round: int, *, counts: bool = False) -> MaskedExchange:
        number = exchange_number(server_round, counts=counts)
        suspects = self._count_suspects if counts else self._suspects
        return MaskedExchange(self._scenario, self._setting, self._nodes, number, suspects)

    def _announced(
        self, server_round: int, devices: IntArray, *, counts: bool
    ) -> tuple[list[wire.SecureKeysReply], ClockCounts]:
        """Stage 1: devices that are reached announce their keys."""
        members = self.federation.members

        def keys(partition: int) -> NodeRequest | None:
            mine = devices[self._nodes.partitions_of(devices) == partition]
            known = MessageContext(
                {"C": self.federation.num_classes, "first group": 0, "last group": len(self.federation.states) - 1},
                {"devices": mine},
                totals={"clock.sampled": len(mine)},
            )
            request = wire.SecureKeysRequest(self._setting, server_round, mine, counts)
            return NodeRequest(request, known) if len(mine) else None

        announced = self._nodes.ask_some(wire.SECURE_KEYS, keys).values() if len(devices) else ()
        # nobody announces keys in another group than it joined
        replies = [reply for reply in announced if (members.groups_of(reply.devices) == reply.groups).all()]
        clock = ClockCounts.zeros(self.federation.num_classes)
        for reply in replies:
            clock += reply.clock
        return replies, clock

    def message(self, request: wire.RoundRequest) -> wire.SecureRoundRequest:
        """Stage 3: a round's request with what the devices' neighbours sealed for them; of single devices nothing."""
        secure = {}
        for group in request.groups:
            one = self._exchange.groups[group]
            secure[group] = one.inbox(one.shared & np.isin(one.devices, request.devices))
            if group in self._opened_rows:
                secure[group] = replace(secure[group], opened=packed_rows(self._opened_rows[group].reshape(-1)))
        fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
        return wire.SecureRoundRequest(**(fields | {"traced": request.traced[:0]}), secure=secure)

    def known(self, sent: SentRound, request: wire.RoundRequest, expects: Expects) -> MessageContext:
        """Return which devices may be in a sum, and how many words it has."""
        for group in request.groups:
            self._right[group] = expects(sent, group, len(self._exchange.groups[group].devices))
        return self._known(request, {group: self._vector_layout(group, sent) for group in request.groups})

    def _known(self, request: wire.RoundRequest, layouts: Mapping[int, VectorLayout]) -> MessageContext:
        """Return the same of vectors laid out in this way."""
        groups = {}
        for group, layout in layouts.items():
            one = self._exchange.groups[group]
            narrow, wide = layout.num_words
            mine = one.devices[one.shared & np.isin(one.devices, request.devices)]
            groups[group] = MessageContext({"narrow": narrow, "wide": wide}, {"devices": mine})
        return MessageContext({"C": self.federation.num_classes}, groups=groups)

    def collect(self, sent: SentRound, replies: Iterable[wire.SecureRoundReply]) -> Iterable[wire.RoundReply]:
        """Stage 4: the sums, as if one node had hosted all devices, user group by user group."""
        record = self.records[-1]
        for one in self._exchange.groups.values():
            self._count_bytes(record, one, sent)
        self.opened = opened = dict[int, OpenedSum]()

        def finish(group: int, survivors: int, values: Values) -> tuple[Values, wire.Arrays]:
            counters: Values = {name: values.pop(name) for name in ("classes", "clock", "totals") if name in values}
            content, known = sparse(values), self._right.get(group)
            if known is not None:
                arrays = {name: of for name, of in (known.arrays or {}).items() if not name.startswith("wide_")}
                known = replace(known.with_sizes(**{TOTAL: MOST}), arrays=arrays)
                ArrayChecker.from_context(known).group(content, "the devices' vectors")
            return counters, content

        for group, devices, (counters, content) in self._sums(replies, partial(self._vector_layout, sent=sent), finish):
            record.devices += len(devices)
            self._counts = _with_counters(self._counts, counters)
            opened[group] = OpenedSum(len(self._exchange.groups[group].devices), len(devices))
            yield wire.RoundReply({group: content}, RoundCounts.nothing(self.federation.num_classes))
        self._right.clear()
        yield wire.RoundReply({}, self._counts)

    def _sums(
        self,
        replies: Iterable[wire.SecureRoundReply],
        layout: Callable[[int], VectorLayout],
        finish: Callable[[int, int, Values], Sum],
    ) -> Iterator[tuple[int, IntArray, Sum]]:
        """Yield each user group whose sum is right, the devices in it, and what ``finish`` makes of the group, their
        number, and the sum. layout: of a user group's vector.
        """
        record, exchange = self.records[-1], self._exchange
        sums: dict[int, MaskWords] = {}
        survived = {group: np.zeros(len(one.devices), np.bool_) for group, one in exchange.groups.items()}
        for reply in replies:
            exchange.device_s += reply.protocol_s
            self._counts = replace(
                self._counts,
                classes=self._counts.classes + reply.classes,
                clock=self._counts.clock + reply.clock,
                slowest_us=max(self._counts.slowest_us, reply.slowest_us),
            )
            for group, masked in reply.groups.items():
                survived[group][np.searchsorted(exchange.groups[group].devices, masked.devices)] = True
                words = MaskWords(masked.narrow, masked.wide)
                sums[group] = sums[group] + words if group in sums else words
        whole = [group for group, one in exchange.groups.items() if one.why_void(survived[group]) is None]
        shares = exchange.unmask(whole, survived)
        for group, one in exchange.groups.items():
            start, there = time.perf_counter(), survived[group]
            record.dropped += len(there) - int(there.sum())
            parts = [MaskedPart(sums.pop(group), layout(group))] if group in sums else []
            done = partial(_finished, finish, group, int(there.sum()))
            try:
                (content,) = exchange.opened(group, there, shares.get(group, []), parts, done)
            except VoidSumError as error:
                record.void_groups += 1
                record.void_devices += int(there.sum())
                record.why_void[group] = str(error)
                logger.warning("round %d, user group %d is void: %s", record.server_round, group, error)
                continue
            record.recovered += int((one.shared & ~there).sum())
            exchange.server_s += time.perf_counter() - start
            yield group, one.devices[there], content
        record.device_s, record.server_s = record.device_s + exchange.device_s, record.server_s + exchange.server_s

    def _count_bytes(self, record: SecureRecord, one: SecureGroup, sent: SentRound) -> None:
        """Count what the protocol takes of the devices of a user group that share their secrets."""
        moved = DeviceBytes.from_sizes(one.neighbours.shape[1], self._vector_layout(one.group, sent).num_bytes)
        if self._counts_owners:
            layout = self._owners_layout(one.group, sent)
            moved += owners_bytes(one.neighbours.shape[1], self._shape(one.group, sent), layout)
        shared = int(one.shared.sum())
        record.shared += shared
        record.vector_bytes += shared * moved.vector
        record.download_bytes += shared * moved.download
        record.upload_bytes += shared * moved.upload

    def _shape(self, group: int, sent: SentRound) -> GroupShape:
        return GroupShape.from_blocks(self.federation.layout, sent.blocks.get(group, np.zeros(0, np.int64)))

    def _owners_layout(self, group: int, sent: SentRound) -> VectorLayout:
        devices = len(self._exchange.groups[group].devices)
        return owners_layout(self._shape(group, sent), num_devices=devices)

    def _vector_layout(self, group: int, sent: SentRound) -> VectorLayout:
        return layout_of(
            self._scenario,
            num_devices=len(self._exchange.groups[group].devices),
            group=self._shape(group, sent),
            num_classes=self.federation.num_classes,
            signals=sent.signals,
        )


def _finished(finish: Callable[[int, int, Values], Sum], group: int, survivors: int, part: int, values: Values) -> Sum:
    """Return what is made of the one part of a sum."""
    return finish(group, survivors, values)


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
