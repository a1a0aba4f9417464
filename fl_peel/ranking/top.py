"""Full ranking on the device, Recall@n and NDCG@n, and their mergeable sums.

Every item whose block is kept is a candidate, except those the device has already interacted with. Recall@n is the
share of the device's test items among its n best; NDCG@n has binary gains and an ideal list of min(n, test items).
Averages are over devices with at least one test item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.array_specs import SUM_SCALE, Counters
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import UserItems
from fl_peel.scenario.settings import torch_device

TILE_ROWS = 64
"""Rows that the compiled loop scores side by side."""


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
        """Return Recall@n and NDCG@n (N, X) under several cutoffs (N, X), from what devices have stored: fp16 user
        embedding, coded blocks. Devices without wanted items rank nothing.
        """
        recall, ndcg = np.zeros(cutoffs.shape), np.zeros(cutoffs.shape)
        some = np.flatnonzero(wanted.counts())
        if len(some):
            wants, stored = wanted.select(some), stored_user(users[some])
            for place, best in enumerate(self.top_rows(cutoffs[some], stored, exclude.select(some))):
                recall[some, place], ndcg[some, place] = recall_ndcg(self.ranked, best, wants, self.n)
        return recall, ndcg


def recall_ndcg(
    ranked: RankedBlocks, best: NDArray[np.int32], wanted: UserItems, n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Recall@n and NDCG@n of each device, (N,) each; 0 where nothing is wanted."""
    recall, ndcg = np.empty(len(best), np.float64), np.empty(len(best), np.float64)
    kernels.hit_sums(best, wanted.indptr, _rows(ranked, wanted), n, len(ranked.items), recall, ndcg)
    return recall, ndcg


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
