"""A round of secure aggregation on a node: each of its devices goes through every stage by itself.

A device's vector is what a node that hosted it alone would reply in a round without secure aggregation
(:func:`clients.round.members.train_members`), with an entry for every row it might have touched. The node adds up the
masked vectors of its devices, which takes no secret, to spare the simulation their transfer; bytes are counted per
device.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.round.channel import DeviceChannel, run_round
from clients.round.members import ChannelTerms, train_members
from clients.round.outcome import MembersReply, StateUpdate
from clients.round.round_context import RoundContext, reached_devices
from clients.round.secret_store import KEYS, MASKED, SHARED, Arrays, SecretStore
from clients.round.within_deadline import Traffic
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.open_sums import dense
from fl_peel.exchange.release import Release, layout_of
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.secure import device_protocol as protocol
from fl_peel.secure.device_protocol import HeldShares, Neighbour, Secrets
from fl_peel.secure.keys import KEY_BYTES, SEED_BYTES, Occasion
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.protocol_plan import EXCHANGES, DeviceBytes, DropoutStage, needed_of, vanishing
from fl_peel.secure.sharing import SHARE_BYTES
from fl_peel.secure.vector import CHECK, VectorLayout
from fl_peel.wire import (
    Inbox,
    MaskedSum,
    OpenedShares,
    SealedShares,
    SecureKeysReply,
    SecureKeysRequest,
    SecureRoundReply,
    SecureRoundRequest,
    SecureSharesReply,
    SecureSharesRequest,
    SecureUnmaskReply,
    SecureUnmaskRequest,
)


def announce_keys(cohort: Cohort, request: SecureKeysRequest) -> SecureKeysReply:
    """Stage 1: devices that are reached make their keys. What is left of earlier rounds is removed."""
    store = SecretStore.from_node_folder(cohort.folder)
    store.forget()
    budgets = cohort.budgets.during(request.server_round)[0]
    reached, clock = reached_devices(cohort, cohort.places(request.devices), budgets, request.server_round)
    groups = np.asarray(cohort.state("r").groups)[reached]
    start = time.perf_counter()
    channel, mask = make_keys(cohort, request.server_round, reached, groups)
    spent = time.perf_counter() - start
    if Release.from_scenario(cohort.scenario, signals=False).withheld:
        clock = clock.asked_alone()
    return SecureKeysReply(cohort.devices[reached], groups, channel, mask, clock, spent)


def make_keys(
    cohort: Cohort, server_round: int, reached: IntArray, groups: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fresh keys of devices (N,) in their user groups (N,): public ones (N, 32) of channels and of masks. What is
    private they keep.
    """
    store, masked = SecretStore.from_node_folder(cohort.folder), cohort.scenario.secure_aggregation.masked
    channel, mask = (np.zeros((len(reached), KEY_BYTES), np.uint8) for _ in range(2))
    private = np.zeros((len(reached), KEY_BYTES + 2 * SEED_BYTES), np.uint8)
    for i in range(len(reached) if masked else 0):
        secrets = Secrets.fresh()
        channel[i], mask[i] = (_bytes(key) for key in secrets.public_keys())
        private[i] = _bytes(secrets.channel_key + secrets.mask_key_seed + secrets.self_seed)
    for group in np.unique(groups).tolist():
        mine = groups == group
        store.save(server_round, group, KEYS, {"devices": cohort.devices[reached[mine]], "private": private[mine]})
    return channel, mask


