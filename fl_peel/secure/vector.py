"""What a device says as words of fixed number and width, and the masks that are added and taken away.

A mask is the key stream of AES-128 in counter mode under a seed that is used for one mask only; the masks of all words
together are as hard to tell from random as the cipher is.

The masks between two devices that both sent their vector are gone by themselves. What is left: the own mask of every
device that sent its vector, and the masks that these share with neighbours that did not. Each is made again from its
seed, which the neighbours' shares give back.

A device's row updates are sparse, but which rows it touched is what it hides: it sends a word for every row that its
user group was sent. Integers are two's complement modulo 2^32 or 2^64. The sum over n devices is right as long as each
device's word lies within (2^(bits - 1) - 1) // n of zero, which every device checks of its own before it masks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fl_peel.errors import SecureAggregationError
from fl_peel.kernels import FIXED_POINT
from fl_peel.secure.keys import Occasion, combine, mask_private_key, pair_key, public_key

BLOCK_BYTES = 16
"""Bytes of a block of the cipher, whose counter goes up by one for each block."""
CHUNK_BYTES = 1 << 18
"""Bytes of the key stream that are made at a time: as many as stay in a core's own cache."""
_ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True)
class MaskWords:
    """A vector, or a part of one: narrow (N,) uint32, added modulo 2^32, and wide (M,) uint64, added modulo 2^64.
    start: bytes of the vector before a part that a device masks.
    """

    narrow: NDArray[np.uint32]
    wide: NDArray[np.uint64]
    start: int = 0

    @staticmethod
    def zeros(narrow: int, wide: int) -> MaskWords:
        return MaskWords(np.zeros(narrow, np.uint32), np.zeros(wide, np.uint64))

    def __add__(self, other: MaskWords) -> MaskWords:
        return MaskWords(self.narrow + other.narrow, self.wide + other.wide)


def add_mask(words: MaskWords, seed: bytes, *, subtract: bool = False, start: int = 0) -> None:
    """Add the mask of ``seed`` (16,) to every word, in place: to a vector of one's own.

    The key stream is used in order, little-endian: first for the narrow words, then for the wide ones. start: bytes of
    it that are for parts of the vector which lie before these words.
    """
    block, within = divmod(start, BLOCK_BYTES)
    stream = Cipher(algorithms.AES(seed), modes.CTR(block.to_bytes(BLOCK_BYTES, "big"))).encryptor()
    stream.update(bytes(within))
    room = bytearray(CHUNK_BYTES + BLOCK_BYTES)
    parts: tuple[tuple[NDArray[np.unsignedinteger], str], ...] = ((words.narrow, "<u4"), (words.wide, "<u8"))
    for part, word in parts:
        step = CHUNK_BYTES // part.itemsize
        for start in range(0, len(part), step):
            chunk = part[start : start + step]
            stream.update_into(memoryview(_ZEROS)[: chunk.nbytes], room)
            mask = np.frombuffer(room, word, len(chunk))
            if subtract:
                np.subtract(chunk, mask, out=chunk)
            else:
                np.add(chunk, mask, out=chunk)


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
    secret; twice: whether all shares must agree, see :func:`fl_peel.secure.keys.combine`.
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


Bits = Literal[32, 64]
Values = dict[str, NDArray[np.int64]]

CHECK = "check"
"""Name of a word in which every device says 1. The server knows how many devices there are: the sum proves the masks
gone.
"""


@dataclass(frozen=True)
class Field:
    """One array of the vector."""

    name: str
    shape: tuple[int, ...]
    bits: Bits

    @property
    def size(self) -> int:
        """Its words."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class VectorLayout:
    """The arrays of a vector in order, of at most ``devices`` devices' sum."""

    fields: tuple[Field, ...]
    devices: int

    @cached_property
    def num_words(self) -> tuple[int, int]:
        """Words of 32 and of 64 bits."""
        sizes = [sum(field.size for field in self.fields if field.bits == bits) for bits in (32, 64)]
        return sizes[0], sizes[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of one device's vector, masked or not."""
        narrow, wide = self.num_words
        return 4 * narrow + 8 * wide

    def words(self, values: Mapping[str, NDArray[np.integer]]) -> MaskWords:
        """One device's vector; arrays that are not given are zero.

        Raises:
            SecureAggregationError: a value is so large that the devices' sum might not fit, or an array has no place.
        """
        strange = set(values) - {field.name for field in self.fields}
        if strange:
            raise SecureAggregationError(
                f"refinement.contribution: devices send {sorted(strange)[0]!r}, which has no place in a masked vector; "
                "send only what the shipped contributions send, or set secure_aggregation.enabled to false"
            )
        words = MaskWords.zeros(*self.num_words)
        places = {32: 0, 64: 0}
        for field in self.fields:
            start = places[field.bits]
            places[field.bits] = stop = start + field.size
            if field.name not in values:
                continue
            array = np.asarray(values[field.name], np.int64).reshape(-1)
            assert len(array) == field.size, f"{field.name}: {len(array)} values for {field.size} words"
            limit = ((1 << (field.bits - 1)) - 1) // self.devices
            if len(array) and (int(array.max()) > limit or int(array.min()) < -limit):
                raise SecureAggregationError(
                    f"secure_aggregation.word_bits: a device's {field.name} does not fit {field.bits} bits when "
                    f"{self.devices} devices add up; set word_bits to 64, or clip updates"
                )
            part = words.narrow if field.bits == 32 else words.wide
            part[start:stop] = array.astype(part.dtype)
        return words

    def values(self, words: MaskWords) -> Values:
        """The arrays of a sum of vectors, int64."""
        assert (len(words.narrow), len(words.wide)) == self.num_words
        signed = {32: words.narrow.view(np.int32).astype(np.int64), 64: words.wide.view(np.int64)}
        places = {32: 0, 64: 0}
        result: Values = {}
        for field in self.fields:
            start = places[field.bits]
            places[field.bits] = stop = start + field.size
            result[field.name] = signed[field.bits][start:stop].reshape(field.shape)
        return result


def sum_bits(wanted: Literal["auto", 32, 64], devices: int, max_norm: float) -> Bits:
    """Width of the words of block updates: 32 bits if no sum of ``devices`` updates of at most this L2 norm can pass
    them (an update's largest entry is at most its norm; a thousandth more for rounding), else 64.
    """
    if wanted != "auto":
        return wanted
    fits = devices * (1.001 * max_norm * FIXED_POINT + 1) < 2**31 - 1 - devices
    return 32 if fits else 64
