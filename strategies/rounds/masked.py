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
from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, MessageContext
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts, RoundTotals
from fl_peel.exchange.release import layout_of, sparse
from fl_peel.secure.device_protocol import DeviceBytes
from fl_peel.secure.vector import MaskWords, Values, VectorLayout
from fl_peel.steps.base import opened_rows
from strategies.nodes import NodeRequest
from strategies.rounds.channel import Expects, OpenedSum, RoundDevices, ServerChannel
from strategies.rounds.federation import Federation, SecureRecord, SentRound
from strategies.rounds.masked_exchange import (
    BoolArray,
    IntArray,
    MaskedExchange,
    MaskedPart,
    SecureGroup,
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

        announced = self._nodes.ask_some(wire.SECURE_KEYS, keys).values()
        # nobody announces keys in another group than it joined
        replies = [reply for reply in announced if (members.groups_of(reply.devices) == reply.groups).all()]
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
            self._count_owners(record, content)
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

    def _count_owners(self, record: SecureRecord, content: wire.Arrays) -> None:
        """Count the rows of which a sum tells that devices have the item: each learns from it in every epoch."""
        if "row_examples" in content:
            owners = content["row_examples"] // self._scenario.refinement.local.epochs
            owners = owners[owners > 0]
            record.owned_rows += len(owners)
            record.few_owner_rows += int((~opened_rows(owners, self._scenario.privacy.min_owners)).sum())

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
