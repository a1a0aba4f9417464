"""What one device does in a round of secure aggregation, stage by stage, and what it refuses; and what a scenario asks
of it, as both sides work it out: widths, bytes, neighbours, who vanishes when.

1. ``Secrets.fresh`` and ``public_keys``: make two key pairs, announce the public halves.
2. ``share_secrets``: split the seed of the mask key and the seed of the own mask, seal one share of each per neighbour.
3. ``mask_vector``: add the own mask, and a mask per neighbour that is still there, with the sign that cancels theirs.
4. ``open_shares``: for each neighbour one share: of the own mask if it sent its vector, of its mask key if it did not.

Stages are those of Bonawitz et al. (CCS 2017), figure 4, without signatures: the server is taken to follow the
protocol.

Bell et al. (CCS 2020), section 3: with every device masked towards k neighbours rather than towards all, work per
device grows with k. A device's secrets are shared among its k neighbours, t of which must answer to open either one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import SecureAggregationError
from fl_peel.randomness import device_uniforms
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.keys import (
    KEY_BYTES,
    NONCE_BYTES,
    SEED_BYTES,
    SHARE_BYTES,
    TAG_BYTES,
    Occasion,
    fresh,
    mask_private_key,
    pair_key,
    private_key,
    public_key,
    seal,
    split,
    unseal,
)
from fl_peel.secure.vector import MaskWords, add_mask

INDEX_BYTES = 2
"""Number of a share among those of its secret."""
SEALED_BYTES = NONCE_BYTES + INDEX_BYTES + 2 * SHARE_BYTES + TAG_BYTES
ID_BYTES = 8
"""Number of a device."""


@dataclass(frozen=True)
class Secrets:
    """What a device keeps for one round: its channel's private key, the seed of its mask key, that of its own mask."""

    channel_key: bytes
    mask_key_seed: bytes
    self_seed: bytes

    @staticmethod
    def fresh() -> Secrets:
        """New ones."""
        return Secrets(fresh(KEY_BYTES), fresh(SEED_BYTES), fresh(SEED_BYTES))

    def public_keys(self) -> tuple[bytes, bytes]:
        """Public halves (32,) of the channel key and of the mask key."""
        return public_key(private_key(self.channel_key)), public_key(mask_private_key(self.mask_key_seed))


@dataclass(frozen=True)
class Neighbour:
    """Another device, as the server introduces it: its number and its public keys (32,)."""

    device: int
    channel_key: bytes
    mask_key: bytes


@dataclass(frozen=True)
class HeldShares:
    """One neighbour's two shares, and their number."""

    index: int
    mask_key: bytes
    self_mask: bytes


def share_secrets(
    secrets: Secrets, occasion: Occasion, device: int, neighbours: Sequence[Neighbour], needed: int
) -> list[bytes]:
    """One sealed pair of shares (SEALED_BYTES,) for each neighbour, in their order.

    Raises:
        SecureAggregationError: too few neighbours, not distinct, or the device itself among them; ``needed`` is not
            more than half.
    """
    numbers = [neighbour.device for neighbour in neighbours]
    if device in numbers or len(set(numbers)) < len(numbers):
        raise _refused(occasion, device, "the server named it, or one neighbour twice, as its neighbours")
    if not len(numbers) // 2 < needed <= len(numbers):
        raise _refused(occasion, device, f"{needed} of {len(numbers)} shares would open a secret; more than half must")
    channel = private_key(secrets.channel_key)
    mask_shares = split(secrets.mask_key_seed, len(neighbours), needed)
    self_shares = split(secrets.self_seed, len(neighbours), needed)
    return [
        seal(
            channel,
            neighbour.channel_key,
            occasion,
            device,
            neighbour.device,
            (number + 1).to_bytes(INDEX_BYTES, "little") + mask_shares[number] + self_shares[number],
        )
        for number, neighbour in enumerate(neighbours)
    ]


def received_shares(
    secrets: Secrets, occasion: Occasion, device: int, neighbours: Sequence[Neighbour], sealed: Sequence[bytes]
) -> list[HeldShares]:
    """What each of these neighbours sealed for this device.

    Raises:
        SecureAggregationError: it was changed, or sealed for another device, round or group.
    """
    channel = private_key(secrets.channel_key)
    held = []
    for neighbour, box in zip(neighbours, sealed, strict=True):
        content = unseal(channel, neighbour.channel_key, occasion, neighbour.device, device, box)
        index, shares = content[:INDEX_BYTES], content[INDEX_BYTES:]
        held.append(HeldShares(int.from_bytes(index, "little"), shares[:SHARE_BYTES], shares[SHARE_BYTES:]))
    return held


def mask_vector(
    words: MaskWords,
    secrets: Secrets,
    occasion: Occasion,
    device: int,
    present: Sequence[Neighbour],
    needed: int,
) -> MaskWords:
    """The vector as the server gets it, from the device's own, which is left as it is.

    present: neighbours whose shares have arrived. Of two neighbours the one with the smaller number adds their mask.
    Where the vector goes in several parts, every part is sent once.

    Raises:
        SecureAggregationError: fewer than ``needed`` neighbours are there to open what must be opened.
    """
    if len(present) < needed:
        raise _refused(occasion, device, f"only {len(present)} neighbours are left, {needed} must be")
    masked = MaskWords(words.narrow.copy(), words.wide.copy())
    add_mask(masked, secrets.self_seed, start=words.start)
    private = mask_private_key(secrets.mask_key_seed)
    for neighbour in present:
        key = pair_key(private, neighbour.mask_key, occasion, device, neighbour.device)
        add_mask(masked, key, subtract=device > neighbour.device, start=words.start)
    return masked


