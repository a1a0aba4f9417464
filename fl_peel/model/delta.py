"""What a device is sent to get from what it holds to what a newer model gives it, byte for byte.

A delta is the header of the new artefact under a name of its own, then without gaps

    the ids of all new blocks, in their order, as an artefact has them; the user embedding as far as the new one has it;
    two bits a block: it is held as it is now (0), with other scales (1), or is new (2), four to a byte, lowest first;
    of each block that is held, its place in the old artefact, as wide as an id's numbers;
    scales of blocks that are not held as they are; codes of blocks that are new.

It is never longer than the new artefact: where it would be, it is that artefact. ``tests/helpers/deltas.py`` reads one.
"""

from __future__ import annotations

import struct
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import number_dtype
from fl_peel.blocks.precision import code_dtype, has_scales
from fl_peel.blocks.stored import CUT_VERSION, StoredEmbedding, sealed

MAGIC = b"PEED"
HELD, RESCALED, NEW = 0, 1, 2
NUMBERS = struct.Struct("<BBBIIHHIII8s")
"""As of an artefact: precision, numbers per block, bytes per number, items, item groups, columns, slices, blocks, row
pieces, user group, catalogue.
"""
_NUMBERS_AT = 5
_PER_BYTE = 4


def delta_of(old: StoredEmbedding, new: StoredEmbedding, places: NDArray[np.int64]) -> bytes:
    """What leads from one to the other. places: (K,) of the new one's blocks in the old one, -1 for those not there."""
    whole = new.to_bytes()
    dtype = number_dtype(new.num_items, new.num_item_groups * new.num_slices)
    kinds = _kinds(old, new, places)
    held = kinds != NEW
    of_piece = np.repeat(kinds, new.counts)
    parts = [
        _ids(new, dtype),
        new.user.astype("<f2"),
        _packed(kinds),
        places[held].astype(dtype),
        new.scales[of_piece != HELD].astype("<f2") if has_scales(new.precision) else new.scales,
        new.codes[of_piece == NEW].astype(code_dtype(new.precision)),
    ]
    start = _NUMBERS_AT + NUMBERS.size
    delta = sealed(MAGIC, whole[_NUMBERS_AT:start], b"".join(part.tobytes() for part in parts), CUT_VERSION)
    return min(delta, whole, key=len)


def _kinds(old: StoredEmbedding, new: StoredEmbedding, places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What becomes of each new block, (K,)."""
    kinds = np.full(len(new.blocks), NEW, np.uint8)
    if old.precision != new.precision or old.codes.shape[1] != new.codes.shape[1]:
        return kinds
    there = np.flatnonzero(places >= 0)
    there = there[old.counts[places[there]] == new.counts[there]]
    if not len(there):
        return kinds
    mine, theirs = _pieces(new, there), _pieces(old, places[there])
    starts = np.cumsum(new.counts[there]) - new.counts[there]
    same_codes = np.logical_and.reduceat((new.codes[mine] == old.codes[theirs]).all(axis=1), starts)
    kinds[there[same_codes]] = HELD
    if has_scales(new.precision):
        same_scales = np.logical_and.reduceat(new.scales[mine] == old.scales[theirs], starts)
        kinds[there[same_codes & ~same_scales]] = RESCALED
    return kinds


def _pieces(stored: StoredEmbedding, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the row pieces of the blocks at these places (K,) lie, (T,)."""
    starts, counts = np.cumsum(stored.counts) - stored.counts, stored.counts[places]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(np.repeat(starts[places], counts) + within, np.int64)


def _ids(stored: StoredEmbedding, dtype: np.dtype[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    ids = stored.blocks if stored.single else np.stack([stored.blocks, stored.starts, stored.counts], axis=1)
    return ids.astype(dtype)


def _packed(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.zeros(-(-len(kinds) // _PER_BYTE) * _PER_BYTE, np.uint8)
    padded[: len(kinds)] = kinds
    shifted = padded.reshape(-1, _PER_BYTE) << (2 * np.arange(_PER_BYTE, dtype=np.uint8))
    return cast("NDArray[np.uint8]", np.bitwise_or.reduce(shifted, axis=1))
