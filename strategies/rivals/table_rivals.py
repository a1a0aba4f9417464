"""Rivals that serve everybody one table of another shape: fewer dimensions, lower rank, fewer entries, fixed tiers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.compression import DenseTable, FactorTable, SparseTable, largest_dim, largest_rank, most_entries
from fl_peel.blocks.layout import BlockLayout
from fl_peel.events import Event
from strategies.rivals.base import (
    FloatArray,
    IntArray,
    Material,
    Option,
    Request,
    Rival,
    block_option,
    decoded_blocks,
    distinct,
    ranked_blocks,
    whole_table,
)
from strategies.rivals.central import train_nested


@dataclass(frozen=True)
class SmallerDimension(Rival):
    """The rival of fewer dimensions: as many as fit, trained anew with the settings of the full table."""

    name: str = "smaller-dimension"

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One option a request; a dimension that several requests share is trained once, its time counted once."""
        most = material.config.embedding_dim
        dims = {r: largest_dim(material.num_items, r.precision, r.budget_bytes, most) for r in requests}
        for dim in distinct(dims.values()):
            config = replace(material.config, embedding_dim=dim, num_slices=1, diversity_weight=0.0)
            start = time.perf_counter()
            tables = material.retrained(config, f"{self.name}: {dim} of {most} dimensions")
            users = material.complete(tables.users, tables.items)
            seconds = time.perf_counter() - start
            for request in (r for r in requests if dims[r] == dim):
                stored = DenseTable.from_table(tables.items, request.precision)
                yield whole_table(request, stored, users, seconds, f"{dim} dimensions")


@dataclass(frozen=True)
class TruncatedSvd(Rival):
    """The pretrained table as a product of two thin ones.

    closest: to the table itself ("plain"), or in the scores that the users get from it ("by scores").
    """

    name: str = "truncated-svd"
    closest: tuple[Literal["plain", "by scores"], ...] = ("plain", "by scores")

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        table = material.pretrained.items
        num_items, dim = table.shape
        ranks = {r: largest_rank(num_items, dim, r.precision, r.budget_bytes) for r in requests}
        for label in self.closest:
            metric = score_metric(material.users) if label == "by scores" else None
            start = time.perf_counter()
            left, right = singular_factors(table, metric)
            seconds = time.perf_counter() - start
            for request in requests:
                if rank := ranks[request]:
                    parts = (DenseTable.from_table(part, request.precision) for part in (left[:, :rank], right[:rank]))
                    yield whole_table(request, FactorTable(*parts), material.users, seconds, f"rank {rank}, {label}")


LEAST_SINGULAR = 1e-4
"""Share of the largest singular value below which a component is left out: fewer users than columns do not see it in
any score, and it would have numbers too large to store."""


def score_metric(users: FloatArray) -> NDArray[np.float64]:
    """Symmetric square root (d, d) of the users' mean outer product: ||x @ it||² is the mean squared score of x."""
    moments = users.astype(np.float64).T @ users / max(len(users), 1)
    values, vectors = np.linalg.eigh(moments)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root + 1e-6 * max(float(np.sqrt(max(values.max(), 0.0))), 1e-12) * np.eye(len(root))


def singular_factors(table: FloatArray, metric: NDArray[np.float64] | None = None) -> tuple[FloatArray, FloatArray]:
    """Factors (I, d), (d, d) whose first r columns and rows are the best product of rank r.

    Best in the Frobenius norm of the error, or of the error times ``metric`` (d, d).
    """
    inside = table.astype(np.float64) if metric is None else table @ metric
    # of the small (d, d) side: I is much larger than d
    values, vectors = np.linalg.eigh(inside.T @ inside)
    order = np.argsort(-values, kind="stable")
    values, vectors = values[order], vectors[:, order]  # (d,), (d, d), columns by falling singular value
    left = inside @ vectors
    right = vectors.T.copy() if metric is None else np.linalg.solve(metric.T, vectors).T
    right[values < LEAST_SINGULAR**2 * values[0]] = 0
    return left.astype(np.float32), right.astype(np.float32)


