"""BlockLayout: how the item table is cut into embedding blocks, and what a block costs.

An embedding block is (item group g, slice n): the rows of g restricted to the columns of slice n (PEEL, section
III). It is the unit that is kept, sent and dropped. Its number is ``g * num_slices + n``.

Catalogue order: items are listed group by group, so that a group is one range of *catalogue rows* and a device can
store it as (start, count). With one item per group the catalogue order is the item order and the group number alone
says which row it is.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.errors import ScenarioError
from fl_peel.scenario.settings import Precision


def number_dtype(num_items: int, num_blocks: int) -> np.dtype[np.unsignedinteger]:
    """Smallest of uint16 and uint32 that holds every block number, catalogue row and count of rows."""
    return np.dtype("<u2") if max(num_blocks, num_items) < 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class BlockLayout:
    """Item groups x slices.

    item_group: (I,) int32, the item group of each item, numbered 0..G-1, none empty.
    embedding_dim: columns of the table, d; num_slices: S, a divisor of d.
    """

    item_group: NDArray[np.int32]
    embedding_dim: int
    num_slices: int

    def __post_init__(self) -> None:
        if self.num_slices < 1 or self.embedding_dim % self.num_slices:
            raise ScenarioError(
                f"blocks.num_slices: {self.num_slices} does not divide embedding_dim {self.embedding_dim}; "
                "choose a divisor"
            )
        assert self.group_sizes.min() > 0, "empty item group"

    @property
    def num_items(self) -> int:
        """Rows of the table, I."""
        return len(self.item_group)

    @cached_property
    def group_sizes(self) -> NDArray[np.int64]:
        """Items per item group, shape (G,)."""
        return np.bincount(self.item_group).astype(np.int64)

    @property
    def num_item_groups(self) -> int:
        """Item groups, G."""
        return len(self.group_sizes)

    @property
    def num_blocks(self) -> int:
        """Blocks, G x S."""
        return self.num_item_groups * self.num_slices

    @property
    def slice_dim(self) -> int:
        """Columns of one block, d / S."""
        return self.embedding_dim // self.num_slices

    @property
    def full_table_bytes(self) -> int:
        """Bytes of the full item table in fp32, the whole of which a budget is a share."""
        return 4 * self.num_items * self.embedding_dim

    @cached_property
    def catalogue(self) -> NDArray[np.int32]:
        """Item at each catalogue row, shape (I,): items sorted by group, by number within a group."""
        return np.argsort(self.item_group, kind="stable").astype(np.int32)

    @cached_property
    def row_in_catalogue(self) -> NDArray[np.int32]:
        """Catalogue row of each item, shape (I,)."""
        rows = np.empty(self.num_items, np.int32)
        rows[self.catalogue] = np.arange(self.num_items, dtype=np.int32)
        return rows

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes that tell catalogues apart: BLAKE2b of each item's group, as 32-bit little-endian integers."""
        return hashlib.blake2b(self.item_group.astype("<i4").tobytes(), digest_size=8).digest()

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First catalogue row of each group, shape (G + 1,)."""
        return np.concatenate([[0], np.cumsum(self.group_sizes)])

    @cached_property
    def is_single(self) -> bool:
        """Whether every item is a group of its own, in item order."""
        return self.num_item_groups == self.num_items and bool((self.catalogue == np.arange(self.num_items)).all())

    @cached_property
    def id_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type in which the numbers that identify a block are stored."""
        return number_dtype(self.num_items, self.num_blocks)

    @property
    def id_bytes(self) -> int:
        """Bytes that identify a stored block: its number, and for groups of items also (start, count)."""
        return (1 if self.is_single else 3) * self.id_dtype.itemsize

    def block_bytes(self, precision: Precision) -> NDArray[np.int64]:
        """Stored bytes of every block, shape (num_blocks,), read-only: identification, scales and codes."""
        if precision not in self._bytes_in:
            per_group = self.id_bytes + self.group_sizes * row_bytes(self.slice_dim, precision)
            stored = np.repeat(per_group, self.num_slices)
            stored.flags.writeable = False
            self._bytes_in[precision] = stored
        return self._bytes_in[precision]

    @cached_property
    def _bytes_in(self) -> dict[Precision, NDArray[np.int64]]:
        """What :meth:`block_bytes` was asked for: by every list that is packed or read."""
        return {}

    def num_rows(self, blocks: NDArray[np.integer]) -> int:
        """Items with a block among these."""
        there = np.zeros(self.num_item_groups, np.bool_)
        there[blocks // self.num_slices] = True
        return int(np.count_nonzero(there) if self.is_single else self.group_sizes[there].sum())

    def block_rows(self, blocks: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Spell out blocks (K,) as the row pieces they hold, block after block.

        Returns (item, slice, place), each (T,), T the number of row pieces: the piece is the slice of that item's
        row, and belongs to ``blocks[place]``.
        """
        groups = blocks.astype(np.int64) // self.num_slices
        sizes = self.group_sizes[groups]
        place = np.repeat(np.arange(len(blocks)), sizes)
        within = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        items = self.catalogue[self.group_starts[groups][place] + within].astype(np.int64)
        return items, (blocks.astype(np.int64) % self.num_slices)[place], place


def budget_bytes(layout: BlockLayout, share: float) -> int:
    """Bytes of a share of the fp32 full item table."""
    return share_bytes(layout.full_table_bytes, share)


def share_bytes(full_table_bytes: int, share: float) -> int:
    """The same where there is no layout yet; a share that is meant to be whole bytes does not lose one."""
    return math.floor(share * full_table_bytes + 1e-6)


# ---- Block precision: how the numbers of an embedding block are stored
# ``fp32`` and ``fp16`` store floats. ``int8`` and ``int4`` are symmetric per-row quantization: a row of a block is
# ``scale * codes`` with one fp16 scale; two int4 codes share a byte. The int8 scale maps the row's largest magnitude
# to the largest code; the int4 scale is the one of a few candidates with the least squared error, since with 15
# levels clipping a lone large value costs less than a coarse grid.


SCALE_BYTES = 2
"""Bytes of the fp16 scale that each row of an int8 or int4 block carries."""

_CLIPS = {"int8": (1.0,), "int4": (1.0, 0.9, 0.8, 0.7)}
"""Candidates for the largest magnitude that a code stands for, of a row's own."""
_MAX_CODE = {"int8": 127, "int4": 7}

Codes = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int8] | NDArray[np.uint8]


def has_scales(precision: Precision) -> bool:
    """Whether rows of this precision carry a scale."""
    return precision in _MAX_CODE


def row_bytes(num_dims: int, precision: Precision) -> int:
    """Bytes of one row of a block of ``num_dims`` columns: its codes and, if any, its scale."""
    match precision:
        case "fp32":
            return 4 * num_dims
        case "fp16":
            return 2 * num_dims
        case "int8":
            return num_dims + SCALE_BYTES
        case "int4":
            return (num_dims + 1) // 2 + SCALE_BYTES


def code_dtype(precision: Precision) -> np.dtype[np.generic]:
    """NumPy type in which codes are stored (int4 packs two codes in a uint8)."""
    return np.dtype({"fp32": "<f4", "fp16": "<f2", "int8": "i1", "int4": "u1"}[precision])


def code_columns(num_dims: int, precision: Precision) -> int:
    """Columns of the code array of a block of ``num_dims`` columns."""
    return (num_dims + 1) // 2 if precision == "int4" else num_dims


def integer_scales(largest: NDArray[np.float32], precision: Precision) -> NDArray[np.float16]:
    """Scale of each row (R,) whose largest magnitude is ``largest`` (R,), for int8 or int4.

    Raises:
        ScenarioError: a magnitude is not finite, or too large for an fp16 scale.
    """
    max_code = _MAX_CODE[precision]
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (largest / max_code).astype(np.float16)  # (R,)
    if not np.isfinite(scales).all():
        raise _unstorable(precision)
    # a tiny scale has few bits: where rounding made it so small that codes would be cut by more than half a step,
    # take the next one
    short = largest > (max_code + 0.5) * scales.astype(np.float32)
    scales[short] = np.nextafter(scales[short], np.float16(np.inf))
    return scales


def scale_divisors(scales: NDArray[np.float16]) -> NDArray[np.float32]:
    """What rows are divided by to get their codes, (R,): 1 for a row of zeros."""
    return np.where(scales > 0, scales, np.float16(1)).astype(np.float32)


def _unstorable(precision: Precision) -> ScenarioError:
    return ScenarioError(
        f"embeddings hold values that are not finite or too large, so that they cannot be stored as {precision}: "
        "training diverged; lower the learning rates"
    )


def quantize(
    rows: NDArray[np.float32], precision: Precision, index: NDArray[np.int64] | None = None
) -> tuple[Codes, NDArray[np.float16]]:
    """Encode rows (R, s): codes (R, code_columns) and scales (R,), the latter empty for floats. index: (T,) of the rows
    to encode, None for all.

    Raises:
        ScenarioError: a value is not finite, or too large for fp16 or an fp16 scale.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if precision in ("fp32", "fp16"):
        rows = rows if index is None else rows[index]
        with np.errstate(over="ignore"):
            floats = rows if precision == "fp32" else rows.astype(np.float16)
        if not np.isfinite(floats).all():
            raise _unstorable(precision)
        return floats, np.zeros(0, np.float16)
    index = np.arange(len(rows)) if index is None else index
    codes, scales = _integer_codes(rows, index, precision)
    if precision == "int8":
        return codes, scales
    if codes.shape[1] % 2:
        codes = np.concatenate([codes, np.zeros((len(codes), 1), np.int8)], axis=1)
    nibbles = (codes + 8).view(np.uint8)  # -7..7 -> 1..15
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scales


def _integer_codes(
    rows: NDArray[np.float32], index: NDArray[np.int64], precision: Precision
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return the codes (T, s) and scales (T,) of some rows, of all candidates' those with the least squared error."""
    largest, error, least = np.empty((3, len(index)), np.float32)
    codes, scales = np.empty((len(index), rows.shape[1]), np.int8), np.empty(len(index), np.float16)
    kernels.largest_magnitudes(rows, index, largest)
    least[:] = np.inf
    for clip in _CLIPS[precision]:
        with np.errstate(invalid="ignore"):  # what is no number is refused by its scale
            other_scales, other = integer_scales(largest * clip, precision), np.empty_like(codes)
        most = np.float32(_MAX_CODE[precision])
        kernels.encode_integers(rows, index, scale_divisors(other_scales), most, other)
        if len(_CLIPS[precision]) == 1:
            return other, other_scales
        kernels.coding_errors(rows, index, other, other_scales.astype(np.float32), error)
        better = error < least
        codes[better], scales[better], least[better] = other[better], other_scales[better], error[better]
    return codes, scales


def dequantize(codes: Codes, scales: NDArray[np.float16], precision: Precision, num_dims: int) -> NDArray[np.float32]:
    """Decode to rows (R, num_dims) float32: exactly what the device computes with."""
    if precision in ("fp32", "fp16"):
        return codes.astype(np.float32)
    if precision == "int4":
        packed = codes.astype(np.uint8)
        wide = np.empty((len(packed), 2 * packed.shape[1]), np.int8)
        wide[:, 0::2] = (packed & 15).astype(np.int8) - 8
        wide[:, 1::2] = (packed >> 4).astype(np.int8) - 8
        codes = wide[:, :num_dims]
    return codes.astype(np.float32) * scales[:, None].astype(np.float32)
