"""Lines to look up to: what a server could do that has every device's interactions, and what it could send.

None of these is a way of serving on devices: the server knows what each device interacted with, and what it sends is
good until the device does anything more.

- *EASE*: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019. One item-item matrix of I x I numbers
  in closed form, B = -P / diag(P) off the diagonal with P = (X^T X + lambda I)^-1.
- *Item neighbours*: the cosine of two items' users, shrunk where few are common, of each item's nearest ones (Sarwar et
  al., WWW 2001; shrinkage as in Koren and Bell, "Advances in Collaborative Filtering").
- *Cached list*: the best list of the best table, a few bytes for every device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np
import psutil
import scipy.sparse as sp
from scipy.linalg import lapack

from fl_peel.blocks.compression import DenseTable, number_type
from fl_peel.data.interactions import UserItems
from fl_peel.training.workers import fixed_threads
from strategies.rivals.base import (
    SPLITS,
    UNLIMITED,
    FloatArray,
    ListOption,
    Lists,
    Material,
    Option,
    Request,
    Rival,
    best_lists,
    lists_of,
    quality,
    whole_table,
)
from strategies.rivals.groups import PerGroup


def interactions(rows: UserItems, num_items: int) -> sp.csr_matrix:
    """Return the interactions as a matrix of ones, (U, I)."""
    values = np.ones(rows.num_interactions, np.float32)
    return sp.csr_matrix((values, rows.items, rows.indptr), shape=(rows.num_users, num_items))


def listed(
    scores_of: Callable[[sp.csr_matrix], FloatArray], material: Material, num_bytes: int, seconds: float, label: str
) -> ListOption:
    """An option of lists from scores (M, I), given each device's train items, (M, I); num_bytes: of the model, on the
    server.
    """
    train = interactions(material.splits.train, material.num_items)
    lists = {
        split: best_lists(lambda some: scores_of(train[some]), material.hidden(split), material.num_items)
        for split in SPLITS
    }
    return ListOption(UNLIMITED, lists, np.full(train.shape[0], num_bytes, np.int64), seconds, label)


@dataclass(frozen=True)
class Ease(Rival):
    """The EASE rival, fitted on the train interactions of all devices. ridges: values of lambda; most_items: where
    there are more items, lambda is chosen on as many popular ones, and the whole matrix made once, if the machine has
    the memory.
    """

    name: str = "ease"
    ridges: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
    most_items: int = 10_000
    ceiling: ClassVar[bool] = True

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[ListOption]:
        """One a ridge, or the whole matrix with the best one, for the first request: it knows no budget."""
        if self.missing_bytes(material) > 0:
            return
        if material.num_items <= self.most_items:
            for ridge in self.ridges:
                yield replace(self.solved(material, ridge), request=requests[0])
            return
        start = time.perf_counter()
        part = keep_popular_items(material, self.most_items)
        ridge = max(self.ridges, key=lambda value: quality(self.solved(part, value), part, "validation")["recall@20"])
        whole = self.solved(material, ridge)
        label = f"{whole.label}, chosen on {self.most_items:,} items"
        seconds = time.perf_counter() - start
        yield replace(whole, request=requests[0], label=label, seconds=seconds, trials=len(self.ridges))

    def missing_bytes(self, material: Material) -> int:
        """Memory that is not there for the matrix and a quarter more."""
        return 5 * material.num_items**2 - int(psutil.virtual_memory().available)

    def why_nothing(self, material: Material) -> str:
        return f"not done: needs {5 * material.num_items**2 / 1e9:.1f} GB of free memory"

    def solved(self, material: Material, ridge: float) -> ListOption:
        start = time.perf_counter()
        weights = ease_weights(interactions(material.splits.train, material.num_items), ridge)
        seconds = time.perf_counter() - start
        return listed(lambda rows: rows @ weights, material, weights.nbytes, seconds, f"lambda {ridge:g}")


def ease_weights(matrix: sp.csr_matrix, ridge: float) -> FloatArray:
    """B (I, I) of interactions (U, I), float32, in the place of X^T X.

    Raises:
        numpy.linalg.LinAlgError: not positive definite in float32; raise the ridge.
    """
    gram = (matrix.T @ matrix).astype(np.float32)
    gram.setdiag(gram.diagonal() + np.float32(ridge))
    with fixed_threads(1):
        square: FloatArray = gram.toarray(order="F")
        del gram
        square, info = lapack.spotrf(square, lower=1, overwrite_a=1, clean=1)
        if info:
            raise np.linalg.LinAlgError(f"EASE: lambda {ridge:g} is too small for float32; raise it")
        square, _ = lapack.spotri(square, lower=1, overwrite_c=1)
    _mirror(square)
    diagonal = square.diagonal().copy()
    square /= -diagonal  # of columns
    np.fill_diagonal(square, 0.0)
    return square


def _mirror(square: FloatArray, block: int = 1024) -> None:
    """Copy the lower triangle over the upper one, in place."""
    size = len(square)
    for i in range(0, size, block):
        inside = square[i : i + block, i : i + block]
        inside[:] = np.tril(inside) + np.tril(inside, -1).T
        for j in range(i + block, size, block):
            square[i : i + block, j : j + block] = square[j : j + block, i : i + block].T


def keep_popular_items(material: Material, count: int) -> Material:
    """Return the same devices with only the interactions with the ``count`` most popular items, numbered anew."""
    splits = material.splits
    popularity = splits.train.popularity(splits.num_items)
    items = np.sort(np.argsort(-popularity, kind="stable")[:count])
    number = np.full(splits.num_items, -1, np.int64)
    number[items] = np.arange(len(items))

    def kept(rows: UserItems) -> UserItems:
        inside = rows.keep(number[rows.items] >= 0)
        return UserItems(inside.indptr, number[inside.items].astype(np.int32))

    parts = [kept(part) for part in (splits.train, splits.validation, splits.test)]
    return replace(material, splits=replace(splits, num_items=len(items), **dict(zip(_PARTS, parts, strict=True))))


_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ItemNeighbours(Rival):
    """Item neighbours of all train interactions. neighbours: k of each item; shrinkages: for the denominator."""

    name: str = "item-neighbours"
    neighbours: tuple[int, ...] = (20, 50, 100, 200, 400)
    shrinkages: tuple[float, ...] = (0.0, 10.0, 30.0, 100.0)
    ceiling: ClassVar[bool] = True

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[ListOption]:
        """One a pair of settings, for the first request: it knows no budget."""
        matrix = interactions(material.splits.train, material.num_items)
        for shrinkage, count in product(self.shrinkages, self.neighbours):
            start = time.perf_counter()
            near = neighbour_weights(matrix, count, shrinkage)
            seconds = time.perf_counter() - start
            label = f"{count} neighbours, shrinkage {shrinkage:g}"
            option = listed(lambda rows, near=near: _scored(rows, near), material, 8 * near.nnz, seconds, label)  # type: ignore[misc]
            yield replace(option, request=requests[0])


def neighbour_weights(matrix: sp.csr_matrix, count: int, shrinkage: float, block: int = 2048) -> sp.csr_matrix:
    """Return the item-to-item weights (I, I) of interactions (U, I); row i holds the ``count`` nearest neighbours of
    item i: common users / (sqrt(users of i x users of j) + shrinkage). Ties go to the smaller item.
    """
    by_item = matrix.T.tocsr()
    lengths = np.sqrt(np.asarray(matrix.sum(axis=0)).ravel())
    parts = []
    for start in range(0, matrix.shape[1], block):
        common = (by_item[start : start + block] @ matrix).tocsr()
        common.sort_indices()
        rows = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        values = common.data / (lengths[start + rows] * lengths[common.indices] + np.float32(shrinkage))
        values[rows + start == common.indices] = 0.0
        order = np.lexsort((common.indices, -values, rows))
        place = np.arange(len(order)) - np.repeat(common.indptr[:-1], np.diff(common.indptr))
        kept = order[(place < count) & (values[order] > 0)]
        shape = (common.shape[0], matrix.shape[1])
        parts.append(sp.csr_matrix((values[kept], (rows[kept], common.indices[kept])), shape=shape))
    return sp.vstack(parts).tocsr()


def _scored(rows: sp.csr_matrix, near: sp.csr_matrix) -> FloatArray:
    scores: FloatArray = (rows @ near).toarray().astype(np.float32)
    scores[scores == 0] = -np.inf
    return scores


@dataclass(frozen=True)
class FullTable(Rival):
    """The pretrained table whole, in fp32."""

    name: str = "full-table"

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One, for the first request: it knows no budget."""
        stored = DenseTable.from_table(material.pretrained.items, "fp32")
        yield whole_table(requests[0], stored, material.users, 0.0, self.name)


