"""The deployable artefact: a personalized elastic embedding (PEE) as stored on one device, and its small runtime.

NumPy only. The file is a valid safetensors file (8 bytes of header length, a JSON header, raw tensors) whose header
is padded to a fixed size, so that stored bytes are linear in the blocks kept::

    stored = HEADER_BYTES + 2 * embedding_dim + sum of BlockLayout.block_bytes over the blocks kept

Tensors: ``user`` F16 (d,), the user embedding; ``ids`` (K,) block numbers, or (K, 3) block number, first catalogue
row and number of rows; ``scales`` F16, one per row piece, for int8 and int4; ``codes``, the row pieces block after
block. Nothing in it is executable.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout, number_dtype
from fl_peel.blocks.precision import Codes, code_columns, code_dtype, dequantize, has_scales, quantize
from fl_peel.blocks.settings import PRECISIONS, Precision
from fl_peel.errors import ArtifactError

HEADER_BYTES = 384
"""Bytes of the length prefix and the padded JSON header."""

_FORMAT = "fl-peel-1"
"""Key of the metadata: its value is "items groups dim slices precision", short so that the header stays small."""

_SAFETENSORS_NAMES = {"<f4": "F32", "<f2": "F16", "|i1": "I8", "|u1": "U8", "<u2": "U16", "<u4": "U32"}
_NUMPY_NAMES = {name: dtype for dtype, name in _SAFETENSORS_NAMES.items()}


def overhead_bytes(embedding_dim: int) -> int:
    """Stored bytes of an artefact that keeps no block: header and fp16 user embedding."""
    return HEADER_BYTES + 2 * embedding_dim


def stored_user(user: NDArray[np.float32]) -> NDArray[np.float32]:
    """The user embedding as the artefact holds it: rounded to fp16."""
    return user.astype(np.float16).astype(np.float32)


def safetensors_header(shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Length prefix and JSON header, padded to HEADER_BYTES, for tensors of these types and shapes."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype.str],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    room = HEADER_BYTES - 8
    assert len(text) <= room, f"safetensors header of {len(text)} bytes does not fit in {room}"
    return struct.pack("<Q", room) + text.ljust(room)


def _read_safetensors(data: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        metadata = dict(header.pop("__metadata__"))
        body = memoryview(data)[8 + length :]
        tensors: dict[str, NDArray[np.generic]] = {}
        covered = 0
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if start != covered:
                raise ValueError(f"{name} does not begin where the tensor before it ends")
            covered = end
            flat = np.frombuffer(body[start:end], dtype=_NUMPY_NAMES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
            if min(entry["shape"], default=0) < 0:
                raise ValueError(f"{name} has shape {entry['shape']}")
        if covered != len(body):
            raise ValueError(f"{len(body)} bytes of tensors where the header says {covered}")
        return tensors, metadata
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise ArtifactError(f"not a stored elastic embedding ({error}); write it again with to_bytes()") from error


@dataclass(frozen=True)
class StoredEmbedding:
    """What lies on the device.

    user: (d,) fp16; blocks: (K,) block numbers; starts, counts: (K,) catalogue rows of each block;
    scales: (T,) or empty; codes: (T, columns), the T row pieces block after block.
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

    @staticmethod
    def build(
        layout: BlockLayout,
        precision: Precision,
        user: NDArray[np.float32],
        blocks: NDArray[np.integer],
        table: NDArray[np.float32],
    ) -> StoredEmbedding:
        """Keep ``blocks`` (K,) of ``table`` (I, d) for one user (d,)."""
        items, slices, _ = layout.block_rows(blocks)
        pieces = table.reshape(layout.num_items, layout.num_slices, layout.slice_dim)[items, slices]  # (T, s)
        return StoredEmbedding.of_pieces(layout, precision, user, blocks, pieces)

    @staticmethod
    def of_pieces(
        layout: BlockLayout,
        precision: Precision,
        user: NDArray[np.float32],
        blocks: NDArray[np.integer],
        pieces: NDArray[np.float32],
    ) -> StoredEmbedding:
        """Keep ``blocks`` (K,) whose row pieces (T, s) lie block after block, for one user (d,)."""
        codes, scales = quantize(pieces, precision)
        groups = blocks.astype(np.int64) // layout.num_slices
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
        )

    def to_bytes(self) -> bytes:
        """The file's content. Its length is what counts against the budget."""
        dtype = number_dtype(self.num_items, self.num_item_groups * self.num_slices)
        ids = self.blocks if self.single else np.stack([self.blocks, self.starts, self.counts], axis=1)
        tensors: dict[str, NDArray[np.generic]] = {"user": self.user.astype("<f2"), "ids": ids.astype(dtype)}
        if has_scales(self.precision):
            tensors["scales"] = self.scales.astype("<f2")
        tensors["codes"] = self.codes.astype(code_dtype(self.precision))
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        numbers = (self.num_items, self.num_item_groups, self.embedding_dim, self.num_slices)
        metadata = {_FORMAT: f"{' '.join(map(str, numbers))} {self.precision}"}
        return safetensors_header(shapes, metadata) + b"".join(tensor.tobytes() for tensor in tensors.values())

    @staticmethod
    def from_bytes(data: bytes) -> StoredEmbedding:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ArtifactError: the bytes are not a stored elastic embedding.
        """
        tensors, metadata = _read_safetensors(data)
        try:
            *numbers, name = metadata[_FORMAT].split(" ")
            num_items, groups, dim, num_slices = map(int, numbers)
            precision: Precision = next(known for known in PRECISIONS if known == name)
            if min(num_items, groups, dim, num_slices) < 1 or dim % num_slices:
                raise ValueError(f"{dim} columns in {num_slices} slices")
            ids = tensors["ids"]
            if ids.dtype.kind != "u" or ids.ndim not in (1, 2) or ids.shape[1:] not in ((), (3,)):
                raise ValueError(f"ids of {ids.dtype} {ids.shape}")
            single = ids.ndim == 1
            columns = (ids, ids // num_slices, np.ones_like(ids)) if single else ids.T
            blocks, starts, counts = (np.ascontiguousarray(column, np.int64) for column in columns)
            if (blocks >= groups * num_slices).any() or (starts + counts > num_items).any():
                raise ValueError(f"a block beyond {groups} item groups, {num_slices} slices, {num_items} items")
            num_pieces = int(counts.sum())
            scale_shape = (num_pieces,) if has_scales(precision) else (0,)
            expected = {
                "user": (np.dtype("<f2"), (dim,)),
                "scales": (np.dtype("<f2"), scale_shape),
                "codes": (code_dtype(precision), (num_pieces, code_columns(dim // num_slices, precision))),
            }
            if not has_scales(precision):
                tensors["scales"] = np.zeros(0, np.float16)
            for name, (dtype, shape) in expected.items():
                if (tensors[name].dtype, tensors[name].shape) != (dtype, shape):
                    raise ValueError(f"{name} of {tensors[name].dtype} {tensors[name].shape}, not {dtype} {shape}")
        except (KeyError, ValueError, AttributeError, StopIteration) as error:
            raise ArtifactError(
                f"stored elastic embedding contradicts itself ({type(error).__name__} {error}); write it again"
            ) from error
        return StoredEmbedding(
            num_items,
            groups,
            dim,
            num_slices,
            precision,
            cast(NDArray[np.float16], tensors["user"]),
            blocks,
            starts,
            counts,
            cast(NDArray[np.float16], tensors["scales"]),
            cast(Codes, tensors["codes"]),
            single,
        )

    def scores(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Catalogue rows with at least one block here (R,), ascending, and their scores (R,).

        Masked concatenation: only the slices present contribute, each with its own slice of the user embedding.
        """
        slice_dim = self.embedding_dim // self.num_slices
        pieces = dequantize(self.codes, self.scales, self.precision, slice_dim)  # (T, s)
        place = np.repeat(np.arange(len(self.blocks)), self.counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        rows = self.starts[place] + within
        users = self.user.astype(np.float32).reshape(self.num_slices, slice_dim)
        partial = np.einsum("ts,ts->t", pieces, users[(self.blocks % self.num_slices)[place]])
        present, inverse = np.unique(rows, return_inverse=True)
        total = np.bincount(inverse, weights=partial, minlength=len(present))
        return present, total.astype(np.float32)

    def top_n(self, n: int, exclude_rows: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """The n best catalogue rows, best first (ties: smaller row first), without ``exclude_rows``."""
        rows, scores = self.scores()
        if exclude_rows is not None and len(exclude_rows):
            keep = ~np.isin(rows, exclude_rows)
            rows, scores = rows[keep], scores[keep]
        return rows[np.lexsort((rows, -scores))[:n]]
