"""Product quantization: every row of the table is coded by a few short codes.

Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", IEEE TPAMI 2011: the columns are cut into
M parts, each part has a codebook of 2^b centroids (K-means, by faiss), and a row is the b-bit numbers of its nearest
centroid in each part. Items that are not kept are not recommended, like items without any block: what the codebooks
leave of a budget says how many rows are kept, the best first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.compression import number_type
from fl_peel.blocks.precision import Codes, code_dtype, dequantize, has_scales, quantize, row_bytes
from fl_peel.blocks.settings import Precision
from fl_peel.blocks.stored import HEADER_BYTES
from fl_peel.randomness import seed_for
from fl_peel.training.workers import fixed_threads
from strategies.rivals.base import FloatArray, IntArray, Material, Option, Request, Rival, whole_table
from strategies.rivals.table_rivals import narrowed

Order = Literal["popularity", "exposure"]
ITERATIONS, ROWS_PER_CENTROID = 10, 64
"""Iterations of K-means, and its rows per centroid: where there are more rows, it samples that many."""


@dataclass(frozen=True)
class QuantizedTable:
    """items: (n,) ascending, of ``num_items``; packed: (n, M b / 8) uint8, each row's numbers one after the other, low
    bits first; codes, scales: centroids (M 2^b, d / M) at a precision.
    """

    num_items: int
    parts: int
    bits: int
    precision: Precision
    dim: int
    items: NDArray[np.int32]
    packed: NDArray[np.uint8]
    codes: Codes
    scales: NDArray[np.float16]

    @staticmethod
    def from_table(
        table: FloatArray, items: NDArray[np.int32], parts: int, bits: int, precision: Precision, seed: int
    ) -> QuantizedTable:
        """Codebooks of the rows ``items`` (n,) of a table (I, d), n at least 2^bits, and their codes.

        To be called under ``fixed_threads(1)``: sums of several threads arrive in any order.
        """
        rows = np.ascontiguousarray(table[items], np.float32)
        quantizer = faiss.ProductQuantizer(table.shape[1], parts, bits)
        quantizer.cp.seed = seed % (1 << 31)
        quantizer.cp.niter = ITERATIONS
        quantizer.cp.min_points_per_centroid = 1
        quantizer.cp.max_points_per_centroid = ROWS_PER_CENTROID
        quantizer.train(rows)
        centroids = faiss.vector_to_array(quantizer.centroids).reshape(parts << bits, -1)
        codes, scales = quantize(centroids, precision)
        stored = dequantize(codes, scales, precision, centroids.shape[1])
        faiss.copy_array_to_vector(stored.ravel(), quantizer.centroids)  # nearest of what devices decode
        packed = quantizer.compute_codes(rows)
        return QuantizedTable(len(table), parts, bits, precision, table.shape[1], items, packed, codes, scales)

    @property
    def user_dim(self) -> int:
        """Return the number of columns of the table."""
        return self.dim

    @property
    def kind(self) -> str:
        """Precision of the codebooks, shape of the codes, items."""
        return f"quantized {self.precision} {self.parts} {self.bits} {self.num_items} {len(self.items)}"

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Codes, codebooks, and which items are kept."""
        tensors: dict[str, NDArray[Any]] = {
            "rows": self.packed,
            "codes": self.codes.astype(code_dtype(self.precision)),
        }
        if has_scales(self.precision):
            tensors["scales"] = self.scales.astype("<f2")
        if len(self.items) < self.num_items:
            tensors["places"] = self._places
        return tensors

    @cached_property
    def _places(self) -> NDArray[Any]:
        """Item numbers, or a bit for each item, whichever is shorter."""
        numbers = self.items.astype(number_type(self.num_items))
        if numbers.nbytes <= (self.num_items + 7) // 8:
            return numbers
        bits = np.zeros(self.num_items, np.bool_)
        bits[self.items] = True
        return np.packbits(bits)

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        """Return the items kept and their rows, made of the centroids that their codes name."""
        width = self.dim // self.parts
        books = dequantize(self.codes, self.scales, self.precision, width).reshape(self.parts, -1, width)
        bits = np.unpackbits(self.packed, axis=1, bitorder="little").reshape(len(self.items), self.parts, self.bits)
        numbers = bits.astype(np.int64) @ (1 << np.arange(self.bits))  # (n, M)
        rows: FloatArray = books[np.arange(self.parts), numbers].reshape(len(self.items), self.dim)
        return self.items, rows


def most_rows(num_items: int, dim: int, parts: int, bits: int, precision: Precision, budget_bytes: int) -> int:
    """Return how many rows a :class:`QuantizedTable` of that budget holds; 0 where fewer than codebooks are made of."""
    books = (parts << bits) * row_bytes(dim // parts, precision)
    room = budget_bytes - HEADER_BYTES - 2 * dim - books
    each = parts * bits // 8
    if room >= num_items * each:
        return num_items if num_items >= 1 << bits else 0
    by_number = room // (each + number_type(num_items).itemsize)
    by_bit = (room - (num_items + 7) // 8) // each
    most = min(max(by_number, by_bit), num_items - 1)
    return most if most >= 1 << bits else 0


@dataclass(frozen=True)
class ProductQuantization(Rival):
    """dims: columns of the table that is coded, as parts of d: all, or the closest in the scores that users get;
    parts: that a row is cut into; bits: of a part's number (a row's are whole bytes, what is not is passed over);
    orders: by what the rows to be kept are chosen, popularity or discounted places in the users' top lists.
    """

    name: str = "product-quantization"
    dims: tuple[float, ...] = (1.0, 0.5, 0.25)
    parts: tuple[int, ...] = (8, 16, 32)
    bits: tuple[int, ...] = (1, 2, 3, 4, 6)
    orders: tuple[Order, ...] = ("popularity", "exposure")

    def settings(self) -> tuple[ProductQuantization, ...]:
        """Return every setting alone, for :class:`strategies.rivals.groups.PerGroup`."""
        every = product(self.dims, self.parts, self.bits, self.orders)
        return tuple(ProductQuantization(self.name, (d,), (p,), (b,), (o,)) for d, p, b, o in every)

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One option a request and setting, of those that fit."""
        orders = {by: best_items(material, by) for by in self.orders}
        for share in self.dims:
            dim = max(round(share * material.pretrained.items.shape[1]), 1)
            table, users = narrowed(material, dim)
            num_items = len(table)
            for (by, order), parts, bits, request in product(orders.items(), self.parts, self.bits, requests):
                if dim % parts or parts * bits % 8:
                    continue
                most = most_rows(num_items, dim, parts, bits, request.precision, request.budget_bytes)
                if not most or (most == num_items and by != self.orders[0]):  # all rows, in whatever order
                    continue
                start = time.perf_counter()
                items = np.sort(order[:most]).astype(np.int32)
                seed = seed_for(material.seed, "product-quantization", parts, bits, most)
                with fixed_threads(1):
                    stored = QuantizedTable.from_table(table, items, parts, bits, request.precision, seed)
                seconds = time.perf_counter() - start
                label = f"{dim} columns, {parts} x {bits} bits, {most} items by {by}"
                yield whole_table(request, stored, users, seconds, label, num_items)


def best_items(material: Material, by: Order) -> IntArray:
    """Return the items (I,), best first; items that are shown to no user are ordered by popularity."""
    shown = material.shown if by == "exposure" else np.zeros(material.num_items)
    return np.lexsort((-material.popularity, -shown)).astype(np.int64)
