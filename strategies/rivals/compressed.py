"""Rivals that train tables of another form: hashed rows, pruned entries, product quantization.

Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems", KDD
2020, the quotient-remainder trick: of two tables, item i has row i mod m of the one and row floor(i / m) of the other,
added or multiplied. Items are numbered by popularity here, which costs nothing, as the server gives the numbers: so the
m most popular have a remainder row of their own, and the rest change it by their quotient's.

Liu et al., "Learnable Embedding Sizes for Recommender Systems" (PEP), ICLR 2021: an entry w is used as
sign(w) * max(|w| - threshold, 0), and thresholds are trained by the recommendation loss. Their thresholds grow under
weight decay until the wanted sparsity happens to be met; here the level of all thresholds is set in each step so that
the wanted number of entries is left, and what is learned are the thresholds of items and of dimensions relative to
one another. One training from the pretrained tables passes all budgets, the largest first.

Section 3.3 of the paper: what is left is then retrained, from the values that it had at first, with the others held at
zero (a lottery ticket). At first means the pretrained table here, as that is where the search began.

Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", IEEE TPAMI 2011: the columns are cut into
M parts, each part has a codebook of 2^b centroids (K-means, by faiss), and a row is the b-bit numbers of its nearest
centroid in each part. Residual quantization (Chen et al., "Approximate Nearest Neighbor Search by Residual Vector
Quantization", Sensors 2010): every codebook has whole rows, the next one for what those before it leave, and a row is
their sum. Items that are not kept are not recommended, like items without any block: what the codebooks
leave of a budget says how many rows are kept, the best first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.blocks.compression import DenseTable, SparseTable, most_entries, number_type
from fl_peel.blocks.layout import Codes, code_dtype, dequantize, has_scales, quantize, row_bytes
from fl_peel.blocks.stored import HEADER_BYTES
from fl_peel.pretraining.losses import BatchLoss
from fl_peel.randomness import rng_for, seed_for
from fl_peel.scenario.settings import Precision
from fl_peel.training.workers import fixed_threads
from strategies.rivals.base import TOP_N, FloatArray, IntArray, Material, Option, Request, Rival, quality, whole_table
from strategies.rivals.central import PrunedTable, descend, generator_for, generators_for, training
from strategies.rivals.table_rivals import Order, best_items, narrowed

Operation = Literal["add", "multiply"]


@dataclass(frozen=True)
class HashedTable:
    """remainders (m, d), quotients (ceil(I / m), d); number: (I,) of each item, by popularity."""

    remainders: DenseTable
    quotients: DenseTable
    operation: Operation
    number: IntArray

    @property
    def user_dim(self) -> int:
        return self.remainders.dim

    @property
    def kind(self) -> str:
        """Operation, precision, shape."""
        return f"hashed-{self.operation} {self.remainders.precision} {len(self.remainders.codes)} {self.user_dim}"

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Codes of both tables, the remainders' first, and scales likewise."""
        both = [self.remainders.tensors(), self.quotients.tensors()]
        return {name: np.concatenate([part[name] for part in both]) for name in both[0]}

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        parts = [torch.from_numpy(part.decoded()[1]) for part in (self.remainders, self.quotients)]
        table: FloatArray = composed(parts, torch.from_numpy(self.number), self.operation).numpy()
        return np.arange(len(self.number), dtype=np.int32), table


