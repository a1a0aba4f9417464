"""Recall and NDCG of what devices hold, with the ranking of PEEL itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.ranking.top import MetricSums, evaluate
from strategies.rivals.base import TOP_N, FloatArray, Material, Option, Split


def quality(
    option: Option, material: Material, split: Split, users: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 over devices (or the given ones) with at least one item to find."""
    splits = material.splits
    wanted = splits.test if split == "test" else splits.validation
    exclude = material.seen if split == "test" else splits.train
    cutoffs = option.test_cutoffs if split == "test" else option.validation_cutoffs
    chosen = np.flatnonzero(wanted.counts() > 0) if users is None else users
    return mean_quality(option.ranked, cutoffs, option.users, exclude, wanted, chosen)


def mean_quality(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: FloatArray,
    exclude: UserItems,
    wanted: UserItems,
    chosen: NDArray[np.int64],
) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 of the chosen devices (M,); all other arguments are of all devices."""
    sums = sum_quality(ranked, cutoffs, users, exclude, wanted, chosen)
    recall, ndcg = sums.mean()
    return {f"recall@{TOP_N}": float(recall[0]), f"ndcg@{TOP_N}": float(ndcg[0])}


def sum_quality(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: FloatArray,
    exclude: UserItems,
    wanted: UserItems,
    chosen: NDArray[np.int64],
) -> MetricSums:
    """As :func:`mean_quality`, not yet divided: (1,) each, to add to those of other devices."""

    def part(some: NDArray[np.int64]) -> MetricSums:
        want = wanted.select(some)
        per_device = evaluate(ranked, cutoffs[some], users[some], exclude.select(some), want, TOP_N)
        return MetricSums.of(np.zeros(len(some), np.int64), 1, *per_device, want.counts() > 0)

    total = part(chosen[:0])
    with ThreadPoolExecutor(max_workers=2) as pool:  # the compiled loops release the interpreter lock
        for sums in pool.map(part, np.array_split(chosen, 8) if len(chosen) >= 256 else [chosen]):
            total = total + sums
    return total
