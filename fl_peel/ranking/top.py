"""Full ranking on the device, the metrics of its lists, and their mergeable sums.

Every item whose block is kept is a candidate, except those the device has already interacted with. Recall@n is the
share of the device's test items among its n best; NDCG@n has binary gains and an ideal list of min(n, test items).
Averages are over devices with at least one test item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.array_specs import SUM_SCALE, ArraySpec, Counters
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.scenario.settings import torch_device

TILE_ROWS = 64
"""Rows that the compiled loop scores side by side."""
Doubles = NDArray[np.float64]
Hits = NDArray[np.bool_]


def _ndcg(hits: Hits, wanted: IntArray) -> Doubles:
    gains = 1.0 / np.array([math.log2(place + 2.0) for place in range(hits.shape[1])])
    ideal = gains.cumsum()[np.minimum(wanted, len(gains)) - 1]
    ndcg: Doubles = (hits * gains).cumsum(axis=1)[:, -1] / ideal  # added up place by place
    return ndcg


LIST_METRICS: Mapping[str, Callable[[Hits, IntArray], Doubles]] = MappingProxyType(
    {
        "recall": lambda hits, wanted: hits.sum(axis=1) / wanted,
        "ndcg": _ndcg,
        "mrr": lambda hits, wanted: hits.any(axis=1) / (hits.argmax(axis=1) + 1.0),
        "hit_rate": lambda hits, wanted: np.asarray(hits.any(axis=1), np.float64),
        "precision": lambda hits, wanted: hits.sum(axis=1) / hits.shape[1],
    }
)
"""Metrics in 0..1 of lists of n items by name, (N,) each, given which places are hits (N, n) and how many items each
device has to find (N,), one at least. mrr: one over the place of the first hit, 0 without any.
"""


def _rows(ranked: RankedBlocks, items: UserItems) -> NDArray[np.int32]:
    """Return the table row of each item, -1 for items that are not there or were not used by anybody yet."""
    known = items.items < ranked.layout.num_items
    return (
        ranked.row_of_item[items.items]
        if known.all()
        else np.where(known, ranked.row_of_item[np.minimum(items.items, ranked.layout.num_items - 1)], np.int32(-1))
    )


@dataclass(frozen=True)
class Tiles:
    """Rows in tiles, as the compiled loop scores them: rows (T, S * padded, TILE_ROWS), and the ranks of their blocks,
    places (T, S, TILE_ROWS).
    """

    rows: NDArray[np.float32]
    places: NDArray[np.int32]

    @staticmethod
    def from_ranked(ranked: RankedBlocks, num_rows: int | None = None) -> Tiles:
        """Return the tiles of the first ``num_rows`` rows, None for all."""
        whole, num_slices = ranked.position.shape
        count = -(-(whole if num_rows is None else num_rows) // TILE_ROWS)
        tiles = Tiles(
            np.empty((count, num_slices * -(-ranked.layout.slice_dim // 4) * 4, TILE_ROWS), np.float32),
            np.empty((count, num_slices, TILE_ROWS), np.int32),
        )
        kernels.tile_rows(ranked.table, ranked.position, len(ranked.blocks), tiles.rows, tiles.places)
        return tiles


def top_rows(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: NDArray[np.float32],
    exclude: UserItems,
    n: int,
    device: str = "cpu",
) -> NDArray[np.int32]:
    """Return the n best table rows of each device (N, n), best first, -1 where it has fewer.

    Ties go to the smaller catalogue row, the only one of an item's numbers that a device knows.
    cutoffs: (N,); users: (N, d); exclude: items that each device must not be recommended; device: as ``engine.device``.
    """
    best: NDArray[np.int32] = Ranker(ranked, n, device).top_rows(cutoffs[:, None], users, exclude)[0]
    return best


@dataclass(frozen=True)
class Ranker:
    """Ranks what devices have stored of a user group's blocks, under several cutoffs at once.

    device: as ``engine.device``; tiles: of all rows, for callers that rank repeatedly.
    """

    ranked: RankedBlocks
    n: int
    device: str = "cpu"
    tiles: Tiles | None = None

    def top_rows(self, cutoffs: NDArray[np.int64], users: NDArray[np.float32], exclude: UserItems) -> NDArray[np.int32]:
        """Return the n best table rows (X, N, n) under several cutoffs (N, X), reading each row once where rows are
        whole blocks: the blocks kept under a smaller cutoff are the first ones of those kept under a larger one. Else
        each device's lists are made one by one, those of equal cutoffs once.
        """
        ranked, where = self.ranked, torch_device(self.device)
        num_slices = ranked.position.shape[1]
        num_devices, num_lists = cutoffs.shape
        if not num_lists:
            return np.empty((0, num_devices, self.n), np.int32)
        if num_lists > 1 and (where is not None or num_slices > 1):
            width = len(ranked.blocks) + 1
            lists, place = np.unique(np.arange(num_devices)[:, None] * width + cutoffs, return_inverse=True)
            who = lists // width
            of_lists = top_rows(ranked, lists % width, users[who], exclude.select(who), self.n, self.device)
            several: NDArray[np.int32] = of_lists[place.reshape(cutoffs.shape).T]
            return several
        if where is not None:
            from fl_peel.ranking.torch_ranking import top_rows as top_rows_in_torch

            first = np.ascontiguousarray(cutoffs[:, 0])
            return top_rows_in_torch(ranked, first, users, exclude, self.n, where)[None]
        present = ranked.num_present(cutoffs)
        tiles = self.tiles or Tiles.from_ranked(ranked, int(present.max(initial=0)))
        best = np.empty((num_lists, num_devices, self.n), np.int32)
        kernels.top_rows(
            tiles.rows,
            tiles.places,
            ranked.layout.row_in_catalogue[ranked.items],
            present,
            present.argsort(axis=1),
            cutoffs.max(axis=1),
            np.ascontiguousarray(users),
            exclude.indptr,
            _rows(ranked, exclude),
            present.max(axis=1).argsort(),
            best,
        )
        return best

    def evaluate(
        self, cutoffs: NDArray[np.int64], users: NDArray[np.float32], exclude: UserItems, wanted: UserItems
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return Recall@n and NDCG@n (N, X) under several cutoffs (N, X); see :meth:`lists`."""
        lists = self.lists(cutoffs, users, exclude, wanted)
        return lists.metric("recall", self.n), lists.metric("ndcg", self.n)

    def lists(
        self, cutoffs: NDArray[np.int64], users: NDArray[np.float32], exclude: UserItems, wanted: UserItems
    ) -> TopLists:
        """Return the lists under several cutoffs (N, X), from what devices have stored: fp16 user embedding, coded
        blocks. Devices without wanted items rank nothing.
        """
        some = np.flatnonzero(wanted.counts())
        best = np.empty((cutoffs.shape[1], 0, self.n), np.int32)
        if len(some):
            best = self.top_rows(cutoffs[some], stored_user(users[some]), exclude.select(some))
        hits, wants = np.empty(best.shape, np.bool_), wanted.select(some)
        rows = _rows(self.ranked, wants)
        for place, one in enumerate(best):
            hits[place] = find_hits(one, wants, rows, len(self.ranked.items))
        return TopLists(self.ranked, best, hits, some, wanted.counts())


