"""The exchanges of secure aggregation with every node (keys, sealed shares, opened shares), and what comes of a sum.

They are the same for the user groups of a round and the one group of a step. Masked vectors, which come between, are
the round's or the step's own. Whatever a device or a node sends, at worst there is no sum, and who may have done it is
left out of later ones (:mod:`strategies.rounds.suspects`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.errors import MessageError, SecureAggregationError
from fl_peel.exchange.counters import ClassCounts
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.keys import Occasion, are_usable
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.unmask import Mask, without
from fl_peel.secure.vector import CHECK, Values, VectorLayout
from strategies.nodes.nodes import Content, NodeRequest, Nodes
from strategies.rounds.masked_group import AnnouncedKeys, BoolArray, SecureGroup
from strategies.rounds.suspects import Suspects

logger = logging.getLogger("fl_peel")
Sum = TypeVar("Sum")


class VoidSumError(SecureAggregationError):
    """There is no sum. opened: whether its masks were, so that who knows what spoiled it knows the sum; may_come:
    whether another one may, of other devices or of nodes that are back.
    """

    def __init__(self, message: str, *, opened: bool, may_come: bool) -> None:
        super().__init__(message)
        self.opened, self.may_come = opened, may_come


@dataclass(frozen=True)
class MaskedPart:
    """A part of a group's masked sum, which begins after ``start`` bytes of the vector."""

    words: MaskWords
    layout: VectorLayout
    start: int = 0


