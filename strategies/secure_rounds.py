"""The server's side of secure aggregation: it brings devices together, adds up what it cannot read, opens the sum.

A round takes four exchanges with every node: keys, sealed shares, masked vectors, opened shares. A node that does not
answer one of them has dropped out with all of its devices. A user group too few devices of which last out is void: its
table stays as it is, and the report says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks import BlockLayout
from fl_peel.config import Scenario
from fl_peel.errors import ScenarioError, SecureAggregationError
from fl_peel.secure.keys import Occasion
from fl_peel.secure.masks import Words
from fl_peel.secure.plan import DeviceBytes, layout_of
from fl_peel.secure.unmask import Masked, added, unmask
from fl_peel.secure.vector import CHECK, Values, VectorLayout, sparse
from fl_peel.selection import RowOrder
from strategies.nodes import Nodes, failure
from strategies.secure_groups import BoolArray, IntArray, SecureGroup, drawn_devices

logger = logging.getLogger("fl_peel")
Reply = TypeVar("Reply")


@dataclass
class SecureRecord:
    """What the protocol did in a round. Devices: that announced keys in groups that did not sit out; that are in a sum;
    that dropped out; that dropped out after they had shared their secrets, and whose masks were recovered; that sent
    their vector in vain, in a group that is void. Bytes are sums over the devices that shared their secrets.
    """

    server_round: int
    groups: int = 0
    sat_out_groups: int = 0
    void_groups: int = 0
    announced: int = 0
    devices: int = 0
    dropped: int = 0
    recovered: int = 0
    void_devices: int = 0
    shared: int = 0
    vector_bytes: int = 0
    download_bytes: int = 0
    upload_bytes: int = 0
    device_s: float = 0.0
    server_s: float = 0.0
    why_void: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenedSum:
    """Of a user group: devices that announced keys, and those that the sum is over."""

    announced: int
    survivors: int


class SecureRounds:
    """The rounds of one refinement. ``records``: one a round; ``opened``: the last round's sums by user group."""

    def __init__(
        self, scenario: Scenario, setting: wire.Setting, layout: BlockLayout, num_classes: int, nodes: Nodes
    ) -> None:
        self.records: list[SecureRecord] = []
        self._scenario = scenario
        self._setting = (setting.scenario, setting.data_dir, setting.run_dir)
        self._layout = layout
        self._num_classes = num_classes
        self._nodes = nodes
        self.opened: dict[int, OpenedSum] = {}
        self._groups: dict[int, SecureGroup] = {}
        self._clock = self._no_sums(wire.ClockColumn)
        self._signals = False

    def drawn(self, server_round: int, cohort: IntArray, groups: NDArray[np.int32]) -> IntArray:
        """The devices of a cohort (N,) that go through the protocol."""
        return drawn_devices(self._scenario, server_round, cohort, groups)

    def begin(self, server_round: int, devices: IntArray) -> IntArray:
        """Stages 1 and 2: the devices that shared their secrets, ascending; they may be asked for their vectors."""
        record = SecureRecord(server_round)
        self.records.append(record)
        part = self._scenario.secure_aggregation

        def keys(partition: int) -> wire.SecureKeysRequest | None:
            mine = devices[devices % len(self._nodes.ids) == partition]
            return wire.SecureKeysRequest(*self._setting, server_round, mine) if len(mine) else None

        replies = self._ask(wire.SECURE_KEYS, wire.SecureKeysReply, keys)
        record.device_s += sum(reply.protocol_s for reply in replies)
        self._clock = self._no_sums(wire.ClockColumn) + sum(reply.clock for reply in replies)
        self._groups = {}
        start = time.perf_counter()
        for group, found in _by_group(replies).items():
            if len(found["devices"]) < part.min_devices:
                record.sat_out_groups += 1
                continue
            self._groups[group] = SecureGroup.of(self._scenario, server_round, group, found)
            record.announced += len(found["devices"])
        record.groups = len(self._groups)
        record.server_s += time.perf_counter() - start

        def shares(partition: int) -> wire.SecureSharesRequest | None:
            groups = {
                group: one.directory(here)
                for group, one in self._groups.items()
                if (here := self._hosted(one, partition)).any()
            }
            return wire.SecureSharesRequest(*self._setting, server_round, groups) if groups else None

        shared = self._ask(wire.SECURE_SHARES, wire.SecureSharesReply, shares)
        record.device_s += sum(reply.protocol_s for reply in shared)
        for group, one in self._groups.items():
            self._groups[group] = one.with_shares(reply.groups[group] for reply in shared if group in reply.groups)
        ready = [one.devices[one.shared] for one in self._groups.values()]
        return np.sort(np.concatenate(ready)) if ready else devices[:0]

    def request(self, base: wire.RoundRequest) -> wire.SecureRoundRequest:
        """Stage 3: a round's request with what the devices' neighbours sealed for them."""
        self._signals = base.signals
        fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
        fields["traced"] = base.traced[:0]  # nothing of a single device
        secure = {}
        for group in base.groups:
            one = self._groups[group]
            secure[group] = one.inbox(one.shared & np.isin(one.devices, base.devices))
        return wire.SecureRoundRequest(**fields, secure=secure)

    def end(
        self, server_round: int, replies: Iterable[wire.SecureRoundReply], sent: dict[int, IntArray]
    ) -> Iterable[wire.RoundReply]:
        """Stage 4: the sums, as if one node had hosted all devices. sent: ranked blocks (K,) of each user group."""
        record = self.records[-1]
        classes, clock, slowest_us = self._no_sums(wire.ClassColumn), self._clock.copy(), 0
        vectors: dict[int, list[Words]] = {group: [] for group in self._groups}
        survived = {group: np.zeros(len(one.devices), np.bool_) for group, one in self._groups.items()}
        for reply in replies:
            record.device_s += reply.protocol_s
            classes += reply.classes
            clock += reply.clock
            slowest_us = max(slowest_us, reply.slowest_us)
            for group, content in reply.groups.items():
                survived[group][np.searchsorted(self._groups[group].devices, content["devices"])] = True
                vectors[group].append(Words(content["narrow"], content["wide"]))
        whole = {
            group: one
            for group, one in self._groups.items()
            if not self._void(record, group, one.why_void(survived[group]))
        }
        opened = self._opened(record, whole, survived)
        arrays: dict[int, wire.Arrays] = {}
        self.opened = {}
        totals = np.zeros(5, np.int64)
        start = time.perf_counter()
        for group, one in self._groups.items():
            layout = self._vector_layout(one, sent.get(group, np.zeros(0, np.int64)))
            self._count(record, one, survived[group], layout)
            if group not in whole:
                continue
            contents = [reply.groups[group] for reply in opened if group in reply.groups]
            answered = np.isin(one.devices, np.concatenate([content["devices"] for content in contents]))
            if self._void(record, group, one.why_void(survived[group], answered)):
                record.void_devices += int(survived[group].sum())
                continue
            total = added(vectors[group])
            if self._scenario.secure_aggregation.masked:
                total = _unmasked(one, server_round, total, survived[group], contents)
            values = layout.values(total)
            if values.pop(CHECK).tolist() != [survived[group].sum()]:
                raise SecureAggregationError(
                    f"secure aggregation, round {server_round}, user group {group}: masks are left in the sum; "
                    "a device masked its vector with other keys than it announced"
                )
            record.devices += int(survived[group].sum())
            record.recovered += int((one.shared & ~survived[group]).sum())
            classes += values.pop("classes", 0)
            clock += values.pop("clock", 0)
            totals += values.pop("totals", 0)
            arrays[group] = sparse(values)
            self.opened[group] = OpenedSum(len(one.devices), int(survived[group].sum()))
        record.server_s += time.perf_counter() - start
        trained, loss, recall, ndcg, evaluated = totals.tolist()
        traces = np.zeros((0, 5), np.int64)
        yield wire.RoundReply(arrays, classes, clock, slowest_us, trained, loss, recall, ndcg, evaluated, traces)

    def _opened(
        self, record: SecureRecord, whole: dict[int, SecureGroup], survived: dict[int, BoolArray]
    ) -> list[wire.SecureUnmaskReply]:
        """Ask the survivors of the groups that are not void for shares; everybody forgets the round."""

        def questions(partition: int) -> wire.SecureUnmaskRequest | None:
            if not any(self._hosted(one, partition).any() for one in self._groups.values()):
                return None
            groups = {
                group: one.questions(here, survived[group])
                for group, one in whole.items()
                if (here := self._hosted(one, partition) & survived[group]).any()
            }
            return wire.SecureUnmaskRequest(*self._setting, record.server_round, groups)

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
        moved = DeviceBytes.of(one.neighbours.shape[1], layout.num_bytes)
        shared = int(one.shared.sum())
        record.shared += shared
        record.vector_bytes += shared * moved.vector
        record.download_bytes += shared * moved.download
        record.upload_bytes += shared * moved.upload

    def _vector_layout(self, one: SecureGroup, blocks: IntArray) -> VectorLayout:
        return layout_of(
            self._scenario,
            num_devices=len(one.devices),
            rows=len(RowOrder.of(self._layout, blocks).items),
            blocks=len(blocks),
            classes=self._num_classes,
            columns=(len(wire.ClassColumn), len(wire.ClockColumn)),
            signals=self._signals,
        )

    def _hosted(self, one: SecureGroup, partition: int) -> BoolArray:
        """Which of a group's devices (M,) the node of a partition hosts."""
        return np.asarray(one.devices % len(self._nodes.ids) == partition)

    def _no_sums(self, columns: type[wire.ClassColumn] | type[wire.ClockColumn]) -> IntArray:
        return np.zeros((self._num_classes, len(columns)), np.int64)

    def _ask(self, kind: str, reply_type: type[Reply], content: Callable[[int], object | None]) -> list[Reply]:
        """Ask nodes; those that fail or are silent have dropped out.

        Raises:
            ScenarioError, SecureAggregationError: a node names a mistake, or its devices refuse.
        """
        messages = list(self._nodes.messages(kind, content))
        replies = list(self._nodes.grid.send_and_receive(messages, timeout=self._nodes.timeout_s)) if messages else []
        good = []
        for message in sorted(replies, key=self._nodes.partition):
            if message.has_error():
                raise_or_log(failure(message, f"node {self._nodes.partition(message)} ({kind})"))
            else:
                good.append(wire.unpack(reply_type, message.content))
        if len(replies) < len(messages):
            logger.warning(
                "%d of %d nodes did not answer %s in time", len(messages) - len(replies), len(messages), kind
            )
        return good


