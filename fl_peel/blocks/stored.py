"""The deployable artefact: a personalized elastic embedding (PEE) as stored on one device, and its small runtime.

NumPy only. The file is a header of 44 bytes (little endian, with a checksum) and four arrays in a fixed order::

    stored = HEADER_BYTES + 2 * user columns + sum of BlockLayout.block_bytes over the blocks kept

Arrays: the user embedding, fp16, up to the last slice that a block has (and at least the first); the blocks (K,), each
by its number, or by number, first catalogue row and number of rows; fp16 scales, one per row piece, for int8 and int4;
codes, the row pieces block after block. That is all a device keeps of the model: to grow, it asks for what follows its
last block in its user group's list. Nothing in it is executable. docs/artefact.md has every byte.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import (
    BlockLayout,
    Codes,
    code_columns,
    code_dtype,
    dequantize,
    has_scales,
    number_dtype,
    quantize,
    row_bytes,
)
from fl_peel.errors import ArtifactError
from fl_peel.scenario.settings import PRECISIONS, Precision

HEADER_BYTES = 44
"""Bytes of the header, checksum included."""

VERSION = 2
"""Version of the format. Version 1 was a safetensors file with a header of 384 bytes."""

CUT_VERSION = 3
"""Version of an artefact without the last columns of the user embedding, which no block has; else as version 2."""

_START = struct.Struct("<4sB")
_CHECKSUM = struct.Struct("<I")
_NUMBERS_END = HEADER_BYTES - _CHECKSUM.size


def sealed(magic: bytes, numbers: bytes, content: bytes, version: int = VERSION) -> bytes:
    """Return the bytes of a file. magic: 4 bytes; numbers: the header's 35 bytes between version and checksum; content:
    the bytes after the header.
    """
    start = _START.pack(magic, version) + numbers
    assert len(start) == _NUMBERS_END, f"{len(start)} bytes of header, not {_NUMBERS_END}"
    return start + _CHECKSUM.pack(zlib.crc32(content, zlib.crc32(start))) + content


def opened(magic: bytes, data: bytes, versions: tuple[int, ...] = (VERSION,)) -> bytes:
    """Return the 35 bytes between version and checksum of a file that :func:`sealed` made, in one of these versions.

    Raises:
        ArtifactError: too short, of another kind or version, or damaged.
    """
    if len(data) < HEADER_BYTES:
        raise refused(f"{len(data)} bytes, where the header alone has {HEADER_BYTES}")
    start, version = _START.unpack_from(data)
    if start != magic:
        raise refused(f"it begins with {start!r}, not {magic!r}")
    if version not in versions:
        raise refused(f"format {version}, where this release reads {' and '.join(map(str, versions))}")
    (checksum,) = _CHECKSUM.unpack_from(data, _NUMBERS_END)
    if zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[:_NUMBERS_END])) != checksum:
        raise refused("its checksum does not match: it was cut off or changed")
    return data[_START.size : _NUMBERS_END]


def refused(why: str) -> ArtifactError:
    """Return the error for a file that is not what it claims to be."""
    return ArtifactError(f"not a stored embedding: {why}; write it again with to_bytes()")


MAGIC = b"PEEL"

_NUMBERS = struct.Struct("<BBBIIHHIII8s")
"""Precision, numbers per block, bytes per number, items, item groups, columns, slices, blocks, row pieces, user group,
catalogue.
"""


def overhead_bytes(user_columns: int) -> int:
    """Stored bytes of an artefact besides its blocks: header and fp16 user embedding, of so many columns."""
    return HEADER_BYTES + user_bytes(user_columns)


def user_bytes(user_columns: int) -> int:
    """Stored bytes of a user embedding, fp16."""
    return 2 * user_columns


def user_slices(blocks: NDArray[np.integer], num_slices: int) -> int:
    """Return the slices of the user embedding that are stored with these blocks (K,): up to the last that any has."""
    return 1 + int((blocks % num_slices).max(initial=0))


def stored_user(user: NDArray[np.float32]) -> NDArray[np.float32]:
    """The user embedding as the artefact holds it: rounded to fp16."""
    return user.astype(np.float16).astype(np.float32)


@dataclass(frozen=True)
class StoredEmbedding:
    """What lies on the device.

    user: fp16, (d,) or less, see :func:`user_slices`; blocks: (K,) block numbers; starts, counts: (K,) catalogue rows
    of each block; scales: (T,) or empty; codes: (T, columns), the T row pieces block after block; catalogue: digest of
    the items' groups, see :attr:`fl_peel.blocks.layout.BlockLayout.digest`; user_group: whose list it grows from.
    """

    num_items: int
    num_item_groups: int
    embedding_dim: int
    num_slices: int
    precision: Precision
    user: NDArray[np.float16]
    blocks: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    scales: NDArray[np.float16]
    codes: Codes
    single: bool
    catalogue: bytes
    user_group: int = 0

    @staticmethod
    def build(
        layout: BlockLayout,
        precision: Precision,
        user: NDArray[np.float32],
        blocks: NDArray[np.integer],
        table: NDArray[np.float32],
        user_group: int = 0,
    ) -> StoredEmbedding:
        """Keep ``blocks`` (K,) of ``table`` (I, d) for one user (d,)."""
        items, slices, _ = layout.block_rows(blocks)
        pieces = table.reshape(layout.num_items, layout.num_slices, layout.slice_dim)[items, slices]  # (T, s)
        return StoredEmbedding.from_pieces(layout, precision, user, blocks, pieces, user_group)

    @staticmethod
    def from_pieces(
        layout: BlockLayout,
        precision: Precision,
        user: NDArray[np.float32],
        blocks: NDArray[np.integer],
        pieces: NDArray[np.float32],
        user_group: int = 0,
    ) -> StoredEmbedding:
        """Keep ``blocks`` (K,) whose row pieces (T, s) lie block after block, for one user (d,)."""
        codes, scales = quantize(pieces, precision)
        groups = blocks.astype(np.int64) // layout.num_slices
        user = user[: user_slices(blocks, layout.num_slices) * layout.slice_dim]
        return StoredEmbedding(
            layout.num_items,
            layout.num_item_groups,
            layout.embedding_dim,
            layout.num_slices,
            precision,
            user.astype(np.float16),
            blocks.astype(np.int64),
            layout.group_starts[groups],
            layout.group_sizes[groups],
            scales,
            codes,
            layout.is_single,
            layout.digest,
            user_group,
        )

    def to_bytes(self) -> bytes:
        """The file's content. Its length is what counts against the budget.

        Raises:
            ArtifactError: a number is too large for its field of the header.
        """
        dtype = number_dtype(self.num_items, self.num_item_groups * self.num_slices)
        try:
            numbers = _NUMBERS.pack(
                PRECISIONS.index(self.precision),
                1 if self.single else 3,
                dtype.itemsize,
                self.num_items,
                self.num_item_groups,
                self.embedding_dim,
                self.num_slices,
                len(self.blocks),
                len(self.codes),
                self.user_group,
                self.catalogue,
            )
        except struct.error as error:
            raise ArtifactError(
                f"too large to be stored on a device ({error}); keep fewer or smaller blocks"
            ) from error
        ids = self.blocks if self.single else np.stack([self.blocks, self.starts, self.counts], axis=1)
        arrays: list[NDArray[np.generic]] = [self.user.astype("<f2"), ids.astype(dtype)]
        if has_scales(self.precision):
            arrays.append(self.scales.astype("<f2"))
        arrays.append(self.codes.astype(code_dtype(self.precision)))
        content = b"".join(array.tobytes() for array in arrays)
        return sealed(MAGIC, numbers, content, VERSION if len(self.user) == self.embedding_dim else CUT_VERSION)

    @staticmethod
    def from_bytes(data: bytes) -> StoredEmbedding:
        """Read what :meth:`to_bytes` wrote. Nothing is allocated before the header's numbers account for every byte.

        Raises:
            ArtifactError: the bytes are not a stored elastic embedding.
        """
        numbers = _NUMBERS.unpack(opened(MAGIC, data, (VERSION, CUT_VERSION)))
        place, fields, width, num_items, groups, dim, num_slices, num_blocks, num_pieces, user_group, catalogue = (
            numbers
        )
        if place >= len(PRECISIONS):
            raise refused(f"precision number {place}")
        precision = PRECISIONS[place]
        if min(num_items, groups, dim, num_slices) < 1 or dim % num_slices:
            raise refused(f"{num_items} items, {groups} item groups, {dim} columns in {num_slices} slices")
        dtype, single = number_dtype(num_items, groups * num_slices), fields == 1
        if (fields, width) not in ((1, dtype.itemsize), (3, dtype.itemsize)) or (single and groups != num_items):
            raise refused(f"{fields} numbers of {width} bytes a block, {groups} item groups of {num_items} items")
        row = row_bytes(dim // num_slices, precision)
        kept = num_blocks * fields * width + num_pieces * row
        cut = data[_START.size - 1] == CUT_VERSION
        user_columns = (len(data) - kept - HEADER_BYTES) // 2 if cut else dim
        wanted = overhead_bytes(user_columns) + kept
        if len(data) != wanted or not 0 < user_columns <= dim - cut:
            raise refused(f"{len(data)} bytes, where its header speaks of {overhead_bytes(dim) + kept}{' less' * cut}")
        columns = code_columns(dim // num_slices, precision)
        user, flat_ids, scales, flat_codes = _arrays(
            data,
            (np.dtype("<f2"), user_columns),
            (dtype, num_blocks * fields),
            (np.dtype("<f2"), num_pieces if has_scales(precision) else 0),
            (code_dtype(precision), num_pieces * columns),
        )
        floats = [array for array in (user, scales, flat_codes) if array.dtype.kind == "f"]
        if not all(np.isfinite(array).all() for array in floats):
            raise refused("some of its numbers are not finite")
        ids = flat_ids.astype(np.int64).reshape(num_blocks, fields)
        blocks = np.ascontiguousarray(ids[:, 0])
        starts, counts = (blocks // num_slices, np.ones_like(blocks)) if single else (ids[:, 1], ids[:, 2])
        if (blocks >= groups * num_slices).any() or (starts + counts > num_items).any():
            raise refused(f"a block beyond {groups} item groups, {num_slices} slices, {num_items} items")
        if cut and user_columns != user_slices(blocks, num_slices) * (dim // num_slices):
            raise refused(f"{user_columns} columns of the user embedding, not those that its blocks have")
        if len(np.unique(blocks)) < num_blocks or (counts < 1).any() or int(counts.sum()) != num_pieces:
            raise refused(f"its {num_blocks} blocks are not {num_pieces} row pieces of different blocks")
        if not _rows_agree(blocks // num_slices, starts, counts):
            raise refused("its blocks do not agree on which rows an item group has")
        return StoredEmbedding(
            num_items,
            groups,
            dim,
            num_slices,
            precision,
            user,
            blocks,
            np.ascontiguousarray(starts),
            np.ascontiguousarray(counts),
            scales,
            flat_codes.reshape(num_pieces, columns),
            single,
            catalogue,
            user_group,
        )

    def scores(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Catalogue rows with at least one block here (R,), ascending, and their scores (R,).

        Masked concatenation: only the slices present contribute, each with its own slice of the user embedding. It is
        added up in double, column by column and then slice by slice, so that every reader gets the same bits.
        """
        slice_dim = self.embedding_dim // self.num_slices
        pieces = dequantize(self.codes, self.scales, self.precision, slice_dim)  # (T, s)
        place = np.repeat(np.arange(len(self.blocks)), self.counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        rows, slices = self.starts[place] + within, (self.blocks % self.num_slices)[place]
        users = self.user.astype(np.float64).reshape(-1, slice_dim)
        products = pieces * users[slices]  # (T, s)
        partial = np.cumsum(products, axis=1, out=products)[:, -1]  # np.sum has an order of its own
        present, inverse = np.unique(rows, return_inverse=True)
        by_slice = np.argsort(slices, kind="stable")
        total = np.bincount(inverse[by_slice], weights=partial[by_slice], minlength=len(present))
        with np.errstate(over="ignore"):  # of fp32 codes a score may be infinite: it still has its place
            return present, total.astype(np.float32)

    def top_n(self, n: int, exclude_rows: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """The n best catalogue rows, best first (ties: smaller row first), without ``exclude_rows``."""
        rows, scores = self.scores()
        if exclude_rows is not None and len(exclude_rows):
            keep = ~np.isin(rows, exclude_rows)
            rows, scores = rows[keep], scores[keep]
        return rows[np.lexsort((rows, -scores))[:n]]


def _rows_agree(groups: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]) -> bool:
    """Whether blocks of one item group have the same rows, and those of the next group later ones."""
    order = np.argsort(groups, kind="stable")
    groups, starts, ends = groups[order], starts[order], (starts + counts)[order]
    same = groups[1:] == groups[:-1]
    alike = (starts[1:] == starts[:-1]) & (ends[1:] == ends[:-1])
    return bool(np.where(same, alike, starts[1:] >= ends[:-1]).all())


def _arrays(data: bytes, *parts: tuple[np.dtype[Any], int]) -> list[NDArray[Any]]:
    """Arrays of these types and lengths, one after the other behind the header of a file whose length was checked."""
    sizes = [dtype.itemsize * count for dtype, count in parts]
    places = HEADER_BYTES + np.cumsum([0, *sizes[:-1]])
    return [np.frombuffer(data, dtype, count, at) for (dtype, count), at in zip(parts, places.tolist(), strict=True)]
