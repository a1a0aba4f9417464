"""What the server does with masked vectors: add them up, and take away the masks that are left in the sum.

The masks between two devices that both sent their vector are gone by themselves. What is left: the own mask of every
device that sent its vector, and the masks that these share with neighbours that did not. Each is made again from its
seed, which the neighbours' shares give back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fl_peel.errors import SecureAggregationError
from fl_peel.secure.keys import Occasion, mask_private_key, pair_key, public_key
from fl_peel.secure.masks import MaskWords, add_mask
from fl_peel.secure.sharing import combine

Shares = Mapping[int, Mapping[int, bytes]]
"""Shares of one secret of each device: by device, then by the number of the share."""


@dataclass(frozen=True)
class Mask:
    """Mask that is left in a sum: its seed (16,), and whether it was added or subtracted."""

    seed: bytes
    added: bool


@dataclass(frozen=True)
class MaskedParties:
    """Devices whose masks a group's sum has. It is over ``survivors``; dropped: each device that shared its secrets but
    sent no vector, with its surviving neighbours; mask_keys: public keys (32,) by device; needed: shares that open a
    secret; twice: whether all shares must agree, see :func:`fl_peel.secure.sharing.combine`.
    """

    occasion: Occasion
    survivors: tuple[int, ...]
    dropped: Mapping[int, tuple[int, ...]]
    mask_keys: Mapping[int, bytes]
    needed: int
    twice: bool = False


def left_over(masked: MaskedParties, self_shares: Shares, mask_shares: Shares) -> list[Mask]:
    """Return the masks that are left in the sum of the survivors' vectors.

    self_shares: of every survivor's own mask; mask_shares: of the mask key of every device that dropped out and has a
    surviving neighbour.

    Raises:
        SecureAggregationError: too few shares of one of them, or shares that give another key than was announced.
    """
    needed, twice = masked.needed, masked.twice
    masks = [Mask(combine(self_shares.get(one, {}), needed, twice=twice), added=True) for one in masked.survivors]
    for device, neighbours in masked.dropped.items():
        if not neighbours:
            continue
        private = mask_private_key(combine(mask_shares.get(device, {}), needed, twice=twice))
        if public_key(private) != masked.mask_keys[device]:
            raise SecureAggregationError(
                f"secure aggregation, {masked.occasion}: the shares of device {device} give another key than it "
                "announced; the round is void: a device answered with wrong shares"
            )
        for other in neighbours:
            key = pair_key(private, masked.mask_keys[other], masked.occasion, device, other)
            masks.append(Mask(key, added=other < device))  # by ``other``, when its number is the smaller
    return masks


def without(total: MaskWords, masks: Iterable[Mask], start: int = 0) -> MaskWords:
    """Return a sum without these masks. start: bytes of the vector before it, where it is a part of one."""
    opened = MaskWords(total.narrow.copy(), total.wide.copy())
    for mask in masks:
        add_mask(opened, mask.seed, subtract=mask.added, start=start)
    return opened


def added(vectors: Iterable[MaskWords]) -> MaskWords:
    """Return the sum of at least one vector."""
    first, *others = vectors
    total = MaskWords(first.narrow.copy(), first.wide.copy())
    for vector in others:
        total.narrow[:] += vector.narrow
        total.wide[:] += vector.wide
    return total
