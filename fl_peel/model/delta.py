"""What a device is sent to get from what it holds to what a newer model gives it, byte for byte.

A delta is the header of the new artefact under a name of its own, then without gaps

    the ids of all new blocks, in their order, as an artefact has them; the user embedding as far as the new one has it;
    two bits a block: it is held as it is now (0), with other scales (1), or is new (2), four to a byte, lowest first;
    of each block that is held, its place in the old artefact, as wide as an id's numbers;
    scales of blocks that are not held as they are; codes of blocks that are new.

It is never longer than the new artefact: where it would be, it is that artefact.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import number_dtype
from fl_peel.blocks.precision import code_columns, code_dtype, has_scales
from fl_peel.blocks.settings import PRECISIONS, Precision
from fl_peel.blocks.stored import CUT_VERSION, HEADER_BYTES, StoredEmbedding, opened, sealed, user_slices
from fl_peel.blocks.stored import MAGIC as WHOLE
from fl_peel.errors import ArtifactError

MAGIC = b"PEED"
HELD, RESCALED, NEW = 0, 1, 2
_NUMBERS = struct.Struct("<BBBIIHHIII8s")
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
    start = _NUMBERS_AT + _NUMBERS.size
    delta = sealed(MAGIC, whole[_NUMBERS_AT:start], b"".join(part.tobytes() for part in parts), CUT_VERSION)
    return min(delta, whole, key=len)


def applied(old: StoredEmbedding, delta: bytes) -> StoredEmbedding:
    """What the device holds afterwards. Nothing is allocated before the numbers account for every byte.

    Raises:
        ArtifactError: the bytes are no delta, or one of another artefact.
    """
    if delta.startswith(WHOLE):
        return StoredEmbedding.from_bytes(delta)
    read = _DeltaReader(delta)
    place, fields, width, num_items, groups, dim, num_slices, num_blocks, num_pieces, user_group, catalogue = (
        _NUMBERS.unpack(opened(MAGIC, delta, (CUT_VERSION,)))
    )
    if place >= len(PRECISIONS) or min(num_items, groups, dim, num_slices) < 1 or dim % num_slices:
        raise _refused(f"precision number {place}, {dim} columns in {num_slices} slices")
    precision: Precision = PRECISIONS[place]
    dtype = number_dtype(num_items, groups * num_slices)
    if (fields, width) not in ((1, dtype.itemsize), (3, dtype.itemsize)):
        raise _refused(f"{fields} numbers of {width} bytes a block")
    columns = code_columns(dim // num_slices, precision)
    ids = read.array(dtype, num_blocks * fields).astype(np.int64).reshape(num_blocks, fields)
    user = read.array(np.dtype("<f2"), user_slices(ids[:, 0], num_slices) * (dim // num_slices))
    kinds = _unpacked(read.array(np.dtype("u1"), -(-num_blocks // _PER_BYTE)), num_blocks)
    counts = np.ones(num_blocks, np.int64) if fields == 1 else ids[:, 2]
    if (kinds > NEW).any() or int(counts.sum()) != num_pieces:
        raise _refused(f"its {num_blocks} blocks are not {num_pieces} row pieces")
    held = np.flatnonzero(kinds != NEW)
    places = read.array(dtype, len(held)).astype(np.int64)
    fits = old.precision == precision and old.codes.shape[1] == columns and (places < len(old.blocks)).all()
    if len(held) and not (fits and np.array_equal(old.counts[places], counts[held])):
        raise _refused("what it builds on is not held here")
    fresh, rescaled = (int(counts[kinds == kind].sum()) for kind in (NEW, RESCALED))
    scaled = has_scales(precision)
    read.require((2 * (fresh + rescaled) if scaled else 0) + fresh * columns * code_dtype(precision).itemsize)
    of_piece = np.repeat(kinds, counts)
    scales = np.zeros(num_pieces if scaled else 0, np.float16)
    codes = np.zeros((num_pieces, columns), code_dtype(precision))
    ours = _pieces(old, places)
    codes[of_piece != NEW] = old.codes[ours]
    if scaled:
        same = np.repeat(kinds[held] == HELD, counts[held])
        scales[of_piece == HELD] = old.scales[ours[same]]
        scales[of_piece != HELD] = read.array(np.dtype("<f2"), fresh + rescaled)
    codes[of_piece == NEW] = read.array(code_dtype(precision), fresh * columns).reshape(fresh, columns)
    blocks = np.ascontiguousarray(ids[:, 0])
    made = StoredEmbedding(
        num_items,
        groups,
        dim,
        num_slices,
        precision,
        user.astype(np.float16),
        blocks,
        blocks // num_slices if fields == 1 else np.ascontiguousarray(ids[:, 1]),
        counts,
        scales,
        codes,
        fields == 1,
        catalogue,
        user_group,
    )
    return StoredEmbedding.from_bytes(made.to_bytes())  # which looks at everything once more


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


def _unpacked(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    kinds = (packed[:, None] >> (2 * np.arange(_PER_BYTE, dtype=np.uint8))) & 3
    return cast("NDArray[np.uint8]", kinds.reshape(-1)[:count])


@dataclass
class _DeltaReader:
    """The bytes of a delta behind its header, taken one array after the other."""

    data: bytes
    at: int = HEADER_BYTES

    def array(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """The next ``count`` numbers, if there are as many."""
        stop = self.at + dtype.itemsize * count
        if stop > len(self.data):
            raise _refused(f"{len(self.data)} bytes, where it speaks of {stop} and more")
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at = stop
        return values

    def require(self, num_bytes: int) -> None:
        """Refuse to go on unless so many bytes are left, no more and no less."""
        if self.at + num_bytes != len(self.data):
            raise _refused(f"{len(self.data)} bytes, where it speaks of {self.at + num_bytes}")


def _refused(why: str) -> ArtifactError:
    return ArtifactError(f"not a delta for what is held here: {why}; ask for it again, or download anew")
