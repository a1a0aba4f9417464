"""Secure aggregation on a node: each of its devices goes through every stage by itself.

Secrets lie in one file for each round and user group, readable by its owner alone, since whichever process answers a
message must find it; Flower's context would send secrets to and fro. A real device keeps them in its memory. A run that
starts its own workers gives them a key in their environment, which files are encrypted with: what a killed run leaves
cannot be read.

Each device goes through every stage by itself: one that refuses what it is sent drops out, and no other with it. Of a
neighbour whose shares it cannot open it holds none, and goes on. The node adds up the masked vectors of its devices,
which takes no secret, to spare the simulation their transfer.

A device's vector is what a node that hosted it alone would reply in a round without secure aggregation
(:func:`clients.node.channel.train_members`), with an entry for every row it might have touched, and zeros where
few devices own what it would say (:mod:`fl_peel.exchange.release`). These are counted before, in stages of their own. A
node keeps nothing of those: its devices train once more, to the same end. Bytes are counted per device.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from clients.node.channel import ChannelTerms, DeviceChannel, Traffic, run_round, train_members
from clients.node.cohort import Cohort
from clients.node.contents import MembersReply, StateUpdate
from clients.node.round_context import reached_devices
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.release import GroupShape, Release, closed, dense, layout_of, owners_bytes, owners_layout
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.secure import device_protocol as protocol
from fl_peel.secure.device_protocol import (
    EXCHANGES,
    DeviceBytes,
    DropoutStage,
    HeldShares,
    Neighbour,
    Secrets,
    needed_of,
    vanishing,
)
from fl_peel.secure.keys import KEY_BYTES, SEED_BYTES, SHARE_BYTES, Occasion, exchange_number
from fl_peel.secure.vector import CHECK, MaskWords, Values, VectorLayout
from fl_peel.steps.base import unpacked_rows
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

Arrays = dict[str, NDArray[Any]]
KEYS, SHARED, MASKED = "keys", "shares", "round"
"""The stage that is over."""
KEY_VARIABLE, FILE_KEY_BYTES, NONCE_BYTES = "FL_PEEL_SECRETS_KEY", 32, 12
"""The variable of the environment that has the key, in hexadecimal digits; for AES-256-GCM."""


@dataclass(frozen=True)
class SecretStore:
    """The secrets of the devices of one node."""

    folder: Path

    @staticmethod
    def from_node_folder(node_folder: Path) -> SecretStore:
        """Return the store of a node."""
        return SecretStore(node_folder / "secure")

    def save(self, server_round: int, group: int, stage: str, arrays: Arrays) -> None:
        """Keep what a user group's devices know after ``stage``, in place of what they knew before."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(server_round, group)
        part = path.with_suffix(".part")
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, stage=np.array(stage), **arrays)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_sealed(content.getvalue(), path.name))
        part.replace(path)

    def load(self, server_round: int, group: int, stage: str) -> Arrays:
        """Load what :meth:`save` kept after ``stage``.

        Raises:
            SecureAggregationError: that stage is not the last one these devices went through.
        """
        try:
            path = self._path(server_round, group)
            with np.load(io.BytesIO(_opened(path.read_bytes(), path.name))) as content:
                arrays = {name: content[name] for name in content.files}
        except InvalidTag as error:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: their state of this round "
                "was changed, or is of another run"
            ) from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: they have no state of "
                "this round, which has not started or is over; the server repeats a stage, or the node lost its folder"
            ) from error
        done = str(arrays.pop("stage", "none"))
        if done != stage:
            raise SecureAggregationError(
                f"secure aggregation, {Occasion(server_round, group)}: devices refuse: after stage {done} a "
                "different one follows; the server repeats a stage or leaves one out"
            )
        return arrays

    def forget(self, *, but_groups: Iterable[int] = (), of_round: int | None = None) -> None:
        """Remove all secrets, but those of some user groups in one round."""
        kept = {self._path(of_round, group) for group in but_groups} if of_round is not None else set()
        for path in self.folder.glob("*"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, server_round: int, group: int) -> Path:
        return self.folder / f"{server_round}-{group}.npz"


