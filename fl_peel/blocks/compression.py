"""Item tables that are not elastic, as files: fewer dimensions, two factors, or single entries that were not pruned.

For the rivals that PEEL is compared with. Each is a file with a header as long as that of an elastic embedding
(:mod:`fl_peel.blocks.stored`), the user embedding in fp16 and everything a device needs to rank; its length is what
counts against the budget. What a device computes with is what it decodes from there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import Codes, code_dtype, dequantize, has_scales, quantize, row_bytes
from fl_peel.blocks.stored import HEADER_BYTES, sealed
from fl_peel.scenario.settings import PRECISIONS, Precision

FloatArray = NDArray[np.float32]
Encoding = Literal["pairs", "counts", "rows", "bitmap"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

MAGIC = b"PEER"
KINDS = ("dense", "factors", *ENCODINGS, "quantized", "hashed-add", "hashed-multiply", "residual")
"""First words of :attr:`StoredTable.kind`, by their number in the header."""

_NUMBERS = struct.Struct("<BBB8I")
"""Kind, precision, how many numbers follow, and these; zeros after them."""


class StoredTable(Protocol):
    """An item table as it lies on a device."""

    @property
    def user_dim(self) -> int:
        """Columns of the user embedding beside it."""

    @property
    def kind(self) -> str:
        """What a reader must know besides the tensors: one of KINDS, the precision, and numbers, eight at most. They
        lie in the header.
        """

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything but the user embedding."""

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        """Items that can be ranked (R,), ascending, and their rows (R, user_dim)."""


def stored_bytes(stored: StoredTable) -> int:
    """Length of the file: header, fp16 user embedding, tensors."""
    return HEADER_BYTES + 2 * stored.user_dim + sum(tensor.nbytes for tensor in stored.tensors().values())


def to_bytes(stored: StoredTable, user: FloatArray) -> bytes:
    """The file of one device; user: (user_dim,)."""
    tensors = [user.astype("<f2"), *stored.tensors().values()]
    name, precision, *words = stored.kind.split(" ")
    numbers = [int(word) for word in words]
    padded = numbers + [0] * (8 - len(numbers))
    head = _NUMBERS.pack(KINDS.index(name), list[str](PRECISIONS).index(precision), len(numbers), *padded)
    return sealed(MAGIC, head, b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors))


