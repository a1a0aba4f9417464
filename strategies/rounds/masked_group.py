"""State of one user group on the server in a round of secure aggregation: public keys, sealed shares, who is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MessageContext
from fl_peel.randomness import device_uniforms, rng_for
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import SEALED_BYTES
from fl_peel.secure.graph import neighbour_graph
from fl_peel.secure.keys import Occasion
from fl_peel.secure.protocol_plan import needed_of
from fl_peel.secure.unmask import Mask, MaskedParties, left_over
from fl_peel.wire import Directory, Inbox, OpenedShares, SealedShares, ShareRequests

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def drawn_devices(scenario: Scenario, server_round: int, devices: IntArray, groups: NDArray[np.int32]) -> IntArray:
    """Return the ``devices_per_group`` devices of each user group, out of the round's cohort (N,), that go through the
    protocol.

    As in :mod:`strategies.rounds.sampling`, the smallest of numbers that the devices draw: on any nodes the same.
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


__all__ = ["AnnouncedKeys", "SecureGroup", "drawn_devices"]