def _sealed(content: bytes, name: str) -> bytes:
    """Return the content of a file of that name: encrypted, where this process has a key."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return content
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(bytes.fromhex(key)).encrypt(nonce, content, name.encode())


def _opened(content: bytes, name: str) -> bytes:
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return content
    if len(content) < NONCE_BYTES:
        raise InvalidTag
    return AESGCM(bytes.fromhex(key)).decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], name.encode())


logger = logging.getLogger("fl_peel")
PREPARED = ("devices", "neighbours", "present")
"""Arrays, (N,) each, that devices keep when their vector is sent, with the shares that they hold and the directory."""
OF_DEVICES = ("devices", "private", "neighbours", "present", "index", "shares")
"""All arrays that devices keep of whose first axis each has a row."""
PUBLIC = ("channel_keys", "mask_keys")
"""Arrays of the directory that devices keep between parts of their vector, with their private keys."""


@dataclass
class MaskedGroup:
    """The devices (N,) of one group that send their vectors, or a part of these, and the masked sum so far.

    known: what the devices keep of the round; start: bytes of the vector before this part; inbox: what their neighbours
    sealed for them, None where it was opened with an earlier part; sent: places of those that are in the sum;
    protocol_s: seconds that the protocol took.
    """

    cohort: Cohort
    occasion: Occasion
    known: Arrays
    layout: VectorLayout
    start: int = 0
    inbox: Inbox | None = None
    sent: list[int] = field(default_factory=list)
    protocol_s: float = 0.0
    _held: list[Mapping[int, HeldShares]] = field(default_factory=list)
    _total: MaskWords = field(init=False)

    def __post_init__(self) -> None:
        self._total = MaskWords.zeros(*self.layout.num_words)

    def add(self, i: int, values: Values) -> bool:
        """Add what device ``i`` contributes, masked, once it opened its neighbours' shares; return whether it did."""
        words, masked = self.layout.words(values), self.cohort.scenario.secure_aggregation.masked
        began = time.perf_counter()
        if masked:
            try:
                words = self._masked(i, words)
            except SecureAggregationError as error:
                logger.warning("%s", error)
                return False
        if self.inbox is not None:
            self._held.append(received_shares(self.known, self.occasion, i, self.inbox) if masked else {})
        np.add(self._total.narrow, words.narrow, out=self._total.narrow)
        np.add(self._total.wide, words.wide, out=self._total.wide)
        self.sent.append(i)
        self.protocol_s += time.perf_counter() - began
        return True

    def _masked(self, i: int, words: MaskWords) -> MaskWords:
        known, device = self.known, int(self.known["devices"][i])
        slots = np.flatnonzero(known["present"][i]).tolist()
        others = [neighbour_at(known, int(known["neighbours"][i, j])) for j in slots]
        needed, _ = needed_of(self.cohort.scenario, len(known["directory"]))
        part = replace(words, start=self.start)
        return protocol.mask_vector(part, secrets_of(known, i), self.occasion, device, others, needed)

    def finish(self, stage: str = MASKED) -> MaskedSum:
        """Return the sum; the devices in it keep the shares that they hold of their neighbours and, unless their whole
        vector is sent, their own keys. stage: that is over.
        """
        names = PREPARED if self.inbox is not None else (*PREPARED, "index", "shares")
        names = names if stage == MASKED else (*names, "private")
        kept = {name: self.known[name][self.sent] for name in names}
        if self.inbox is not None:
            kept |= held_arrays(self._held, self.inbox.present.shape[1])
        kept |= {name: self.known[name] for name in ("directory", *(() if stage == MASKED else PUBLIC))}
        store = SecretStore.from_node_folder(self.cohort.folder)
        store.save(self.occasion.server_round, self.occasion.group, stage, kept)
        return MaskedSum(kept["devices"], self._total.narrow, self._total.wide)