@dataclass
class MaskedExchange:
    """The exchanges of one round or step. server_round: its number; suspects: who is left out; groups: those that go
    through it; announced, of devices, and sat_out, of groups: how many announced keys, and of how many groups too few
    devices did; device_s, server_s: seconds that the protocol took.
    """

    scenario: Scenario
    setting: wire.RunSetting
    nodes: Nodes
    server_round: int
    suspects: Suspects
    groups: dict[int, SecureGroup] = field(default_factory=dict)
    announced: int = 0
    sat_out: int = 0
    device_s: float = 0.0
    server_s: float = 0.0

    def ask_keys(self, kind: str, content: Content) -> list[wire.SecureKeysReply]:
        """Ask nodes for the keys of their devices; those that fail or are silent have dropped out."""
        return list(self.nodes.ask_some(kind, wire.SecureKeysReply, content).values())

    def settle(self, replies: list[wire.SecureKeysReply]) -> None:
        """Make the groups of the devices that announced usable keys and may take part; those of too few devices sit
        out.
        """
        self.device_s += sum(reply.protocol_s for reply in replies)
        start = time.perf_counter()
        for group, announced in _by_group(replies).items():
            keys = announced
            if self.scenario.secure_aggregation.masked:
                keys = keys.where(are_usable(keys.channel_keys) & are_usable(keys.mask_keys))
            for device in np.setdiff1d(announced.devices, keys.devices).tolist():
                logger.warning("%s: the keys of device %d are refused: of small order", self._name(group), device)
            hosts = self.nodes.partitions_of(keys.devices)
            keys = keys.where(self.suspects.may_be_in(group, keys.devices, hosts))
            self.announced += len(keys.devices)
            if len(keys.devices) < self.scenario.secure_aggregation.min_devices:
                self.sat_out += 1
                continue
            self.groups[group] = SecureGroup.from_keys(self.scenario, self.server_round, group, keys)
        self.server_s += time.perf_counter() - start

    def share(self) -> None:
        """Devices seal shares of their secrets for their neighbours."""

        def shares(partition: int) -> NodeRequest | None:
            here = {group: self.hosted(one, partition) for group, one in self.groups.items()}
            groups = {group: self.groups[group].directory(mine) for group, mine in here.items() if mine.any()}
            known = {group: self.groups[group].known(directory.devices) for group, directory in groups.items()}
            request = wire.SecureSharesRequest(self.setting, self.server_round, groups)
            return NodeRequest(request, MessageContext(groups=known)) if groups else None

        shared = self.nodes.ask_some(wire.SECURE_SHARES, wire.SecureSharesReply, shares).values()
        self.device_s += sum(reply.protocol_s for reply in shared)
        for group, one in self.groups.items():
            self.groups[group] = one.with_shares(reply.groups[group] for reply in shared if group in reply.groups)

    def unmask(self, whole: Iterable[int], survived: Mapping[int, BoolArray]) -> dict[int, list[wire.OpenedShares]]:
        """Ask the survivors (M,) of the groups that are not void for shares, and return these by group; all devices
        forget the round.
        """

        def questions(partition: int) -> NodeRequest | None:
            if not any(self.hosted(one, partition).any() for one in self.groups.values()):
                return None
            groups = {
                group: self.groups[group].questions(here, survived[group])
                for group in whole
                if (here := self.hosted(self.groups[group], partition) & survived[group]).any()
            }
            known = {group: self.groups[group].known(asked.devices) for group, asked in groups.items()}
            request = wire.SecureUnmaskRequest(self.setting, self.server_round, groups)
            return NodeRequest(request, MessageContext(groups=known))

        replies = self.nodes.ask_some(wire.SECURE_UNMASK, wire.SecureUnmaskReply, questions).values()
        self.device_s += sum(reply.protocol_s for reply in replies)
        return {group: [reply.groups[group] for reply in replies if group in reply.groups] for group in whole}

    def forget(self) -> None:
        """All devices forget their keys: nothing comes of the round."""
        over = wire.SecureUnmaskRequest(self.setting, self.server_round, {})
        self.nodes.ask_some(wire.SECURE_UNMASK, wire.SecureUnmaskReply, lambda _: NodeRequest(over))

    def hosted(self, one: SecureGroup, partition: int) -> BoolArray:
        """Return which of a group's devices (M,) the node of a partition hosts."""
        return np.asarray(self.nodes.partitions_of(one.devices) == partition)

    def opened(
        self,
        group: int,
        survived: BoolArray,
        replies: Sequence[wire.OpenedShares],
        parts: Iterable[MaskedPart],
        finish: Callable[[int, Values], Sum],
    ) -> list[Sum]:
        """Return the parts of a group's sum over ``survived`` (M,). replies: shares that these opened; finish: makes
        what is wanted of a part, by its number, and raises a MessageError where that cannot be true.

        Raises:
            VoidSumError: there is none.
        """
        one = self.groups[group]
        answered = np.isin(one.devices, [device for reply in replies for device in reply.devices])
        why = one.why_void(survived) or one.why_void(survived, answered)
        if why is not None:
            raise self._nothing_opened(one, answered if replies else survived, why)
        hosts = self.nodes.partitions_of(one.devices)
        closed = one.closed(survived, replies)
        if len(closed):
            why = f"device {closed[0]} and its neighbours cannot open what was sealed between them"
            blamed = 2 * len(closed) < len(one.devices)  # else somebody on the way changed it
            if blamed:
                why += f"; {self.suspects.leave_out(group, closed, hosts[np.isin(one.devices, closed)])}"
            raise VoidSumError(why, opened=False, may_come=blamed)
        try:
            masks = self._masks_left(one, survived, replies)
            sums = [finish(number, _unmasked(part, masks, int(survived.sum()))) for number, part in enumerate(parts)]
        except (SecureAggregationError, MessageError) as error:
            follows = self.suspects.spoiled(group, one.devices[survived], hosts[survived])
            raise VoidSumError(f"{error}; {follows}", opened=True, may_come=True) from None
        self.suspects.right(group, one.devices[survived], hosts[survived])
        self.suspects.answered(np.unique(hosts[answered]).tolist())
        return sums

    def _nothing_opened(self, one: SecureGroup, stayed: BoolArray, why: str) -> VoidSumError:
        """The error that too few devices stayed (M,), of which nothing was opened. Nodes that lost all of theirs have
        failed, unless as many as half of them did.
        """
        hosts = self.nodes.partitions_of(one.devices)
        failed = np.setdiff1d(hosts, hosts[stayed]).tolist()
        if 2 * len(failed) >= len(np.unique(hosts)):
            failed = []
        return VoidSumError(why + self.suspects.failed(failed), opened=False, may_come=bool(failed))

    def _masks_left(self, one: SecureGroup, survived: BoolArray, opened: Iterable[wire.OpenedShares]) -> list[Mask]:
        if not self.scenario.secure_aggregation.masked:
            return []
        return one.masks_left(self.server_round, survived, opened, twice=self.suspects.searching)

    def _name(self, group: int) -> str:
        return f"secure aggregation, {Occasion(self.server_round, group)}"


def _unmasked(part: MaskedPart, masks: Iterable[Mask], devices: int) -> Values:
    """Return what the vectors of so many devices add up to.

    Raises:
        SecureAggregationError: masks are left in the sum.
        MessageError: its counters cannot be true.
    """
    values = part.layout.values(without(part.words, masks, part.start))
    if CHECK in values and values.pop(CHECK).tolist() != [devices]:
        raise SecureAggregationError(
            "masks are left in the sum; a device masked its vector with other keys than it announced"
        )
    for name in ("classes", "clock"):
        if name in values and (values[name] < 0).any():
            raise MessageError(f"the devices' {name} add up to less than 0")
    if "classes" in values and ClassCounts.unstacked(values["classes"]).devices.sum() > devices:
        raise MessageError(f"{devices} devices count as more")
    return values


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


__all__ = ["MaskedExchange", "MaskedPart", "VoidSumError"]
