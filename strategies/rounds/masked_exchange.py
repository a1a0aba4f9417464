"""The exchanges of secure aggregation with every node: keys, sealed shares, opened shares.

They are the same for the user groups of a round and the one group of a step. Masked vectors, which come between, are
the round's or the step's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.errors import SecureAggregationError
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.unmask import Mask, without
from fl_peel.secure.vector import CHECK, Values, VectorLayout
from strategies.nodes.nodes import Content, NodeRequest, Nodes
from strategies.rounds.masked_group import AnnouncedKeys, BoolArray, SecureGroup


@dataclass
class MaskedExchange:
    """The exchanges of one round or step. server_round: its number; groups: those that go through it; announced, of
    devices, and sat_out, of groups: how many announced keys, and of how many groups too few devices did; device_s,
    server_s: seconds that the protocol took.
    """

    scenario: Scenario
    setting: wire.RunSetting
    nodes: Nodes
    server_round: int
    groups: dict[int, SecureGroup] = field(default_factory=dict)
    announced: int = 0
    sat_out: int = 0
    device_s: float = 0.0
    server_s: float = 0.0

    def ask_keys(self, kind: str, content: Content) -> list[wire.SecureKeysReply]:
        """Ask nodes for the keys of their devices; those that fail or are silent have dropped out."""
        return list(self.nodes.ask_some(kind, wire.SecureKeysReply, content).values())

    def settle(self, replies: list[wire.SecureKeysReply]) -> None:
        """Make the groups of the devices that announced keys; those of too few devices sit out."""
        self.device_s += sum(reply.protocol_s for reply in replies)
        start = time.perf_counter()
        for group, keys in _by_group(replies).items():
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

    def why_void(self, one: SecureGroup, survived: BoolArray, opened: Iterable[wire.OpenedShares]) -> str | None:
        """Return why the sum over ``survived`` (M,) cannot be opened with these shares, if so."""
        answered = np.isin(one.devices, [device for content in opened for device in content.devices])
        return one.why_void(survived, answered)

    def masks_left(self, one: SecureGroup, survived: BoolArray, opened: Iterable[wire.OpenedShares]) -> list[Mask]:
        """Return the masks that are left in the sum over ``survived`` (M,).

        Raises:
            SecureAggregationError: the shares that were opened are not those of the masks in the sum.
        """
        if not self.scenario.secure_aggregation.masked:
            return []
        return one.masks_left(self.server_round, survived, opened)


def unmasked(
    total: MaskWords, masks: Iterable[Mask], layout: VectorLayout, survived: BoolArray, start: int = 0
) -> Values:
    """Return what the vectors of the devices that survived (M,) add up to; ``total`` is their masked sum. start: bytes
    of the vector before it, where it is a part of one.

    Raises:
        SecureAggregationError: masks are left in the sum.
    """
    values = layout.values(without(total, masks, start))
    if CHECK in values and values.pop(CHECK).tolist() != [survived.sum()]:
        raise SecureAggregationError(
            "masks are left in the sum; a device masked its vector with other keys than it announced"
        )
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


__all__ = ["MaskedExchange", "unmasked"]