def make_keys(
    cohort: Cohort, server_round: int, reached: IntArray, groups: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make keys of devices (N,) in groups (N,): public ones (N, 32) of channels and masks; they keep the others."""
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
        devices, neighbours = given.devices, given.neighbours
        kept = rows_of(occasion, store.load(request.server_round, group, KEYS), devices)
        lost = vanishing(scenario, request.server_round, devices) == DropoutStage.SHARES
        needed, _ = needed_of(scenario, len(given.directory))
        size = protocol.SEALED_BYTES if scenario.secure_aggregation.masked else 0
        sealed = np.zeros((*neighbours.shape, size), np.uint8)
        known = {name: getattr(given, name) for name in ("directory", "channel_keys", "mask_keys", "neighbours")}
        for i in np.flatnonzero(~lost) if size else ():
            others = [neighbour_at(known, place) for place in neighbours[i].tolist()]
            try:
                shares = protocol.share_secrets(secrets_of(kept, int(i)), occasion, int(devices[i]), others, needed)
            except SecureAggregationError as error:
                logger.warning("%s", error)
                lost[i] = True
                continue
            sealed[i] = [_bytes(share) for share in shares]
        store.save(request.server_round, group, SHARED, kept | known)
        replies[group] = SealedShares(devices[~lost], sealed[~lost])
    return SecureSharesReply(replies, time.perf_counter() - start)


def known_of(cohort: Cohort, occasion: Occasion, inbox: Inbox) -> Arrays:
    """Return what the devices of an inbox, and no others, kept when they shared their secrets."""
    known = SecretStore.from_node_folder(cohort.folder).load(occasion.server_round, occasion.group, SHARED)
    return rows_of(occasion, known, inbox.devices) | {"present": inbox.present}


def received_shares(known: Arrays, occasion: Occasion, i: int, inbox: Inbox) -> dict[int, HeldShares]:
    """Return what the neighbours of device ``i`` sealed for it, by slot, opened: without what it cannot open."""
    secrets, device = secrets_of(known, i), int(inbox.devices[i])
    held: dict[int, HeldShares] = {}
    refused: list[SecureAggregationError] = []
    for j in np.flatnonzero(inbox.present[i]).tolist():
        other = [neighbour_at(known, int(known["neighbours"][i, j]))]
        try:
            (held[j],) = protocol.received_shares(secrets, occasion, device, other, [inbox.sealed[i, j].tobytes()])
        except SecureAggregationError as error:
            refused.append(error)
    if refused:
        logger.warning("%s (one of %d such neighbours)", refused[0], len(refused))
    return held


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
        devices, occasion = given.devices, Occasion(request.server_round, group)
        mine = rows_of(occasion, kept[group], devices)
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
            try:
                opened = protocol.open_shares(held, occasion, int(devices[i]), asked[0], asked[1], needed)
            except SecureAggregationError as error:
                logger.warning("%s", error)
                answers[i] = False
                continue
            for number, (place, share) in opened.items():
                j = numbers.index(number)
                index[i, j], shares[i, j] = place, _bytes(share)
        replies[group] = OpenedShares(devices[answers], index[answers], shares[answers])
    return SecureUnmaskReply(replies, time.perf_counter() - start)


def _bytes(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def rows_of(occasion: Occasion, kept: Arrays, devices: IntArray) -> Arrays:
    """Return what is kept, with the rows of these devices (N,), ascending, alone.

    Raises:
        SecureAggregationError: one of them holds nothing of the round.
    """
    strangers = np.setdiff1d(devices, kept["devices"])
    if len(strangers):
        raise SecureAggregationError(
            f"secure aggregation, {occasion}: device {strangers[0]} refuses: it has no state of this round"
        )
    here = np.searchsorted(kept["devices"], devices)
    return kept | {name: kept[name][here] for name in OF_DEVICES if name in kept}


def secrets_of(kept: Arrays, i: int) -> Secrets:
    """Return the secrets of the device at position ``i``."""
    private = kept["private"][i].tobytes()
    middle = KEY_BYTES + SEED_BYTES
    return Secrets(private[:KEY_BYTES], private[KEY_BYTES:middle], private[middle:])


def neighbour_at(known: Arrays, place: int) -> Neighbour:
    """The device at a place of the directory."""
    keys = (known[name][place].tobytes() for name in ("channel_keys", "mask_keys"))
    return Neighbour(int(known["directory"][place]), *keys)


def announce_keys(cohort: Cohort, request: SecureKeysRequest) -> SecureKeysReply:
    """Stage 1: devices that are reached make their keys. What is left of earlier rounds is removed."""
    store = SecretStore.from_node_folder(cohort.folder)
    store.forget()
    budgets = cohort.budgets.during(request.server_round)[0]
    reached, clock = reached_devices(cohort, cohort.places(request.devices), budgets, request.server_round)
    groups = np.asarray(cohort.state("r").groups)[reached]
    start = time.perf_counter()
    number = exchange_number(request.server_round, counts=request.counts)
    channel, mask = make_keys(cohort, number, reached, groups)
    spent = time.perf_counter() - start
    if Release.from_scenario(cohort.scenario, signals=False).withheld:
        clock = clock.asked_alone()
    return SecureKeysReply(cohort.devices[reached], groups, channel, mask, clock, spent)


class MaskedDeviceChannel(DeviceChannel[SecureRoundReply]):
    """Stage 3: devices whose secrets are shared train, mask their vectors, and send them; each by itself."""

    counts: ClassVar[bool] = False
    """Whether devices say what they would contribute to, and keep nothing of the round."""

    def __init__(self, cohort: Cohort, request: SecureRoundRequest) -> None:
        super().__init__(cohort, request)
        self._request = request
        self._sums: dict[int, MaskedSum] = {}
        self._protocol_s = 0.0

    def members(self, group: int) -> IntArray:
        """Return the devices whose neighbours' shares are in the message."""
        return self.context.cohort.places(self._request.secure[group].devices)

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """Train and mask one device after the other; devices in no sum, and the time, are counted in the open."""
        cohort, request, inbox = self.context.cohort, self._request, self._request.secure[group]
        number = exchange_number(request.server_round, counts=self.counts)
        occasion = Occasion(number, group)
        known = known_of(cohort, occasion, inbox)
        announced, shape = len(known["directory"]), GroupShape.from_ranked(ranked)
        update = layout_of(
            cohort.scenario,
            num_devices=announced,
            group=shape,
            num_classes=len(cohort.fleet.names),
            signals=request.signals,
        )
        owners = owners_layout(shape, num_devices=announced)
        masked = MaskedGroup(cohort, occasion, known, owners if self.counts else update, inbox=inbox)
        neighbours, exchanges = inbox.present.shape[1], EXCHANGES
        traffic = before = DeviceBytes.from_sizes(neighbours, update.num_bytes)
        if cohort.scenario.counts_owners:
            before = owners_bytes(neighbours, shape, owners)
            traffic, exchanges = traffic + before, 2 * EXCHANGES
        missing = traffic.upload - before.upload + before.vector if self.counts else update.num_bytes
        shared = in_masked_sums(cohort.scenario, find_mechanism(cohort.scenario.privacy.mechanism))
        noise_devices = noise_devices_of(cohort.scenario, announced) if shared else None
        vanishes = vanishing(cohort.scenario, number, inbox.devices) == DropoutStage.VECTOR
        counts, keeps = self.begin(), list[StateUpdate]()
        for i, lost in enumerate(vanishes.tolist()):
            moved = Traffic(traffic.download, traffic.upload - missing * lost, exchanges)
            terms = ChannelTerms(moved, noise_devices, self.counts)
            part = train_members(self.context, ranked, members[i : i + 1], terms)
            sends = not lost and len(part.state_update.places) > 0
            if sends:
                sends = masked.add(i, self._values(part, ranked, group) | {CHECK: np.ones(1, np.int64)})
            if not sends:  # it does not get as far as to send its vector
                classes, clock = part.counts.classes.without_update(), part.counts.clock.without_update()
                counts += replace(self.begin(), classes=classes, clock=clock)
                continue
            keeps.append(part.state_update)
            counts += replace(self.begin(), slowest_us=part.counts.slowest_us)
        self._sums[group] = masked.finish()
        self._protocol_s += masked.protocol_s
        return counts, keeps

    def _values(self, part: MembersReply, ranked: RankedBlocks, group: int) -> Values:
        """Return what a device contributes, and its counters: zeros where its user group's sum stays closed."""
        values = dense(part.arrays, len(ranked.items), ranked.layout.embedding_dim)
        if self.context.cohort.scenario.counts_owners:
            values = closed(values, opened_slices(self._request.secure[group], ranked))
        if not self.context.contents.release.withheld:
            values |= {name: getattr(part.counts, name).stacked() for name in ("classes", "clock", "totals")}
        return values

    def reply(self, counts: RoundCounts) -> SecureRoundReply:
        """Masked sums, and what the simulation counts of devices that are in none."""
        return SecureRoundReply(self._sums, counts.classes, counts.clock, counts.slowest_us, self._protocol_s)


def opened_slices(inbox: Inbox, ranked: RankedBlocks) -> NDArray[np.bool_]:
    """Return which slices of rows (R, S) of a user group are opened."""
    shape = len(ranked.items), ranked.layout.num_slices
    return unpacked_rows(inbox.opened, math.prod(shape)).reshape(shape)


class OwnersDeviceChannel(MaskedDeviceChannel):
    """Stage 3 of the count of owners before a round: what devices learn is forgotten, what they take is counted with
    the round, but for those that end here.
    """

    counts: ClassVar[bool] = True

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """As of a round."""
        counts, _ = super().take(ranked, group, members)
        return replace(counts, slowest_us=0), []

    def _values(self, part: MembersReply, ranked: RankedBlocks, group: int) -> Values:
        """Return what a device counts."""
        return dense(part.arrays, len(ranked.items), ranked.layout.embedding_dim)


count_owners = partial(run_round, OwnersDeviceChannel)
"""Stage 3 of the count of owners, for the devices of this node."""
masked_round = partial(run_round, MaskedDeviceChannel)
"""Stage 3 for the devices of this node."""