def share_secrets(cohort: Cohort, request: SecureSharesRequest) -> SecureSharesReply:
    """Stage 2: every device seals a pair of shares for each of its neighbours. Groups that sit out are forgotten."""
    store, scenario = SecretStore.from_node_folder(cohort.folder), cohort.scenario
    store.forget(but_groups=request.groups, of_round=request.server_round)
    start = time.perf_counter()
    replies: dict[int, SealedShares] = {}
    for group, given in request.groups.items():
        occasion = Occasion(request.server_round, group)
        kept = store.load(request.server_round, group, KEYS)
        devices, neighbours = given.devices, given.neighbours
        check_same(occasion, kept, devices)
        lost = vanishing(scenario, request.server_round, devices) == DropoutStage.SHARES
        needed, _ = needed_of(scenario, len(given.directory))
        size = protocol.SEALED_BYTES if scenario.secure_aggregation.masked else 0
        sealed = np.zeros((*neighbours.shape, size), np.uint8)
        known = {name: getattr(given, name) for name in ("directory", "channel_keys", "mask_keys", "neighbours")}
        for i in np.flatnonzero(~lost) if size else ():
            others = [neighbour_at(known, place) for place in neighbours[i].tolist()]
            shares = protocol.share_secrets(secrets_of(kept, int(i)), occasion, int(devices[i]), others, needed)
            sealed[i] = [_bytes(share) for share in shares]
        store.save(request.server_round, group, SHARED, kept | known)
        replies[group] = SealedShares(devices[~lost], sealed[~lost])
    return SecureSharesReply(replies, time.perf_counter() - start)


class MaskedDeviceChannel(DeviceChannel[SecureRoundReply]):
    """Stage 3: devices whose secrets are shared train, mask their vectors, and send them; each by itself."""

    def __init__(self, context: RoundContext, request: SecureRoundRequest) -> None:
        super().__init__(context)
        self._request = request
        self._sums: dict[int, MaskedSum] = {}
        self._protocol_s = 0.0

    def members(self, group: int) -> IntArray:
        """Return the devices whose neighbours' shares are in the message."""
        return self.context.cohort.places(self._request.secure[group].devices)

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """Train and mask one device after the other; counted in the open are the devices that are in no sum, and the
        time it took.
        """
        counts, keeps = self.begin(), list[StateUpdate]()
        stage = _GroupStage.from_message(self.context, ranked, self._request.secure[group], group)
        survivors, total = [], MaskWords.zeros(*stage.layout.num_words)
        for i in range(len(members)):
            part, words = stage.vector(i)
            if words is None:
                counts += replace(self.begin(), classes=part.counts.classes, clock=part.counts.clock)
                continue
            start = time.perf_counter()
            masked = stage.masked(i, words)
            self._protocol_s += time.perf_counter() - start
            np.add(total.narrow, masked.narrow, out=total.narrow)
            np.add(total.wide, masked.wide, out=total.wide)
            survivors.append(i)
            keeps.append(part.state_update)
            counts += replace(self.begin(), slowest_us=part.counts.slowest_us)
        stage.keep(survivors)
        self._sums[group] = MaskedSum(stage.devices[survivors], total.narrow, total.wide)
        return counts, keeps

    def reply(self, counts: RoundCounts) -> SecureRoundReply:
        """Masked sums, and what the simulation counts of devices that are in none."""
        return SecureRoundReply(self._sums, counts.classes, counts.clock, counts.slowest_us, self._protocol_s)


def masked_round(cohort: Cohort, request: SecureRoundRequest) -> SecureRoundReply:
    """Stage 3 for the devices of this node."""
    return run_round(MaskedDeviceChannel(RoundContext.from_request(cohort, request), request))


