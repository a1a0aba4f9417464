"""What a device says in a round, as words of fixed number and width, so that its length tells nothing.

A device's row updates are sparse, but which rows it touched is what it hides: it sends a word for every row that its
user group was sent. Integers are two's complement modulo 2^32 or 2^64. The sum over n devices is right as long as each
device's word lies within (2^(bits - 1) - 1) // n of zero, which every device checks of its own before it masks it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import SecureAggregationError
from fl_peel.kernels import FIXED_POINT
from fl_peel.secure.masks import MaskWords

Bits = Literal[32, 64]
Values = dict[str, NDArray[np.int64]]

CHECK = "devices"
"""A word in which every device says 1. The server knows how many devices there are: the sum proves the masks gone."""


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