def raise_or_log(error: Exception) -> None:
    """Raise what every node would say again; log what befell one node."""
    if isinstance(error, (ScenarioError, SecureAggregationError)):
        raise error
    logger.warning("%s", error)


def _by_group(replies: list[wire.SecureKeysReply]) -> dict[int, dict[str, Any]]:
    """Announced keys of each user group, devices ascending."""
    if not replies:
        return {}
    names = ("devices", "channel_keys", "mask_keys")
    everybody = {name: np.concatenate([getattr(reply, name) for reply in replies]) for name in (*names, "groups")}
    order = np.argsort(everybody["devices"], kind="stable")
    groups = everybody["groups"][order]
    return {
        group: {name: everybody[name][order][groups == group] for name in names} for group in np.unique(groups).tolist()
    }


def _unmasked(
    one: SecureGroup, server_round: int, total: Words, survived: BoolArray, replies: list[wire.Arrays]
) -> Words:
    own, keys = one.shares(replies, survived)
    gone = np.flatnonzero(one.shared & ~survived)
    masked = Masked(
        Occasion(server_round, one.group),
        total,
        tuple(one.devices[survived].tolist()),
        {int(one.devices[i]): tuple(one.devices[j] for j in one.neighbours[i].tolist() if survived[j]) for i in gone},
        {int(device): key.tobytes() for device, key in zip(one.devices, one.mask_keys, strict=True)},
        one.needed,
    )
    return unmask(masked, own, keys)


__all__ = ["OpenedSum", "SecureRecord", "SecureRounds", "Values", "raise_or_log"]
