"""Vectors of words modulo 2^32 and 2^64, and the masks that are added to them.

A mask is the key stream of AES-128 in counter mode under a seed that is used for one mask only; the masks of all words
together are as hard to tell from random as the cipher is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

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
        """Return a vector of zeros."""
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