@dataclass(frozen=True)
class TopLists:
    """Lists of the n best rows of those devices that have items to find, under several cutoffs: best (X, D, n), best
    first, -1 where there are fewer; hits (X, D, n) those that are wanted; devices (D,) their places among N; wanted
    (N,): how many items each of these has to find.
    """

    ranked: RankedBlocks
    best: NDArray[np.int32]
    hits: Hits
    devices: NDArray[np.intp]
    wanted: IntArray

    def metric(self, name: str, length: int) -> Doubles:
        """Return one of LIST_METRICS of the first ``length`` places, (N, X); 0 for devices with nothing to find."""
        values = np.zeros((len(self.wanted), len(self.hits)))
        for place, hits in enumerate(self.hits):
            values[self.devices, place] = LIST_METRICS[name](hits[:, :length], self.wanted[self.devices])
        return values

    def shown(self, length: int) -> NDArray[np.uint8]:
        """Return which items are among the first ``length`` places of any list: a bit for each item, (X, S) bytes."""
        shown = np.zeros((len(self.best), self.ranked.layout.num_items), np.bool_)
        for place, best in enumerate(self.best):
            rows = np.unique(best[:, :length])
            shown[place, self.ranked.items[rows[rows >= 0]]] = True
        return np.packbits(shown, axis=1)


