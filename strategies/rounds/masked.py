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
from typing import TypeVar

import numpy as np

from fl_peel import wire
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.array_specs import MessageContext
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts, RoundTotals
from fl_peel.exchange.open_sums import sparse
from fl_peel.exchange.release import layout_of
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.protocol_plan import DeviceBytes
from fl_peel.secure.unmask import without
from fl_peel.secure.vector import CHECK, Values, VectorLayout
from strategies.nodes.nodes import Content, NodeRequest
from strategies.rounds.channel import Expects, OpenedSum, RoundDevices, ServerChannel
from strategies.rounds.federation import Federation
from strategies.rounds.masked_group import AnnouncedKeys, BoolArray, IntArray, SecureGroup, drawn_devices
from strategies.rounds.record import SecureRecord, SentRound

logger = logging.getLogger("fl_peel")
Reply = TypeVar("Reply")


class MaskedServerChannel(ServerChannel):
    """Secure aggregation. ``records``: one a round; ``opened``: the last round's sums by user group."""

    kind = wire.SECURE_ROUND
    answer = wire.SecureRoundReply

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._scenario, self._setting, self._nodes = federation.scenario, federation.setting, federation.nodes
        self._groups: dict[int, SecureGroup] = {}
        self._clock = ClockCounts.zeros(federation.num_classes)

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Run stages 1 and 2: of the sampled devices, those that shared their secrets may be asked for vectors."""
        asked = drawn_devices(self._scenario, server_round, cohort, self.federation.members.groups_of(cohort))
        record = SecureRecord(server_round)
        self.records.append(record)
        self._announce(record, asked)

        def shares(partition: int) -> NodeRequest | None:
            here = {group: self._hosted(one, partition) for group, one in self._groups.items()}
            groups = {group: self._groups[group].directory(mine) for group, mine in here.items() if mine.any()}
            known = {group: self._groups[group].known(group_of.devices) for group, group_of in groups.items()}
            request = wire.SecureSharesRequest(self._setting, server_round, groups)
            return NodeRequest(request, MessageContext(groups=known)) if groups else None

        shared = self._ask(wire.SECURE_SHARES, wire.SecureSharesReply, shares)
        record.device_s += sum(reply.protocol_s for reply in shared)
        for group, one in self._groups.items():
            self._groups[group] = one.with_shares(reply.groups[group] for reply in shared if group in reply.groups)
        ready = [one.devices[one.shared] for one in self._groups.values()]
        return RoundDevices(asked, np.sort(np.concatenate(ready)) if ready else asked[:0])

    def _announce(self, record: SecureRecord, devices: IntArray) -> None:
        """Stage 1: devices that are reached announce their keys; user groups with too few of them sit out."""

        members = self.federation.members

        def keys(partition: int) -> NodeRequest | None:
            mine = devices[self._nodes.partitions_of(devices) == partition]
            known = MessageContext(
                {"C": self.federation.num_classes, "first group": 0, "last group": len(self.federation.states) - 1},
                {"devices": mine},
                totals={"clock.sampled": len(mine)},
            )
            return (
                NodeRequest(wire.SecureKeysRequest(self._setting, record.server_round, mine), known)
                if len(mine)
                else None
            )

        replies = self._ask(wire.SECURE_KEYS, wire.SecureKeysReply, keys)
        # nobody announces keys in another group than it joined
        replies = [reply for reply in replies if (members.groups_of(reply.devices) == reply.groups).all()]
        record.device_s += sum(reply.protocol_s for reply in replies)
        self._clock = ClockCounts.zeros(self.federation.num_classes)
        for reply in replies:
            self._clock += reply.clock
        self._groups = {}
        start = time.perf_counter()
        for group, announced in _by_group(replies).items():
            if len(announced.devices) < self._scenario.secure_aggregation.min_devices:
                record.sat_out_groups += 1
                continue
            self._groups[group] = SecureGroup.from_keys(self._scenario, record.server_round, group, announced)
            record.announced += len(announced.devices)
        record.groups = len(self._groups)
        record.server_s += time.perf_counter() - start

    def message(self, request: wire.RoundRequest) -> wire.SecureRoundRequest:
        """Stage 3: a round's request with what the devices' neighbours sealed for them; of single devices nothing."""
        secure = {}
        for group in request.groups:
            one = self._groups[group]
            secure[group] = one.inbox(one.shared & np.isin(one.devices, request.devices))
        fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
        return wire.SecureRoundRequest(**(fields | {"traced": request.traced[:0]}), secure=secure)

    def known(self, sent: SentRound, request: wire.RoundRequest, expects: Expects) -> MessageContext:
        """Return which devices may be in a sum, and how many words it has."""
        groups = {}
        for group in request.groups:
            one = self._groups[group]
            narrow, wide = self._vector_layout(one, sent).num_words
            mine = one.devices[one.shared & np.isin(one.devices, request.devices)]
            groups[group] = MessageContext({"narrow": narrow, "wide": wide}, {"devices": mine})
        return MessageContext({"C": self.federation.num_classes}, groups=groups)

    def collect(self, sent: SentRound, replies: Iterable[wire.SecureRoundReply]) -> Iterable[wire.RoundReply]:
        """Stage 4: the sums, as if one node had hosted all devices, user group by user group."""
        record = self.records[-1]
        counts = replace(RoundCounts.nothing(self.federation.num_classes), clock=self._clock)
        sums: dict[int, MaskWords] = {}
        survived = {group: np.zeros(len(one.devices), np.bool_) for group, one in self._groups.items()}
        for reply in replies:
            record.device_s += reply.protocol_s
            counts = replace(
                counts,
                classes=counts.classes + reply.classes,
                clock=counts.clock + reply.clock,
                slowest_us=max(counts.slowest_us, reply.slowest_us),
            )
            for group, masked in reply.groups.items():
                survived[group][np.searchsorted(self._groups[group].devices, masked.devices)] = True
                words = MaskWords(masked.narrow, masked.wide)
                sums[group] = sums[group] + words if group in sums else words
        whole = {
            group: one
            for group, one in self._groups.items()
            if not self._void(record, group, one.why_void(survived[group]))
        }
        replied = self._opened(record, whole, survived)
        self.opened = opened = dict[int, OpenedSum]()
        for group, one in self._groups.items():
            start = time.perf_counter()
            layout = self._vector_layout(one, sent)
            self._count(record, one, survived[group], layout)
            if group not in whole:
                continue
            contents = [reply.groups[group] for reply in replied if group in reply.groups]
            answered = np.isin(one.devices, [device for content in contents for device in content.devices])
            if self._void(record, group, one.why_void(survived[group], answered)):
                record.void_devices += int(survived[group].sum())
                continue
            try:
                values = self._values(one, sent, survived[group], sums.pop(group), contents)
            except SecureAggregationError as error:
                self._void(record, group, str(error))
                record.void_devices += int(survived[group].sum())
                continue
            record.devices += int(survived[group].sum())
            record.recovered += int((one.shared & ~survived[group]).sum())
            counts = _with_counters(counts, values)
            opened[group] = OpenedSum(len(one.devices), int(survived[group].sum()))
            record.server_s += time.perf_counter() - start
            yield wire.RoundReply({group: sparse(values)}, RoundCounts.nothing(self.federation.num_classes))
        yield wire.RoundReply({}, counts)

    def _values(
        self,
        one: SecureGroup,
        sent: SentRound,
        survived: BoolArray,
        total: MaskWords,
        opened: list[wire.OpenedShares],
    ) -> Values:
        """Return what the vectors of the devices that survived (M,) add up to; ``total`` is their masked sum.

        Raises:
            SecureAggregationError: the shares that were opened are not those of the masks in the sum.
        """
        if self._scenario.secure_aggregation.masked:
            total = without(total, one.masks_left(sent.server_round, survived, opened))
        values = self._vector_layout(one, sent).values(total)
        if values.pop(CHECK).tolist() != [survived.sum()]:
            raise SecureAggregationError(
                "masks are left in the sum; a device masked its vector with other keys than it announced"
            )
        return values

    def _opened(
        self, record: SecureRecord, whole: dict[int, SecureGroup], survived: dict[int, BoolArray]
    ) -> list[wire.SecureUnmaskReply]:
        """Ask the survivors of the groups that are not void for shares; everybody forgets the round."""

        def questions(partition: int) -> NodeRequest | None:
            if not any(self._hosted(one, partition).any() for one in self._groups.values()):
                return None
            groups = {
                group: one.questions(here, survived[group])
                for group, one in whole.items()
                if (here := self._hosted(one, partition) & survived[group]).any()
            }
            known = {group: whole[group].known(asked.devices) for group, asked in groups.items()}
            request = wire.SecureUnmaskRequest(self._setting, record.server_round, groups)
            return NodeRequest(request, MessageContext(groups=known))

        replies = self._ask(wire.SECURE_UNMASK, wire.SecureUnmaskReply, questions)
        record.device_s += sum(reply.protocol_s for reply in replies)
        return replies

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

    def _hosted(self, one: SecureGroup, partition: int) -> BoolArray:
        """Return which of a group's devices (M,) the node of a partition hosts."""
        return np.asarray(self._nodes.partitions_of(one.devices) == partition)

    def _ask(self, kind: str, reply_type: type[Reply], content: Content) -> list[Reply]:
        """Ask nodes; those that fail or are silent have dropped out."""
        return list(self._nodes.ask_some(kind, reply_type, content).values())


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


def _by_group(replies: list[wire.SecureKeysReply]) -> dict[int, AnnouncedKeys]:
    """Announced keys of each user group, devices ascending."""
    if not replies:
        return {}
    devices = np.concatenate([reply.devices for reply in replies])
    order = np.argsort(devices, kind="stable")
    channel, mask, groups = (
        np.concatenate([getattr(reply, name) for reply in replies])[order]
        for name in ("channel_keys", "mask_keys", "groups")
    )
    return {
        group: AnnouncedKeys(devices[order][groups == group], channel[groups == group], mask[groups == group])
        for group in np.unique(groups).tolist()
    }


__all__ = ["MaskedServerChannel", "Values"]
