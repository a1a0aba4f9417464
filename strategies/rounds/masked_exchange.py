"""The exchanges of secure aggregation with every node, over the devices of one group, and what comes of a sum.

They are the same for the user groups of a round and the one group of a step. Masked vectors, which come between, are
the round's or the step's own. Whatever a device or a node sends, at worst there is no sum, and who may have done it is
left out of later ones. Devices that spoil masked sums, of which nobody sees a single vector, are searched.

A sum that comes out spoiled has a device among its own that masked or shared something else than it had to. Of those
that may have (at first all), half sit out the next sum over their group: if that one is right, the others are cleared,
else those that sat out wait aside. Who is left in the end is left out for good. Then all who are aside come back, and
are searched again if sums are still spoiled. Suspects of whom none is in a sum that is right, since they are silent or
left out by now, wait aside as well: no search waits for them.

Devices are searched in blocks, which stay the same and are left out whole, as small as two sums over the same data may
differ by. A node whose devices are enough for a block shares none. A node is left out with all of its devices where two
of its blocks were, or where it failed twice, one after the other, in sums that came to nothing.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.errors import MessageError, SecureAggregationError
from fl_peel.exchange.counters import ClassCounts
from fl_peel.randomness import device_uniforms, rng_for
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import SEALED_BYTES, needed_of, neighbour_graph
from fl_peel.secure.keys import Occasion, are_usable
from fl_peel.secure.vector import CHECK, Mask, MaskedParties, MaskWords, Values, VectorLayout, left_over, without
from fl_peel.wire import Directory, Inbox, OpenedShares, SealedShares, ShareRequests
from strategies.nodes import NodeRequest, Nodes

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def drawn_devices(scenario: Scenario, server_round: int, devices: IntArray, groups: NDArray[np.int32]) -> IntArray:
    """Return the ``devices_per_group`` devices of each user group, out of the round's cohort (N,), that go through the
    protocol.

    As in :mod:`strategies.rounds.strategy`, the smallest of numbers that the devices draw: on any nodes the same.
    """
    most = scenario.secure_aggregation.devices_per_group
    if most is None:
        return devices
    draws = device_uniforms(scenario.seed, "secure-cohort", server_round, devices=devices)
    order = np.lexsort((devices, draws, groups))
    starts = np.searchsorted(groups[order], groups[order])  # place of each group's first device
    return np.sort(devices[order[np.arange(len(order)) - starts < most]])


@dataclass(frozen=True)
class AnnouncedKeys:
    """The public keys that devices of a user group announced: devices (M,), ascending, channel_keys and mask_keys (M,
    32).
    """

    devices: IntArray
    channel_keys: NDArray[np.uint8]
    mask_keys: NDArray[np.uint8]

    def where(self, some: BoolArray) -> AnnouncedKeys:
        """Return the keys of some of the devices (M,)."""
        return AnnouncedKeys(self.devices[some], self.channel_keys[some], self.mask_keys[some])


@dataclass(frozen=True)
class SecureGroup:
    """Devices (M,) of a user group, ascending, with their public keys (M, 32) and neighbours (M, k), as places.

    shared: (M,) devices whose shares came; sealed: (M, k, SEALED_BYTES), of which [i, a] is for the neighbour [i, a].
    """

    group: int
    devices: IntArray
    channel_keys: NDArray[np.uint8]
    mask_keys: NDArray[np.uint8]
    neighbours: IntArray
    needed: int
    quorum: int
    shared: BoolArray
    sealed: NDArray[np.uint8]
    masked: bool

    @staticmethod
    def from_keys(scenario: Scenario, server_round: int, group: int, keys: AnnouncedKeys) -> SecureGroup:
        """Draw the neighbours of a group's devices."""
        devices = keys.devices
        rng = rng_for(scenario.seed, "secure-graph", server_round, group)
        neighbours = neighbour_graph(len(devices), scenario.secure_aggregation.neighbours, rng)
        needed, quorum = needed_of(scenario, len(devices))
        nothing = np.zeros((*neighbours.shape, 0), np.uint8)
        channel, mask = keys.channel_keys, keys.mask_keys
        return SecureGroup(
            group,
            devices,
            channel,
            mask,
            neighbours,
            needed,
            quorum,
            np.zeros(len(devices), np.bool_),
            nothing,
            scenario.secure_aggregation.masked,
        )

    def with_shares(self, replies: Iterable[SealedShares]) -> SecureGroup:
        """Return the group with the sealed shares that came. A device with too few neighbours among those is left out,
        as are others for want of it.
        """
        shared = self.shared.copy()
        sealed = self.sealed
        for reply in replies:
            here = np.searchsorted(self.devices, reply.devices)
            if not shared.any():
                sealed = np.zeros((*self.neighbours.shape, reply.sealed.shape[2]), np.uint8)
            shared[here] = True
            sealed[here] = reply.sealed
        while True:
            lonely = shared & (shared[self.neighbours].sum(axis=1) < self.needed)
            if not lonely.any():
                break
            shared &= ~lonely
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SecureGroup(**(fields | {"shared": shared, "sealed": sealed}))

    def known(self, devices: IntArray) -> MessageContext:
        """Return what a right answer of these devices, some of the group's, looks like: which devices may be in it, and
        the sizes of what each sends to each of its neighbours.
        """
        sizes = {"k": self.neighbours.shape[1], "sealed": SEALED_BYTES if self.masked else 0}
        return MessageContext(sizes, {"devices": devices})

    def directory(self, here: BoolArray) -> Directory:
        """Return the directory of stage 2 for the devices ``here`` (M,): who they are, all public keys, and their
        neighbours.
        """
        return Directory(self.devices[here], self.neighbours[here], self.devices, self.channel_keys, self.mask_keys)

    def inbox(self, here: BoolArray) -> Inbox:
        """Stage 3 for the devices ``here`` (M,): which neighbours shared their secrets, what these sealed for them."""
        places = np.flatnonzero(here)
        mine = self.neighbours[places]  # (N, k)
        # neighbours are ascending, so that the place of i among those of j is the number of smaller ones
        slots = (self.neighbours[mine] < places[:, None, None]).sum(axis=2)  # (N, k)
        return Inbox(self.devices[places], self.shared[mine], self.sealed[mine, slots])

    def questions(self, here: BoolArray, survived: BoolArray) -> ShareRequests:
        """Stage 4 for the devices ``here`` (M,): which of their neighbours survived (N, k), which are gone (N, k)."""
        mine = self.neighbours[here]
        return ShareRequests(self.devices[here], survived[mine], self.shared[mine] & ~survived[mine])

    def why_void(self, survived: BoolArray, answered: BoolArray | None = None) -> str | None:
        """Return why the sum over ``survived`` (M,) cannot be opened, if so; answered: those that open shares, once
        known.
        """
        if survived.sum() < self.quorum:
            return f"{int(survived.sum())} of {len(self.devices)} devices sent their vector, {self.quorum} must"
        wanted = self.shared & (survived | survived[self.neighbours].any(axis=1))
        opening = survived if answered is None else answered
        left = opening[self.neighbours].sum(axis=1)
        fewest = int(left[wanted].min())
        # a device opens nothing unless enough of its neighbours survived
        if fewest < self.needed:
            return f"a device has {fewest} neighbours left to open what it shared, {self.needed} must"
        return None

    def closed(self, survived: BoolArray, replies: Sequence[OpenedShares]) -> IntArray:
        """Return the devices by whose fault secrets stay closed: those of whose shares half or more are denied, or who
        deny half or more of what they were sealed. Who has most such shares is at fault first, and for all of these.
        Where half of all shares are denied, everybody is returned: somebody on the way changed them.
        """
        wanted = self.shared & (survived | survived[self.neighbours].any(axis=1))
        asked, held = np.zeros((2, *self.neighbours.shape), np.bool_)
        for reply in replies:
            here = np.searchsorted(self.devices, reply.devices)
            asked[here], held[here] = wanted[self.neighbours[here]], reply.index > 0
        opened = np.bincount(self.neighbours[asked & held], minlength=len(asked))
        if not (wanted & (opened < self.needed)).any():
            return self.devices[:0]
        denied = asked & ~held
        if 2 * denied.sum() >= asked.sum():
            return self.devices
        all_sealed = np.bincount(self.neighbours[asked], minlength=len(asked)).clip(1)
        all_held = asked.sum(axis=1).clip(1)
        at_fault: list[int] = []
        while True:
            sealed = np.bincount(self.neighbours[denied], minlength=len(asked))
            shares = np.maximum(sealed / all_sealed, denied.sum(axis=1) / all_held)
            worst = int(shares.argmax())
            if shares[worst] < 0.5:
                return self.devices[np.sort(np.array(at_fault, np.int64))]
            at_fault.append(worst)
            denied[worst], denied[self.neighbours == worst] = False, False

    def masks_left(
        self, server_round: int, survived: BoolArray, replies: Iterable[OpenedShares], *, twice: bool = False
    ) -> list[Mask]:
        """Return the masks to subtract from the masked sum over ``survived`` (M,), from the shares that they opened.
        twice: whether all shares must agree.
        """
        own, keys = self.shares(replies, survived)
        gone = np.flatnonzero(self.shared & ~survived)
        places = self.neighbours[gone].tolist()
        masked = MaskedParties(
            Occasion(server_round, self.group),
            tuple(self.devices[survived].tolist()),
            {
                int(self.devices[i]): tuple(int(self.devices[j]) for j in mine if survived[j])
                for i, mine in zip(gone, places, strict=True)
            },
            {int(device): key.tobytes() for device, key in zip(self.devices, self.mask_keys, strict=True)},
            self.needed,
            twice,
        )
        return left_over(masked, own, keys)

    def shares(self, replies: Iterable[OpenedShares], survived: BoolArray) -> tuple[dict[int, dict[int, bytes]], ...]:
        """Opened shares by device and number: of the own masks of survivors, of the mask keys of the others."""
        own: dict[int, dict[int, bytes]] = defaultdict(dict)
        keys: dict[int, dict[int, bytes]] = defaultdict(dict)
        for reply in replies:
            for device, index, shares in zip(reply.devices, reply.index, reply.shares, strict=True):
                for other, number, share in zip(
                    self.neighbours[np.searchsorted(self.devices, device)], index.tolist(), shares, strict=True
                ):
                    if number:
                        kind = own if survived[other] else keys
                        kind[int(self.devices[other])][number] = share.tobytes()
        return own, keys


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
    """The exchanges of one round or step. server_round: its number; suspects: who is left out; spent: devices (N,) that
    are no part of it, as they are in a sum already; groups: those that go through it; announced, of devices, and
    sat_out, of groups: how many announced keys, and of how many groups too few devices did; device_s, server_s: seconds
    that the protocol took.
    """

    scenario: Scenario
    setting: wire.RunSetting
    nodes: Nodes
    server_round: int
    suspects: Suspects
    spent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    groups: dict[int, SecureGroup] = field(default_factory=dict)
    announced: int = 0
    sat_out: int = 0
    device_s: float = 0.0
    server_s: float = 0.0

    def settle(self, replies: list[wire.SecureKeysReply], searches: Sequence[Suspects] | None = None) -> None:
        """Make the groups of the devices that announced usable keys and may take part, on the nodes that replied; those
        of too few devices sit out. searches: that say who may, by default ``suspects`` alone.
        """
        self.device_s += sum(reply.protocol_s for reply in replies)
        start = time.perf_counter()
        for group, announced in _by_group(replies).items():
            keys = announced
            if self.scenario.secure_aggregation.masked:
                keys = keys.where(are_usable(keys.channel_keys) & are_usable(keys.mask_keys))
            for device in np.setdiff1d(announced.devices, keys.devices).tolist():
                logger.warning("%s: the keys of device %d are refused: of small order", self._name(group), device)
            keys = keys.where(~np.isin(keys.devices, self.spent))
            for suspects in (self.suspects,) if searches is None else searches:
                hosts = self.nodes.partitions_of(keys.devices)
                keys = keys.where(suspects.may_be_in(group, keys.devices, hosts))
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

        shared = self.nodes.ask_some(wire.SECURE_SHARES, shares).values()
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

        replies = self.nodes.ask_some(wire.SECURE_UNMASK, questions).values()
        self.device_s += sum(reply.protocol_s for reply in replies)
        return {group: [reply.groups[group] for reply in replies if group in reply.groups] for group in whole}

    def forget(self) -> None:
        """All devices forget their keys: nothing comes of the round."""
        over = wire.SecureUnmaskRequest(self.setting, self.server_round, {})
        self.nodes.ask_some(wire.SECURE_UNMASK, lambda _: NodeRequest(over))

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
        self.suspects.right(group, one.devices[survived], hosts[survived], apart=len(self.spent) > 0)
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