@dataclass(frozen=True)
class _GroupStage:
    """Stage 3 for the devices (N,) of one user group: their place here, when they vanish, what their neighbours sealed
    for them.
    """

    context: RoundContext
    ranked: RankedBlocks
    group: int
    layout: VectorLayout
    needed: int
    noise_devices: int | None
    devices: NDArray[np.int64]
    places: NDArray[np.int64]
    vanishes: NDArray[np.int64]
    inbox: Inbox
    known: Arrays
    held: list[dict[int, HeldShares]]

    @staticmethod
    def from_message(context: RoundContext, ranked: RankedBlocks, given: Inbox, group: int) -> _GroupStage:
        """Build the stage from the message and from what the devices kept."""
        cohort, request = context.cohort, context.request
        devices, known = given.devices, known_of(cohort, Occasion(request.server_round, group), given)
        layout = layout_of(
            cohort.scenario,
            num_devices=len(known["directory"]),
            group=GroupShape.from_ranked(ranked),
            num_classes=len(cohort.fleet.names),
            signals=request.signals,
        )
        shared = in_masked_sums(cohort.scenario, find_mechanism(cohort.scenario.privacy.mechanism))
        return _GroupStage(
            context,
            ranked,
            group,
            layout,
            needed_of(cohort.scenario, len(known["directory"]))[0],
            noise_devices_of(cohort.scenario, len(known["directory"])) if shared else None,
            devices,
            cohort.places(devices),
            vanishing(cohort.scenario, request.server_round, devices),
            given,
            known,
            [{} for _ in devices],
        )

    def vector(self, i: int) -> tuple[MembersReply, MaskWords | None]:
        """Train device ``i``; return its reply and the words of its vector, or None for the words where it does not get
        as far as to send them.
        """
        traffic = DeviceBytes.from_sizes(self.inbox.present.shape[1], self.layout.num_bytes)
        lost = self.vanishes[i] == DropoutStage.VECTOR
        upload = traffic.upload - traffic.vector if lost else traffic.upload
        moved = Traffic(traffic.download, upload, EXCHANGES)
        terms = ChannelTerms(moved, self.noise_devices)
        part = train_members(self.context, self.ranked, self.places[i : i + 1], terms)
        counts = part.counts
        if lost or not len(part.state_update.places):
            counts = replace(counts, classes=counts.classes.without_update(), clock=counts.clock.without_update())
            return replace(part, counts=counts), None
        values = dense(part.arrays, len(self.ranked.items), self.ranked.layout.embedding_dim)
        if not self.context.contents.release.withheld:
            values |= {name: getattr(counts, name).stacked() for name in ("classes", "clock", "totals")}
        return part, self.layout.words(values | {CHECK: np.ones(1, np.int64)})

    def masked(self, i: int, words: MaskWords) -> MaskWords:
        """The vector of device ``i`` as it is sent; it opens what its neighbours sealed for it on the way."""
        if not self.context.cohort.scenario.secure_aggregation.masked:
            return words
        occasion = Occasion(self.context.request.server_round, self.group)
        self.held[i].update(received_shares(self.known, occasion, i, self.inbox))
        return masked_words(self.known, occasion, i, words, self.needed)

    def keep(self, survivors: list[int]) -> None:
        """Keep the shares that the devices which sent their vector hold of their neighbours; their own keys may go."""
        kept = {name: self.known[name][survivors] for name in ("devices", "neighbours")}
        kept |= {"directory": self.known["directory"], "present": self.inbox.present[survivors]}
        kept |= held_arrays([self.held[i] for i in survivors], self.inbox.present.shape[1])
        store = SecretStore.from_node_folder(self.context.cohort.folder)
        store.save(self.context.request.server_round, self.group, MASKED, kept)


def known_of(cohort: Cohort, occasion: Occasion, inbox: Inbox) -> Arrays:
    """Return what the devices of an inbox, and no others, kept when they shared their secrets."""
    known = SecretStore.from_node_folder(cohort.folder).load(occasion.server_round, occasion.group, SHARED)
    here = np.minimum(np.searchsorted(known["devices"], inbox.devices), len(known["devices"]) - 1)
    known |= {name: known[name][here] for name in ("devices", "private", "neighbours")}
    check_same(occasion, known, inbox.devices)
    return known | {"present": inbox.present}


def received_shares(known: Arrays, occasion: Occasion, i: int, inbox: Inbox) -> dict[int, HeldShares]:
    """Return what the neighbours of device ``i`` sealed for it, by slot, opened."""
    slots, device = np.flatnonzero(inbox.present[i]).tolist(), int(inbox.devices[i])
    others = [neighbour_at(known, int(known["neighbours"][i, j])) for j in slots]
    sealed = [inbox.sealed[i, j].tobytes() for j in slots]
    return dict(
        zip(slots, protocol.received_shares(secrets_of(known, i), occasion, device, others, sealed), strict=True)
    )