def open_shares(
    held: Mapping[int, HeldShares],
    occasion: Occasion,
    device: int,
    survived: Sequence[int],
    dropped: Sequence[int],
    needed: int,
) -> dict[int, tuple[int, bytes]]:
    """Number and share for each neighbour named: of its own mask if it survived, of its mask key if it dropped out.

    Raises:
        SecureAggregationError: both are asked of one neighbour, which would unmask it; a stranger is named; or fewer
            than ``needed`` neighbours are said to have survived.
    """
    both = set(survived) & set(dropped)
    if both:
        raise _refused(occasion, device, f"both shares of device {min(both)} were asked, which would unmask it")
    strangers = (set(survived) | set(dropped)) - set(held)
    if strangers:
        raise _refused(occasion, device, f"it holds no shares of device {min(strangers)}")
    if len(set(survived)) < needed:
        raise _refused(
            occasion, device, f"only {len(set(survived))} of its neighbours are reported as left, {needed} must be"
        )
    opened = {other: (held[other].index, held[other].self_mask) for other in survived}
    return opened | {other: (held[other].index, held[other].mask_key) for other in dropped}


def _refused(occasion: Occasion, device: int, why: str) -> SecureAggregationError:
    return SecureAggregationError(
        f"secure aggregation, {occasion}: device {device} refuses: {why}; the server does not follow the protocol"
    )


def num_neighbours(devices: int, wanted: int) -> int:
    """Neighbours of each of ``devices`` devices: ``wanted`` (even), or all the others where there are no more."""
    return min(wanted, devices - 1)


def answers_needed(count: int, share: float) -> int:
    """How many of ``count`` must answer: a share of them, rounded up, and always more than half.

    With more than half, no two disjoint sets of neighbours could open a device's two secrets, one each.
    """
    return max(count // 2 + 1, math.ceil(share * count - 1e-9))


def neighbour_graph(devices: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Neighbours (N, k) of N devices, as places 0..N-1, ascending; the relation is symmetric.

    Devices are set on a ring in random order; each has the k / 2 next on either side (a Harary graph, so that it stays
    connected while fewer than k devices leave).
    """
    k = num_neighbours(devices, wanted)
    if k == devices - 1:
        others = np.tile(np.arange(devices), (devices, 1))
        return others[~np.eye(devices, dtype=bool)].reshape(devices, k)
    assert k % 2 == 0, "a sparse graph needs an even number of neighbours"
    ring = rng.permutation(devices)
    place = np.argsort(ring)
    offsets = np.concatenate([np.arange(1, k // 2 + 1), -np.arange(1, k // 2 + 1)])
    return np.sort(ring[(place[:, None] + offsets) % devices], axis=1).astype(np.int64)


EXCHANGES = 4
"""Times a device answers the server in a round: keys, shares, vector, opened shares."""


class DropoutStage(IntEnum):
    """Stage of the protocol before which a device drops out, where a study makes devices drop out."""

    NEVER = 0
    SHARES = 1
    VECTOR = 2
    OPENING = 3


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes of one device in a round beside blocks: to it, from it, and of the latter its vector alone."""

    download: int
    upload: int
    vector: int

    def __add__(self, other: DeviceBytes) -> DeviceBytes:
        """Return the bytes of both."""
        return DeviceBytes(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @staticmethod
    def from_sizes(neighbours: int, vector: int) -> DeviceBytes:
        """Return the bytes of a device with so many neighbours and a vector of so many bytes.

        Down: number and two keys, then number and sealed shares of every neighbour, and whether each survived. Up: two
        keys, sealed shares, the vector, and a number and a share for each neighbour.
        """
        down = neighbours * (ID_BYTES + 2 * KEY_BYTES + ID_BYTES + SEALED_BYTES + ID_BYTES + 1)
        up = 2 * KEY_BYTES + neighbours * (ID_BYTES + SEALED_BYTES + ID_BYTES + INDEX_BYTES + SHARE_BYTES)
        return DeviceBytes(down, up + vector, vector)


def needed_of(scenario: Scenario, num_devices: int) -> tuple[int, int]:
    """Return how many neighbours of a device must answer, and how many devices of a group must send vectors."""
    part = scenario.secure_aggregation
    neighbours = num_neighbours(num_devices, part.neighbours)
    return answers_needed(neighbours, part.threshold), answers_needed(num_devices, part.threshold)


def vanishing(scenario: Scenario, server_round: int, devices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return when each device (N,) is lost, as :class:`DropoutStage`: by ``dropout_share``, stages alike."""
    share = scenario.secure_aggregation.dropout_share
    lost = device_uniforms(scenario.seed, "secure-dropout", server_round, devices=devices) < share
    stage = device_uniforms(scenario.seed, "secure-dropout-stage", server_round, devices=devices)
    return np.where(lost, 1 + np.floor(3 * stage).astype(np.int64), int(DropoutStage.NEVER))