def narrowed(material: Material, dim: int) -> tuple[FloatArray, FloatArray]:
    """Tables (I, dim) and users (U, dim) whose products are the closest to the scores that the users get."""
    table, users = material.pretrained.items, material.users
    if dim == table.shape[1]:
        return table, users
    left, right = singular_factors(table, score_metric(users))
    return np.ascontiguousarray(left[:, :dim]), np.ascontiguousarray(users @ right[:dim].T)


Order = Literal["popularity", "exposure"]


def best_items(material: Material, by: Order) -> IntArray:
    """Return the items (I,), best first; items that are shown to no user are ordered by popularity."""
    shown = material.shown if by == "exposure" else np.zeros(material.num_items)
    return np.lexsort((-material.popularity, -shown)).astype(np.int64)


@dataclass(frozen=True)
class UniformWidth(Rival):
    """Rows in order of exposure, as many as fit, all of one width: PEEL with one slice of a narrower table. dims:
    columns, as parts of d, the closest in the scores that users get.
    """

    name: str = "uniform-width"
    dims: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)

    def settings(self) -> tuple[UniformWidth, ...]:
        """Return every setting alone, for :class:`strategies.rivals.groups.PerGroup`."""
        return tuple(UniformWidth(self.name, (share,)) for share in self.dims)

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        order = best_items(material, "exposure")
        precisions = dict.fromkeys(request.precision for request in requests)
        for share, precision in product(self.dims, precisions):
            dim = max(round(share * material.pretrained.items.shape[1]), 1)
            start = time.perf_counter()
            table, users = narrowed(material, dim)
            layout = BlockLayout(np.arange(len(table), dtype=np.int32), dim, 1)
            ranked = ranked_blocks(layout, precision, order, decoded_blocks(layout, precision, table))
            seconds = time.perf_counter() - start
            for request in (request for request in requests if request.precision == precision):
                option = replace(block_option(request, ranked, material, seconds), users=users)
                if option.test_cutoffs.all():
                    yield replace(option, label=f"{dim} columns, {int(option.test_cutoffs.min())} items")


@dataclass(frozen=True)
class MagnitudePruning(Rival):
    """Single entries of the pretrained table, the largest first; bytes of the cheapest sparse encoding."""

    name: str = "magnitude-pruning"

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        table = material.pretrained.items
        num_items, dim = table.shape
        start = time.perf_counter()
        order = np.argsort(-np.abs(table).ravel(), kind="stable")
        seconds = time.perf_counter() - start
        for request in requests:
            count = most_entries(order, num_items, dim, request.precision, request.budget_bytes)
            if count:
                kept = np.zeros(table.size, np.bool_)
                kept[order[:count]] = True
                stored = SparseTable.from_table(table, kept.reshape(table.shape), request.precision)
                label = f"{count} entries, {stored.encoding}"
                yield whole_table(request, stored, material.users, seconds, label, num_items)


@dataclass(frozen=True)
class FixedTiers(Rival):
    """Small, medium and large tables: nested column ranges of one table, trained together.

    As in HeteroFL (Diao et al., ICLR 2021) and HeteFedRec (Yuan et al., arXiv 2307.12810): a device class has one of
    three widths (an eighth, a quarter and a half of the full one, as there), and every prefix is trained. A device
    holds the largest tier that fits its budget; what is left of the budget is of no use to it.
    """

    name: str = "fixed-tiers"

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        dim = material.config.embedding_dim
        widths = distinct((dim // 8, dim // 4, dim // 2))
        start = time.perf_counter()
        tables = train_nested(material.given, material.num_items, material.config, widths, seed=material.seed)
        seconds = time.perf_counter() - start
        material.on_event(Event("rivals", 0, 1, f"{self.name}: trained in {seconds:.0f} s"))
        for request in requests:
            most = largest_dim(material.num_items, request.precision, request.budget_bytes, widths[-1])
            fitting = [width for width in widths if width <= most]
            if fitting:
                width = fitting[-1]
                items = np.ascontiguousarray(tables.items[:, :width])
                users = material.complete(np.ascontiguousarray(tables.users[:, :width]), items)
                stored = DenseTable.from_table(items, request.precision)
                yield whole_table(request, stored, users, 0.0, f"{width} dimensions")