def find_hits(best: NDArray[np.int32], wanted: UserItems, rows: NDArray[np.int32], num_rows: int) -> Hits:
    """Return which places of lists of rows (N, n) are wanted. rows: wanted items as rows, -1 for what is in none."""
    hits = np.empty(best.shape, np.bool_)
    kernels.find_hits(np.ascontiguousarray(best), wanted.indptr, rows, num_rows, hits)
    return hits


def recall_ndcg(ranked: RankedBlocks, best: NDArray[np.int32], wanted: UserItems, n: int) -> tuple[Doubles, Doubles]:
    """Return Recall@n and NDCG@n of each device, (N,) each; 0 where nothing is wanted."""
    return hit_quality(find_hits(best[:, :n], wanted, _rows(ranked, wanted), len(ranked.items)), wanted)


def hit_quality(hits: Hits, wanted: UserItems) -> tuple[Doubles, Doubles]:
    """Return Recall@n and NDCG@n of lists (N, n), (N,) each; 0 where nothing is wanted."""
    counts = np.maximum(wanted.counts(), 1)
    return LIST_METRICS["recall"](hits, counts), LIST_METRICS["ndcg"](hits, counts)


@dataclass(frozen=True)
class ListSums:
    """The lists of several devices under X budgets, of K lengths. metrics, squares: (X, K, len(LIST_METRICS)) sums of
    each, and of its square, over devices with items to find, in units of 2**-32; shown: (X, K, S) items in any of the
    lists, a bit for each, which is no sum: S is 0 where devices say sums alone.
    """

    metrics: Annotated[IntArray, ArraySpec(("X", "K", len(LIST_METRICS)), least=0, most="metrics")]
    squares: Annotated[IntArray, ArraySpec(("X", "K", len(LIST_METRICS)), least=0, most="metrics")]
    shown: Annotated[NDArray[np.uint8], ArraySpec(("X", "K", "S"))]

    @staticmethod
    def zeros(budgets: int, lengths: int, num_bytes: int) -> ListSums:
        metrics, squares = (np.zeros((budgets, lengths, len(LIST_METRICS)), np.int64) for _ in range(2))
        return ListSums(metrics, squares, np.zeros((budgets, lengths, num_bytes), np.uint8))

    def add(self, lists: TopLists, lengths: Sequence[int], places: slice) -> None:
        """Add the lists of other devices under the budgets at ``places``, in place."""
        for k, length in enumerate(lengths):
            for m, name in enumerate(LIST_METRICS):
                values = lists.metric(name, length)
                for sums, of_each in ((self.metrics, values), (self.squares, values**2)):
                    sums[places, k, m] += np.rint(of_each * SUM_SCALE).astype(np.int64).sum(axis=0)
            if self.shown.shape[2]:
                self.shown[places, k] |= lists.shown(length)

    def only(self, places: slice) -> ListSums:
        return ListSums(self.metrics[places], self.squares[places], self.shown[places])

    def __add__(self, other: ListSums) -> ListSums:
        return ListSums(self.metrics + other.metrics, self.squares + other.squares, self.shown | other.shown)

    def means(
        self, place: int, lengths: Sequence[int], num_devices: int, num_items: int
    ) -> dict[str, tuple[float, float]]:
        """Return each metric by name and length, ``mrr@20``, under the budget at ``place``, with its margin as of
        :func:`margin_of`, and ``coverage@20``: the share of ``num_items`` items that is in any list, unless that is
        withheld. Coverage is no mean over devices: its margin is NaN.
        """
        means = {}
        margins = margin_of(self.metrics[place], self.squares[place], np.array(num_devices)).tolist()
        for k, length in enumerate(lengths):
            totals = zip(LIST_METRICS, self.metrics[place, k].tolist(), margins[k], strict=True)
            for name, total, margin in totals:
                means[f"{name}@{length}"] = total / SUM_SCALE / max(num_devices, 1), margin
            if self.shown.shape[2]:
                shown = np.unpackbits(self.shown[place, k], count=num_items)
                means[f"coverage@{length}"] = int(shown.sum()) / num_items, math.nan
        return means


