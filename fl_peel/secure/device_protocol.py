"""What one device does in a round of secure aggregation, stage by stage, and what it refuses.

1. ``Secrets.fresh`` and ``public_keys``: make two key pairs, announce the public halves.
2. ``share_secrets``: split the seed of the mask key and the seed of the own mask, seal one share of each per neighbour.
3. ``mask_vector``: add the own mask, and a mask per neighbour that is still there, with the sign that cancels theirs.
4. ``open_shares``: for each neighbour one share: of the own mask if it sent its vector, of its mask key if it did not.

Stages are those of Bonawitz et al. (CCS 2017), figure 4, without signatures: the server is taken to follow the
protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fl_peel.errors import SecureAggregationError
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