@dataclass(frozen=True)
class CachedList(Rival):
    """Every device's best list of the best of ``tables``, as item numbers: what a budget holds of them.

    The device has no table and no embedding, and no header: a list has one use.
    """

    name: str = "cached-list"
    tables: tuple[Rival, ...] = (FullTable(), PerGroup("groups' start", (FullTable(),)), Ease())
    ceiling: ClassVar[bool] = True

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[ListOption]:
        each = number_type(material.num_items).itemsize
        for table in self.tables:
            if isinstance(table, PerGroup) and material.starts is None:
                continue
            if isinstance(table, Ease) and material.num_items > table.most_items:
                continue
            for option in table.options(material, [UNLIMITED]):
                lists = {split: lists_of(option, material, split) for split in SPLITS}
                name = table.name if option.label == table.name else f"{table.name}, {option.label}"
                for request in requests:
                    length = min(request.budget_bytes // each, material.num_items)
                    if length:
                        stored = np.full(material.splits.num_users, length * each, np.int64)
                        cut = {split: _cut(whole, length) for split, whole in lists.items()}
                        yield ListOption(request, cut, stored, option.seconds, f"{length} items of {name}")


def _cut(lists: Lists, length: int) -> Lists:
    """The first ``length`` items, the rest -1."""
    return np.where(np.arange(lists.shape[1]) < length, lists, np.int32(-1))