def masked_words(known: Arrays, occasion: Occasion, i: int, words: MaskWords, needed: int, start: int = 0) -> MaskWords:
    """Return the words of device ``i`` masked, for its neighbours that are present. start: bytes of the vector before
    them, where they are a part of it.
    """
    slots, device = np.flatnonzero(known["present"][i]).tolist(), int(known["devices"][i])
    others = [neighbour_at(known, int(known["neighbours"][i, j])) for j in slots]
    return protocol.mask_vector(words, secrets_of(known, i), occasion, device, others, needed, start)


def held_arrays(held: Sequence[Mapping[int, HeldShares]], neighbours: int) -> Arrays:
    """The shares that devices (N,) hold of their neighbours, by slot (N, k), as arrays: index and shares."""
    shape = (len(held), neighbours)
    index, shares = np.zeros(shape, np.int64), np.zeros((*shape, 2, SHARE_BYTES), np.uint8)
    for row, mine in enumerate(held):
        for j, pair in mine.items():
            index[row, j] = pair.index
            shares[row, j] = _bytes(pair.mask_key + pair.self_mask).reshape(2, SHARE_BYTES)
    return {"index": index, "shares": shares}


def open_shares(cohort: Cohort, request: SecureUnmaskRequest) -> SecureUnmaskReply:
    """Stage 4: devices give one share of each neighbour, and forget the round: they answer once."""
    store, scenario = SecretStore.from_node_folder(cohort.folder), cohort.scenario
    start = time.perf_counter()
    kept = {group: store.load(request.server_round, group, MASKED) for group in request.groups}
    store.forget()
    replies: dict[int, OpenedShares] = {}
    for group, given in request.groups.items():
        mine, occasion = kept[group], Occasion(request.server_round, group)
        devices = given.devices
        check_same(occasion, mine, devices)
        answers = vanishing(scenario, request.server_round, devices) != DropoutStage.OPENING
        index = np.zeros(given.survived.shape, np.int64)
        shares = np.zeros((*index.shape, SHARE_BYTES), np.uint8)
        needed, _ = needed_of(scenario, len(mine["directory"]))
        for i in np.flatnonzero(answers):
            if not scenario.secure_aggregation.masked:
                index[i] = given.survived[i] | given.dropped[i]
                continue
            numbers = mine["directory"][mine["neighbours"][i]].tolist()
            held = {
                number: HeldShares(int(mine["index"][i, j]), *(part.tobytes() for part in mine["shares"][i, j]))
                for j, number in enumerate(numbers)
                if mine["present"][i, j]
            }
            asked = [[numbers[j] for j in np.flatnonzero(named[i])] for named in (given.survived, given.dropped)]
            opened = protocol.open_shares(held, occasion, int(devices[i]), asked[0], asked[1], needed)
            for number, (place, share) in opened.items():
                j = numbers.index(number)
                index[i, j], shares[i, j] = place, _bytes(share)
        replies[group] = OpenedShares(devices[answers], index[answers], shares[answers])
    return SecureUnmaskReply(replies, time.perf_counter() - start)


def _bytes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def check_same(occasion: Occasion, kept: Arrays, devices: IntArray) -> None:
    """Refuse a request to other devices (N,) than those that go through the round.

    Raises:
        SecureAggregationError: they hold nothing of it.
    """
    if not np.array_equal(kept["devices"], devices):
        raise SecureAggregationError(
            f"secure aggregation, {occasion}: devices refuse: some of the requested devices have no state of this round"
        )


def secrets_of(kept: Arrays, i: int) -> Secrets:
    """Return the secrets of the device at position ``i``."""
    private = kept["private"][i].tobytes()
    middle = KEY_BYTES + SEED_BYTES
    return Secrets(private[:KEY_BYTES], private[KEY_BYTES:middle], private[middle:])


def neighbour_at(known: Arrays, place: int) -> Neighbour:
    """The device at a place of the directory."""
    keys = (known[name][place].tobytes() for name in ("channel_keys", "mask_keys"))
    return Neighbour(int(known["directory"][place]), *keys)


__all__ = [
    "announce_keys",
    "held_arrays",
    "known_of",
    "make_keys",
    "masked_round",
    "masked_words",
    "open_shares",
    "received_shares",
    "share_secrets",
]