@dataclass(frozen=True)
class DenseTable:
    """All items, all of ``dim`` columns, one scale a row below fp16. codes: (I, columns); scales: (I,) or empty."""

    precision: Precision
    dim: int
    codes: Codes
    scales: NDArray[np.float16]

    @staticmethod
    def from_table(table: FloatArray, precision: Precision) -> DenseTable:
        """Encode (I, d)."""
        codes, scales = quantize(table, precision)
        return DenseTable(precision, table.shape[1], codes, scales)

    @property
    def user_dim(self) -> int:
        return self.dim

    @property
    def kind(self) -> str:
        return f"dense {self.precision} {self.dim}"

    def tensors(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {"codes": self.codes.astype(code_dtype(self.precision))}
        return tensors | ({"scales": self.scales.astype("<f2")} if has_scales(self.precision) else {})

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        rows = dequantize(self.codes, self.scales, self.precision, self.dim)
        return np.arange(len(rows), dtype=np.int32), rows


def dense_bytes(num_items: int, dim: int, precision: Precision) -> int:
    """Stored bytes of a :class:`DenseTable`."""
    return HEADER_BYTES + 2 * dim + num_items * row_bytes(dim, precision)


def largest_dim(num_items: int, precision: Precision, budget_bytes: int, most: int) -> int:
    """Columns, at most ``most``, of the widest dense table that fits; 0 where not one does."""
    fitting = [dim for dim in range(1, most + 1) if dense_bytes(num_items, dim, precision) <= budget_bytes]
    return fitting[-1] if fitting else 0


@dataclass(frozen=True)
class FactorTable:
    """A table as the product of two: left (I, r), right (r, d), both at the same precision."""

    left: DenseTable
    right: DenseTable

    @property
    def user_dim(self) -> int:
        return self.right.dim

    @property
    def kind(self) -> str:
        """Precision, rank and columns."""
        return f"factors {self.left.precision} {self.left.dim} {self.right.dim}"

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Codes of both factors, and the scales of the one after those of the other."""
        left, right = self.left.tensors(), self.right.tensors()
        tensors: dict[str, NDArray[Any]] = {"left": left["codes"], "right": right["codes"]}
        return tensors | ({"scales": np.concatenate([left["scales"], right["scales"]])} if "scales" in left else {})

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        items, left = self.left.decoded()
        product: FloatArray = left @ self.right.decoded()[1]
        return items, product


def factor_bytes(num_items: int, rank: int, dim: int, precision: Precision) -> int:
    """Stored bytes of a :class:`FactorTable`."""
    return HEADER_BYTES + 2 * dim + num_items * row_bytes(rank, precision) + rank * row_bytes(dim, precision)


def largest_rank(num_items: int, dim: int, precision: Precision, budget_bytes: int) -> int:
    """Rank of the best product that fits; 0 where not even rank 1 does."""
    fitting = [rank for rank in range(1, dim + 1) if factor_bytes(num_items, rank, dim, precision) <= budget_bytes]
    return fitting[-1] if fitting else 0


@dataclass(frozen=True)
class SparseTable:
    """Single entries of an (I, d) table, row by row, in the cheapest of four encodings of where they are.

    pairs: row and column of each entry; counts: entries in each of the I rows, then columns; rows: the rows with any
    entry, entries in each, then columns; bitmap: a bit for each entry of the table. Values: floats, or integers with
    one fp16 scale a column. flat: (K,) int64, ascending, row * d + column; codes: (K,) or int4 pairs; scales: (d,).
    """

    num_items: int
    dim: int
    precision: Precision
    flat: NDArray[np.int64]
    codes: Codes
    scales: NDArray[np.float16]

    @staticmethod
    def from_table(table: FloatArray, kept: NDArray[np.bool_], precision: Precision) -> SparseTable:
        """Encode the entries of (I, d) where ``kept`` (I, d) holds."""
        num_items, dim = table.shape
        flat = np.flatnonzero(kept.ravel()).astype(np.int64)
        values = table.ravel()[flat]
        if not has_scales(precision):
            codes, scales = quantize(values[None, :], precision)
            return SparseTable(num_items, dim, precision, flat, codes[0], scales)
        columns = flat % dim
        most = 127 if precision == "int8" else 7
        largest = np.zeros(dim, np.float32)
        np.maximum.at(largest, columns, np.abs(values))
        scales = (largest / most).astype(np.float16)
        scales = np.where((scales == 0) & (largest > 0), np.float16(6e-8), scales).astype(np.float16)
        divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)[columns]
        whole = np.clip(np.rint(values / divisor), -most, most).astype(np.int8)
        return SparseTable(num_items, dim, precision, flat, _packed(whole) if precision == "int4" else whole, scales)

    @property
    def user_dim(self) -> int:
        return self.dim

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where rows with any entry begin in ``flat``."""
        return np.flatnonzero(np.diff(self.flat // self.dim, prepend=-1))

    @property
    def _in_rows(self) -> NDArray[np.int64]:
        return np.diff(self._starts, append=len(self.flat))

    @cached_property
    def encoding(self) -> Encoding:
        filled = len(self._starts)
        return min(ENCODINGS, key=lambda name: place_bytes(name, len(self.flat), filled, self.num_items, self.dim))

    @property
    def kind(self) -> str:
        """Encoding, precision, shape of the table, entries, rows with any."""
        filled = len(self._starts)
        return f"{self.encoding} {self.precision} {self.num_items} {self.dim} {len(self.flat)} {filled}"

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Where the entries are (in one run of bytes, their parts one after the other), their values, and scales."""
        rows, columns = np.divmod(self.flat, self.dim)
        row_type, column_type = number_type(self.num_items), number_type(self.dim)
        count_type = number_type(self.dim + 1)
        parts: list[NDArray[Any]]
        match self.encoding:
            case "pairs":
                parts = [rows.astype(row_type), columns.astype(column_type)]
            case "counts":
                counts = np.bincount(rows, minlength=self.num_items)
                parts = [counts.astype(count_type), columns.astype(column_type)]
            case "rows":
                filled, counts = rows[self._starts], self._in_rows
                parts = [filled.astype(row_type), counts.astype(count_type), columns.astype(column_type)]
            case "bitmap":
                bits = np.zeros(self.num_items * self.dim, np.bool_)
                bits[self.flat] = True
                parts = [np.packbits(bits)]
        places = np.frombuffer(b"".join(part.tobytes() for part in parts), np.uint8)
        tensors: dict[str, NDArray[Any]] = {"places": places, "codes": self.codes.astype(code_dtype(self.precision))}
        return tensors | ({"scales": self.scales.astype("<f2")} if has_scales(self.precision) else {})

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        """Items with at least one entry; the others are not recommended, like items without any block."""
        rows, columns = np.divmod(self.flat, self.dim)
        if has_scales(self.precision):
            whole = _unpacked(self.codes, len(self.flat)) if self.precision == "int4" else self.codes
            values = whole.astype(np.float32) * self.scales.astype(np.float32)[columns]
        else:
            values = self.codes.astype(np.float32)
        items = rows[self._starts]
        place = np.repeat(np.arange(len(items)), self._in_rows)
        table = np.zeros((len(items), self.dim), np.float32)
        table[place, columns] = values
        return items.astype(np.int32), table


def place_bytes(encoding: Encoding, num_entries: int, filled_rows: int, num_items: int, dim: int) -> int:
    """Bytes that say where ``num_entries`` entries in ``filled_rows`` different rows are."""
    row, column, count = (number_type(most).itemsize for most in (num_items, dim, dim + 1))
    match encoding:
        case "pairs":
            return num_entries * (row + column)
        case "counts":
            return num_items * count + num_entries * column
        case "rows":
            return filled_rows * (row + count) + num_entries * column
        case "bitmap":
            return (num_items * dim + 7) // 8


def sparse_bytes(num_entries: int, filled_rows: int, num_items: int, dim: int, precision: Precision) -> int:
    """Stored bytes of a :class:`SparseTable`, whatever its values."""
    places = min(place_bytes(name, num_entries, filled_rows, num_items, dim) for name in ENCODINGS)
    scales = 2 * dim if has_scales(precision) else 0
    value_bytes = (num_entries + 1) // 2 if precision == "int4" else num_entries * code_dtype(precision).itemsize
    return HEADER_BYTES + 2 * dim + places + scales + value_bytes


def most_entries(order: NDArray[np.int64], num_items: int, dim: int, precision: Precision, budget_bytes: int) -> int:
    """How many of the ranked entries ``order`` (M,), each row * d + column, a sparse table of that budget holds."""
    rows = order[: 2 * budget_bytes] // dim  # no value takes less than half a byte
    place, opened = np.arange(len(rows)), np.empty(num_items, np.int64)
    opened[rows[::-1]] = place[::-1]  # of a row that comes several times the last one stays
    first = opened[rows] == place
    filled = np.concatenate([[0], np.cumsum(first)])  # rows with an entry among the first k
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high + 1) // 2
        if sparse_bytes(middle, int(filled[middle]), num_items, dim, precision) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def number_type(below: int) -> np.dtype[np.unsignedinteger]:
    """Smallest unsigned type that holds 0..below-1."""
    return np.dtype("|u1" if below <= 1 << 8 else "<u2" if below <= 1 << 16 else "<u4")


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes of -7..7 a byte."""
    even = np.concatenate([codes, np.zeros(len(codes) % 2, np.int8)])
    nibbles = (even + 8).astype(np.uint8)
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8)


def _unpacked(packed: Codes, count: int) -> NDArray[np.int8]:
    both = np.empty(2 * len(packed), np.int8)
    narrow = packed.astype(np.uint8)
    both[0::2] = (narrow & 15).astype(np.int8) - 8
    both[1::2] = (narrow >> 4).astype(np.int8) - 8
    return both[:count]