def evaluate(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: NDArray[np.float32],
    exclude: UserItems,
    wanted: UserItems,
    n: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Recall@n and NDCG@n (N,) of each device under one cutoff; see :meth:`Ranker.evaluate`."""
    recall, ndcg = Ranker(ranked, n).evaluate(cutoffs[:, None], users, exclude, wanted)
    return recall[:, 0], ndcg[:, 0]


@dataclass(frozen=True)
class MetricSums(Counters):
    """Sums of metrics over devices, per cell (a class, a user group, a budget...): order-free to merge.

    recall, ndcg, and recall squared: in units of 2**-32; devices: counts. All of one shape.
    """

    recall: NDArray[np.int64]
    ndcg: NDArray[np.int64]
    square: NDArray[np.int64]
    devices: NDArray[np.int64]

    @staticmethod
    def from_devices(
        cells: NDArray[np.integer],
        num_cells: int,
        recall: NDArray[np.float64],
        ndcg: NDArray[np.float64],
        counted: NDArray[np.bool_],
    ) -> MetricSums:
        """Add up devices (N,) by cell number; only those where ``counted`` holds."""
        columns = (recall, ndcg, recall**2, np.full(len(recall), 1 / SUM_SCALE))
        sums = [np.zeros(num_cells, np.int64) for _ in columns]
        for total, values in zip(sums, columns, strict=True):
            np.add.at(total, cells[counted], np.rint(values[counted] * SUM_SCALE).astype(np.int64))
        return MetricSums(*sums)

    def with_groups(self, num_groups: int) -> MetricSums:
        """Return the sums with empty cells (..., G) for user groups that are not known here."""
        more = [(0, 0)] * (self.recall.ndim - 1) + [(0, num_groups - self.recall.shape[-1])]
        return MetricSums(*(np.pad(getattr(self, name), more) for name in self.names()))

    def mean(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean recall and NDCG of every cell; 0 for a cell without devices."""
        devices = np.maximum(self.devices, 1) * SUM_SCALE
        return self.recall / devices, self.ndcg / devices

    def margin(self) -> NDArray[np.float64]:
        """Half the width of the 95 % interval of every cell's mean recall; NaN with fewer than two devices."""
        return margin_of(self.recall, self.square, self.devices)


def margin_of(sums: NDArray[np.int64], squares: NDArray[np.int64], devices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return half the width of the 95 % interval of a mean over devices, by Student's t.

    sums, squares: in units of 2**-32, of the value and of its square; NaN where less than two devices count.
    """
    from scipy import special  # nodes rank without it

    count = np.where(devices > 1, devices, np.nan)
    mean = sums / SUM_SCALE / count
    variance = np.maximum(squares / SUM_SCALE / count - mean**2, 0.0) * count / (count - 1)
    margin: NDArray[np.float64] = special.stdtrit(count - 1, 0.975) * np.sqrt(variance / count)
    return margin