CHANCES = 2
"""Times that a node may fail, or that devices of it are found, until it is left out."""


@dataclass
class Search:
    """The search in one user group, in blocks. suspects: in the order of their nodes, of which one spoiled a sum whose
    other blocks were all cleared; aside: of which nothing is known; waiting: suspects that cannot be told apart before
    enough others are cleared to make a sum with; clearing: whether suspects are but those that may be.
    """

    suspects: list[int] = field(default_factory=list)
    cleared: set[int] = field(default_factory=set)
    aside: list[int] = field(default_factory=list)
    waiting: list[list[int]] = field(default_factory=list)
    clearing: bool = False


@dataclass
class Suspects:
    """Devices that are left out of masked sums, and the search for more. least: devices that make a sum; step: devices
    that two sums over the same data must differ by; devices, nodes: that are left out.
    """

    least: int
    step: int = 1
    devices: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)
    _searches: dict[int, Search] = field(default_factory=dict)
    _blocks: dict[int, int] = field(default_factory=dict)
    _hosts: dict[int, int] = field(default_factory=dict)
    _failures: dict[int, int] = field(default_factory=dict)
    _found: dict[int, int] = field(default_factory=dict)

    @property
    def searching(self) -> bool:
        """Return whether there is any search that is not over."""
        return bool(self._searches)

    def may_be_in(self, group: int, devices: IntArray, hosts: IntArray) -> BoolArray:
        """Return which of the devices (N,) of a user group, on these nodes (N,), may be in its next sum."""
        there: BoolArray = ~np.isin(devices, list(self.devices)) & ~np.isin(hosts, list(self.nodes))
        search = self._searches.get(group)
        if search is None:
            return there
        blocks = self._blocks_of(devices, hosts)
        suspects = [block for block in search.suspects if block in blocks[there]]
        half, waiting = suspects[: len(suspects) // 2], [block for some in search.waiting for block in some]
        for sit_out in ([*half, *search.aside, *waiting], [*search.aside, *waiting], waiting):
            some = there & ~np.isin(blocks, sit_out)
            if some.sum() >= self.least:
                return some
        return there

    def right(self, group: int, devices: IntArray, hosts: IntArray, *, apart: bool = False) -> None:
        """A sum over these devices (N,) on these nodes (N,) came out right: they are cleared. apart: whether others are
        in a sum of their own.
        """
        search = self._searches.get(group)
        if search is not None:
            blocks = set(self._blocks_of(devices, hosts).tolist())
            none_here = not apart and blocks.isdisjoint(search.suspects)
            search.cleared |= blocks
            search.suspects = [block for block in search.suspects if block not in search.cleared]
            search.aside = [block for block in search.aside if block not in search.cleared]
            if search.clearing or none_here:
                search.aside, search.suspects = [*search.aside, *search.suspects], []
            if not search.suspects:
                self._next(group, search)

    def spoiled(self, group: int, devices: IntArray, hosts: IntArray) -> str:
        """A sum over these devices (N,) on these nodes (N,) came out spoiled. Return what follows, in words."""
        search = self._searches.setdefault(group, Search())
        blocks = self._blocks_of(devices, hosts)
        by_node = blocks[np.lexsort((devices, hosts))].tolist()
        suspects = [block for block in dict.fromkeys(by_node) if block not in search.cleared]
        search.aside = [block for block in (*search.aside, *search.suspects) if block not in suspects]
        search.suspects, search.clearing = suspects, False
        if len(suspects) < 2:
            mine = np.isin(blocks, suspects)
            return self.leave_out(group, devices[mine], hosts[mine])
        cleared = len(search.cleared.intersection(by_node))  # others are away, or of a node that is left out
        if (cleared + (len(suspects) + 1) // 2) * self.step < self.least and search.aside:
            search.waiting.append(suspects)
            search.suspects, search.aside, search.clearing = search.aside, [], True
        return f"which of {np.isin(blocks, suspects).sum()} devices did it is searched for"

    def leave_out(self, group: int, devices: IntArray, hosts: IntArray) -> str:
        """Leave devices (N,) on these nodes (N,) out for good. Return that in words."""
        self._with_their_blocks(devices.tolist())
        if group in self._searches:
            self._next(group, self._searches[group])
        nodes = np.unique(hosts).tolist()
        if len(nodes) == 1:
            self._found[nodes[0]] = self._found.get(nodes[0], 0) + 1
        text = f"left out from now on: {_listed(devices)} of {'node' if len(nodes) == 1 else 'nodes'} {_listed(nodes)}"
        return text + self._without_nodes(node for node in nodes if self._found.get(node, 0) >= CHANCES)

    def failed(self, nodes: Iterable[int]) -> str:
        """A sum came to nothing, in which these nodes failed. Return what follows, in words."""
        times = {node: self._failures.get(node, 0) + 1 for node in nodes}
        self._failures |= times
        return self._without_nodes(node for node in times if times[node] >= CHANCES)

    def answered(self, nodes: Iterable[int]) -> None:
        """These nodes answered all that they were asked for a sum."""
        for node in nodes:
            self._failures.pop(node, None)

    def _blocks_of(self, devices: IntArray, hosts: IntArray) -> IntArray:
        """Return the block of each device (N,). New devices are in blocks of at least ``step``, by node."""
        if self.step == 1:
            return devices
        new = np.array([device not in self._blocks for device in devices.tolist()], np.bool_)
        self._hosts.update(zip(devices[new].tolist(), hosts[new].tolist(), strict=True))
        number, rest = max(self._blocks.values(), default=-1) + 1, devices[:0]
        for node in np.unique(hosts[new]):
            rest = np.concatenate([rest, np.sort(devices[new & (hosts == node)])])
            if len(rest) >= self.step:
                for block in np.array_split(rest, len(rest) // self.step):
                    self._blocks.update(dict.fromkeys(block.tolist(), number))
                    number += 1
                rest = devices[:0]
        self._blocks.update(dict.fromkeys(rest.tolist(), max(0, number - 1)))
        return np.array([self._blocks[device] for device in devices.tolist()], np.int64)

    def _next(self, group: int, search: Search) -> None:
        """Go on with those that wait; where nobody does, the search is over."""
        search.suspects, search.clearing = search.waiting.pop() if search.waiting else [], False
        if not search.suspects:
            del self._searches[group]

    def _with_their_blocks(self, devices: Iterable[int]) -> None:
        """Leave out these devices, and all that are in a block with one of them."""
        out = set(devices)
        blocks = {self._blocks[device] for device in out if device in self._blocks}
        self.devices |= out | {device for device, block in self._blocks.items() if block in blocks}

    def _without_nodes(self, nodes: Iterable[int]) -> str:
        new = set(nodes) - self.nodes
        self.nodes |= new
        self._with_their_blocks(device for device, node in self._hosts.items() if node in new)
        return f"; left out from now on: all devices of node {_listed(sorted(new))}" if new else ""


def _listed(numbers: Iterable[int]) -> str:
    names = [str(number) for number in numbers]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