def composed(parts: Sequence[Tensor], number: Tensor, operation: Operation) -> Tensor:
    """The table (I, d) of remainders (m, d) and quotients; number: (I,)."""
    remainders, quotients = parts
    first, second = remainders[number % len(remainders)], quotients[number // len(remainders)]
    return first + second if operation == "add" else first * second


def most_remainders(num_items: int, dim: int, precision: Precision, budget_bytes: int) -> int:
    """The most rows m of the first table that fit, with ceil(I / m) of the second; 0 where none does."""
    rows = max(budget_bytes - HEADER_BYTES - 2 * dim, 0) // row_bytes(dim, precision)
    fitting = (m for m in range(min(rows, num_items), 0, -1) if m + -(-num_items // m) <= rows)
    return next(fitting, 0)


@dataclass(frozen=True)
class Hashing(Rival):
    """dims: columns, as parts of d; steps: of training, in whole passes over the users; rates: of Adam, as parts of the
    pretraining's.

    Operation and rate are chosen at the largest budget, in the last of the dims; dims for every request.
    """

    name: str = "hashing"
    dims: tuple[float, ...] = (0.125, 0.25)
    operations: tuple[Operation, ...] = ("add", "multiply")
    steps: int = 400
    rates: tuple[float, ...] = (1.0, 4.0, 16.0)

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One option a request and dim; those that the operation and rate were chosen from belong to one request."""
        widths = [max(round(share * material.pretrained.items.shape[1]), 1) for share in self.dims]
        largest = max(requests, key=lambda request: request.budget_bytes, default=None)
        if largest is None:
            return
        tried = [
            (option, operation, rate)
            for operation in self.operations
            for rate in self.rates
            if (option := self._trained(material, largest, widths[-1], operation, rate)) is not None
        ]
        if not tried:
            return
        yield from (option for option, _, _ in tried)
        _, operation, rate = max(tried, key=lambda one: quality(one[0], material, "validation")[f"recall@{TOP_N}"])
        for request in requests:
            for width in widths if request != largest else widths[:-1]:
                option = self._trained(material, request, width, operation, rate)
                if option is not None:
                    yield option

    def _trained(
        self, material: Material, request: Request, dim: int, operation: Operation, rate: float
    ) -> Option | None:
        num_items = material.num_items
        count = most_remainders(num_items, dim, request.precision, request.budget_bytes)
        if not count:
            return None
        start = time.perf_counter()
        table, users = narrowed(material, dim)
        order = np.argsort(-material.popularity, kind="stable")
        number = np.empty(num_items, np.int64)
        number[order] = np.arange(num_items)
        place = torch.from_numpy(number)
        identity = ("hashing", request.precision, request.budget_bytes, dim, operation)
        rng = rng_for(material.seed, *identity)
        spread = np.float32(table.std())
        remainders, quotients = (
            rng.standard_normal((rows, dim), np.float32) for rows in (count, -(-num_items // count))
        )
        second = spread * quotients if operation == "add" else np.float32(1) + np.float32(0.3) * quotients
        loss_of = BatchLoss(material.given, num_items, material.config)
        users, parts = descend(
            users,
            [spread * remainders, second],
            lambda tables: composed(tables, place, operation),
            loss_of,
            learning_rate=rate * material.config.learning_rate,
            generators=generators_for(loss_of, self.steps, material.seed, *identity),
        )
        first, other = (DenseTable.from_table(part, request.precision) for part in parts)
        stored = HashedTable(first, other, operation, number)
        users = np.where(material.has_data[:, None], users, np.float32(0))
        users = material.complete(users, stored.decoded()[1])
        label = f"{dim} columns, {count} remainders, {operation}, rate {rate:g}"
        return whole_table(request, stored, users, time.perf_counter() - start, label, num_items)


@dataclass(frozen=True)
class Pep(Rival):
    """Learned thresholds. epochs: passes over the users on the way from one request to the next, the last at its
    own number of entries; rates: of Adam, as parts of the pretraining's, one training each; retraining: rates likewise
    of what follows for every request, of ``steps`` steps in whole passes.
    """

    name: str = "pep"
    epochs: int = 1
    rates: tuple[float, ...] = (0.1, 0.01)
    retraining: tuple[float, ...] = (0.1, 1.0, 4.0, 16.0)
    steps: int = 80

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """Yield what thresholds leave for each request and rate, as is and retrained; most entries first."""
        for rate in self.rates:
            yield from self._training(material, requests, rate * material.config.learning_rate)

    def _training(self, material: Material, requests: Sequence[Request], rate: float) -> Iterator[Option]:
        num_items, dim = material.pretrained.items.shape
        about = {r: entries_about(r, num_items, dim) for r in requests}
        start = time.perf_counter()
        loss_of = BatchLoss(material.given, num_items, material.config)
        pruned = PrunedTable(material.users, material.pretrained.items, loss_of, rate)
        before = num_items * dim
        for place, request in enumerate(sorted(requests, key=lambda r: -about[r])):
            if not about[request]:
                continue
            counts = np.geomspace(before, about[request], self.epochs + 1)[1:].astype(np.int64).tolist()
            with training(material.given.num_interactions):
                pruned.train(
                    counts, [generator_for(material.seed, "pep", place, number) for number in range(self.epochs)]
                )
            stored, table = pruned_table(pruned, request)
            label = f"{len(stored.flat)} entries, {stored.encoding}, rate {rate:g}"
            yield _option(material, request, stored, pruned.users.detach().numpy(), start, label)
            for factor in self.retraining:
                start = time.perf_counter()
                users, again = self._retrained(material, loss_of, table != 0, factor)
                stored = SparseTable.from_table(again, again != 0, request.precision)
                yield _option(material, request, stored, users, start, f"{label}, retrained at {factor:g}")
            start = time.perf_counter()
            before = about[request]

    def _retrained(
        self, material: Material, loss_of: BatchLoss, kept: NDArray[np.bool_], factor: float
    ) -> tuple[FloatArray, FloatArray]:
        """Users (U, d) and table (I, d) from the pretrained ones, of which the entries ``kept`` (I, d) alone move."""
        mask = torch.from_numpy(kept)
        users, (table,) = descend(
            material.users,
            [material.pretrained.items],
            lambda parts: parts[0] * mask,
            loss_of,
            learning_rate=factor * material.config.learning_rate,
            generators=generators_for(loss_of, self.steps, material.seed, "pep-retraining"),
        )
        return users, np.where(kept, table, np.float32(0))


def _option(
    material: Material, request: Request, stored: SparseTable, users: FloatArray, start: float, label: str
) -> Option:
    """Make the option of a trained table. users (U, d): of those who gave data; start: when training began."""
    num_items, dim = material.pretrained.items.shape
    items, rows = stored.decoded()
    table = np.zeros((num_items, dim), np.float32)
    table[items] = rows
    users = material.complete(np.where(material.has_data[:, None], users, np.float32(0)), table)
    return whole_table(request, stored, users, time.perf_counter() - start, label, num_items)


def entries_about(request: Request, num_items: int, dim: int) -> int:
    """Entries that fit the request if they are spread evenly over the rows."""
    order = np.arange(num_items * dim, dtype=np.int64)
    spread = (order % num_items) * dim + order // num_items  # one of each row, then another of each
    return most_entries(spread, num_items, dim, request.precision, request.budget_bytes)


def pruned_table(pruned: PrunedTable, request: Request) -> tuple[SparseTable, FloatArray]:
    """The entries furthest above their thresholds, as many as fit; stored, and as a table (I, d) in floats."""
    shape = (pruned.weights.shape[0], pruned.weights.shape[1])
    with torch.no_grad():
        ratio = pruned.thresholds(1)[1].numpy()
        order = np.argsort(-ratio.ravel(), kind="stable")
        count = most_entries(order, *shape, request.precision, request.budget_bytes)
        table = pruned.table(count).numpy()
    kept = np.zeros(table.size, np.bool_)
    kept[order[:count]] = True
    table = np.where(kept.reshape(shape), table, np.float32(0))
    return SparseTable.from_table(table, table != 0, request.precision), table


PROGRESSIVE_BITS = 4
"""Bits up to which residual codebooks are trained on ever more columns of the rows, which costs larger ones ten times
the time for no smaller an error.
"""
ITERATIONS, ROWS_PER_CENTROID = 10, 64
"""Iterations of K-means, and its rows per centroid: where there are more rows, it samples that many."""


class Codebooks(NamedTuple):
    """M codebooks (``parts``) of 2^b centroids (``bits`` b) each; residual: of whole rows, not parts of them."""

    parts: int
    bits: int
    residual: bool = False

    def width(self, dim: int) -> int:
        return dim if self.residual else dim // self.parts

    def trained(self, rows: FloatArray, seed: int) -> tuple[Any, Any]:
        """Return faiss's quantizer of rows (n, d), and its centroids."""
        kind = faiss.ResidualQuantizer if self.residual else faiss.ProductQuantizer
        quantizer: Any = kind(rows.shape[1], self.parts, self.bits)
        if self.residual and self.bits > PROGRESSIVE_BITS:
            quantizer.train_type = kind.Train_default
        quantizer.cp.seed = seed % (1 << 31)
        quantizer.cp.niter = ITERATIONS
        quantizer.cp.min_points_per_centroid = 1
        quantizer.cp.max_points_per_centroid = ROWS_PER_CENTROID
        quantizer.train(rows)
        return quantizer, quantizer.codebooks if self.residual else quantizer.centroids


@dataclass(frozen=True)
class QuantizedTable:
    """items: (n,) ascending, of ``num_items``; packed: (n, M b / 8) uint8, each row's numbers one after the other, low
    bits first; codes, scales: centroids (M 2^b, width) at a precision.
    """

    num_items: int
    books: Codebooks
    precision: Precision
    dim: int
    items: NDArray[np.int32]
    packed: NDArray[np.uint8]
    codes: Codes
    scales: NDArray[np.float16]

    @staticmethod
    def from_table(
        table: FloatArray, items: NDArray[np.int32], books: Codebooks, precision: Precision, seed: int
    ) -> QuantizedTable:
        """Codebooks of the rows ``items`` (n,) of a table (I, d), n at least 2^bits, and their codes.

        To be called under ``fixed_threads(1)``: sums of several threads arrive in any order.
        """
        rows = np.ascontiguousarray(table[items], np.float32)
        quantizer, numbers = books.trained(rows, seed)
        centroids = faiss.vector_to_array(numbers).reshape(books.parts << books.bits, -1)
        codes, scales = quantize(centroids, precision)
        stored = dequantize(codes, scales, precision, centroids.shape[1])
        faiss.copy_array_to_vector(stored.ravel(), numbers)  # nearest of what devices decode
        packed = quantizer.compute_codes(rows)
        return QuantizedTable(len(table), books, precision, table.shape[1], items, packed, codes, scales)

    @property
    def user_dim(self) -> int:
        return self.dim

    @property
    def kind(self) -> str:
        """Precision of the codebooks, shape of the codes, items."""
        kind = "residual" if self.books.residual else "quantized"
        return f"{kind} {self.precision} {self.books.parts} {self.books.bits} {self.num_items} {len(self.items)}"

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
        parts, bits, residual = self.books
        width = self.books.width(self.dim)
        books = dequantize(self.codes, self.scales, self.precision, width).reshape(parts, -1, width)
        numbers = np.unpackbits(self.packed, axis=1, count=parts * bits, bitorder="little").reshape(-1, parts, bits)
        pieces: FloatArray = books[np.arange(parts), numbers.astype(np.int64) @ (1 << np.arange(bits))]  # (n, M, width)
        return self.items, pieces.sum(axis=1) if residual else pieces.reshape(-1, self.dim)


def most_rows(num_items: int, dim: int, books: Codebooks, precision: Precision, budget_bytes: int) -> int:
    """Return how many rows a :class:`QuantizedTable` of that budget holds; 0 where fewer than codebooks are made of."""
    bits = books.bits
    codebooks = (books.parts << bits) * row_bytes(books.width(dim), precision)
    room = budget_bytes - HEADER_BYTES - 2 * dim - codebooks
    each = books.parts * bits // 8
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
    residual: ClassVar[bool] = False

    def settings(self) -> tuple[ProductQuantization, ...]:
        """Return every setting alone, for :class:`strategies.rivals.groups.PerGroup`."""
        every = product(self.dims, self.parts, self.bits, self.orders)
        return tuple(replace(self, dims=(d,), parts=(p,), bits=(b,), orders=(o,)) for d, p, b, o in every)

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        orders = {by: best_items(material, by) for by in self.orders}
        for share in self.dims:
            dim = max(round(share * material.pretrained.items.shape[1]), 1)
            table, users = narrowed(material, dim)
            num_items = len(table)
            for (by, order), parts, bits, request in product(orders.items(), self.parts, self.bits, requests):
                if parts * bits % 8 or (dim % parts and not self.residual):
                    continue
                books, precision = Codebooks(parts, bits, self.residual), request.precision
                most = most_rows(num_items, dim, books, precision, request.budget_bytes)
                if not most or (most == num_items and by != self.orders[0]):  # all rows, in whatever order
                    continue
                start = time.perf_counter()
                items = np.sort(order[:most]).astype(np.int32)
                seed = seed_for(material.seed, "product-quantization", parts, bits, most)
                with fixed_threads(1):
                    stored = QuantizedTable.from_table(table, items, books, precision, seed)
                seconds = time.perf_counter() - start
                label = f"{dim} columns, {parts} x {bits} bits, {most} items by {by}"
                yield whole_table(request, stored, users, seconds, label, num_items)


@dataclass(frozen=True)
class ResidualQuantization(ProductQuantization):
    """Codebooks of whole rows, each of what those before it leave. parts: codebooks."""

    name: str = "residual-quantization"
    dims: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    parts: tuple[int, ...] = (1, 2, 4, 8)
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    residual: ClassVar[bool] = True
