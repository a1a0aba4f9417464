"""The server's side of secure aggregation: it brings devices together, adds up what it cannot read, opens the sum.

A round takes four exchanges with every node: keys, sealed shares, masked vectors, opened shares. A node that does not
answer one of them has dropped out with all of its devices. A user group too few devices of which last out is void: its
table stays as it is, and the report says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts, RoundTotals
from fl_peel.exchange.open_sums import sparse
from fl_peel.exchange.release import layout_of
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.protocol_plan import DeviceBytes
from fl_peel.secure.vector import Values, VectorLayout
from strategies.nodes.nodes import NodeRequest
from strategies.rounds.channel import Expects, OpenedSum, RoundDevices, ServerChannel
from strategies.rounds.federation import Federation
from strategies.rounds.masked_exchange import MaskedExchange, unmasked
from strategies.rounds.masked_group import BoolArray, IntArray, SecureGroup, drawn_devices
from strategies.rounds.record import SecureRecord, SentRound

logger = logging.getLogger("fl_peel")


class MaskedServerChannel(ServerChannel):
    """Secure aggregation. ``records``: one a round; ``opened``: the last round's sums by user group."""

    kind = wire.SECURE_ROUND
    answer = wire.SecureRoundReply

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._scenario, self._setting, self._nodes = federation.scenario, federation.setting, federation.nodes
        self._exchange = MaskedExchange(self._scenario, self._setting, self._nodes, 0)
        self._clock = ClockCounts.zeros(federation.num_classes)

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Run stages 1 and 2: of the sampled devices, those that shared their secrets may be asked for vectors."""
        asked = drawn_devices(self._scenario, server_round, cohort, self.federation.members.groups_of(cohort))
        record = SecureRecord(server_round)
        self.records.append(record)
        self._exchange = exchange = MaskedExchange(self._scenario, self._setting, self._nodes, server_round)
        exchange.settle(self._announced(server_round, asked))
        record.groups, record.sat_out_groups = len(exchange.groups), exchange.sat_out
        record.announced = sum(len(one.devices) for one in exchange.groups.values())
        exchange.share()
        ready = [one.devices[one.shared] for one in exchange.groups.values()]
        return RoundDevices(asked, np.sort(np.concatenate(ready)) if ready else asked[:0])

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
        whole = [
            group
            for group, one in exchange.groups.items()
            if not self._void(record, group, one.why_void(survived[group]))
        ]
        shares = exchange.unmask(whole, survived)
        self.opened = opened = dict[int, OpenedSum]()
        for group, one in exchange.groups.items():
            start = time.perf_counter()
            layout, there = self._vector_layout(one, sent), survived[group]
            self._count(record, one, there, layout)
            if group not in whole:
                continue
            if self._void(record, group, exchange.why_void(one, there, shares[group])):
                record.void_devices += int(there.sum())
                continue
            try:
                values = unmasked(sums.pop(group), exchange.masks_left(one, there, shares[group]), layout, there)
            except SecureAggregationError as error:
                self._void(record, group, str(error))
                record.void_devices += int(there.sum())
                continue
            record.devices += int(there.sum())
            record.recovered += int((one.shared & ~there).sum())
            counts = _with_counters(counts, values)
            opened[group] = OpenedSum(len(one.devices), int(there.sum()))
            exchange.server_s += time.perf_counter() - start
            yield wire.RoundReply({group: sparse(values)}, RoundCounts.nothing(self.federation.num_classes))
        record.device_s, record.server_s = exchange.device_s, exchange.server_s
        yield wire.RoundReply({}, counts)

    def _void(self, record: SecureRecord, group: int, why: str | None) -> bool:
        if why is not None:
            record.void_groups += 1
            record.why_void[group] = why
            logger.warning("round %d, user group %d is void: %s", record.server_round, group, why)
        return why is not None

    def _count(self, record: SecureRecord, one: SecureGroup, survived: BoolArray, layout: VectorLayout) -> None:
        record.dropped += len(survived) - int(survived.sum())
        if one.group in record.why_void:
            record.void_devices += int(survived.sum())
        moved = DeviceBytes.from_sizes(one.neighbours.shape[1], layout.num_bytes)
        shared = int(one.shared.sum())
        record.shared += shared
        record.vector_bytes += shared * moved.vector
        record.download_bytes += shared * moved.download
        record.upload_bytes += shared * moved.upload

    def _vector_layout(self, one: SecureGroup, sent: SentRound) -> VectorLayout:
        layout = self.federation.layout
        blocks = sent.blocks.get(one.group, np.zeros(0, np.int64))
        rows = len(RowOrder.from_blocks(layout, blocks).items)
        return layout_of(
            self._scenario,
            num_devices=len(one.devices),
            group=GroupShape(rows, layout.num_slices, layout.embedding_dim, len(blocks)),
            num_classes=self.federation.num_classes,
            signals=sent.signals,
        )


def _with_counters(counts: RoundCounts, values: Values) -> RoundCounts:
    """Return the counts with those counters that were words of a user group's vectors; they are removed from
    ``values``.
    """
    if "classes" not in values:
        return counts
    return replace(
        counts,
        classes=counts.classes + ClassCounts.unstacked(values.pop("classes")),
        clock=counts.clock + ClockCounts.unstacked(values.pop("clock")),
        totals=counts.totals + RoundTotals.unstacked(values.pop("totals")),
    )


__all__ = ["MaskedServerChannel"]
