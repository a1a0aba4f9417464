"""Recall and NDCG of what devices hold, with the ranking of PEEL itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import UserItems
from fl_peel.ranking.bootstrap import REPLICATES, Replicates
from fl_peel.ranking.top import MetricSums, evaluate, top_rows
from strategies.rivals.base import TOP_N, FloatArray, ListOption, Lists, Material, Option, Split


@dataclass(frozen=True)
class DeviceQuality:
    """Recall@20 and NDCG@20 (N,) of these devices (N,), by their numbers, each of which has an item to find or counts
    for nothing (counted).
    """

    devices: NDArray[np.int64]
    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    counted: NDArray[np.bool_]

    def sums(self) -> MetricSums:
        """Return the sums over the devices that count, (1,) each."""
        return MetricSums.from_devices(np.zeros(len(self.devices), np.int64), 1, self.recall, self.ndcg, self.counted)

    def drawn(self, count: int) -> Replicates:
        """Sums of the devices that count under the weights of a bootstrap's replicates, (1, count)."""
        return Replicates.from_devices(self.devices, self.recall[:, None], self.ndcg[:, None], self.counted, count)

    def mean(self) -> dict[str, float]:
        """Mean Recall@20 and NDCG@20."""
        return means(self.sums())


def device_quality(
    option: Option | ListOption, material: Material, split: Split, users: NDArray[np.int64] | None = None
) -> DeviceQuality:
    """Return the quality for each device (or each of the given ones) with at least one item to find."""
    splits = material.splits
    wanted = splits.test if split == "test" else splits.validation
    exclude = material.seen if split == "test" else splits.train
    chosen = np.flatnonzero(wanted.counts() > 0) if users is None else users
    if isinstance(option, ListOption):
        want = wanted.select(chosen)
        metrics = list_metrics(option.lists[split][chosen], want, material.num_items)
        return DeviceQuality(chosen, *metrics, want.counts() > 0)
    cutoffs = option.test_cutoffs if split == "test" else option.validation_cutoffs
    return chosen_quality(option.ranked, cutoffs, option.users, exclude, wanted, chosen)


def quality(
    option: Option | ListOption, material: Material, split: Split, users: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 over devices (or the given ones) with at least one item to find."""
    return device_quality(option, material, split, users).mean()


def top_lists(option: Option, material: Material, split: Split) -> Lists:
    """The TOP_N best items of every device (U, TOP_N), best first, -1 where it has fewer: what ``quality`` counts."""
    cutoffs = option.test_cutoffs if split == "test" else option.validation_cutoffs
    exclude = material.seen if split == "test" else material.splits.train
    rows = top_rows(option.ranked, cutoffs, stored_user(option.users), exclude, TOP_N)
    if not len(option.ranked.items):
        return rows
    return np.where(rows >= 0, option.ranked.items[rows], np.int32(-1)).astype(np.int32)


def lists_of(option: Option | ListOption, material: Material, split: Split) -> Lists:
    """The lists that an option serves on a split, (U, TOP_N)."""
    return option.lists[split] if isinstance(option, ListOption) else top_lists(option, material, split)


def list_metrics(lists: Lists, wanted: UserItems, num_items: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall@20 and NDCG@20 (N,) of lists of items (N, TOP_N); 0 where nothing is wanted."""
    recall, ndcg = np.empty(len(lists), np.float64), np.empty(len(lists), np.float64)
    kernels.hit_sums(lists, wanted.indptr, wanted.items.astype(np.int32), TOP_N, num_items, recall, ndcg)
    return recall, ndcg


def list_sums(lists: Lists, wanted: UserItems, num_items: int) -> MetricSums:
    """Metric sums, (1,) each, over the devices that have an item to find."""
    metrics = list_metrics(lists, wanted, num_items)
    return MetricSums.from_devices(np.zeros(len(lists), np.int64), 1, *metrics, wanted.counts() > 0)


def means(sums: MetricSums) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 of sums (1,)."""
    recall, ndcg = sums.mean()
    return {f"recall@{TOP_N}": float(recall[0]), f"ndcg@{TOP_N}": float(ndcg[0])}


def chosen_quality(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: FloatArray,
    exclude: UserItems,
    wanted: UserItems,
    chosen: NDArray[np.int64],
) -> DeviceQuality:
    """Return the quality for the chosen devices (M,); all other arguments are of all devices."""

    def part(some: NDArray[np.int64]) -> DeviceQuality:
        want = wanted.select(some)
        metrics = evaluate(ranked, cutoffs[some], users[some], exclude.select(some), want, TOP_N)
        return DeviceQuality(some, *metrics, want.counts() > 0)

    with ThreadPoolExecutor(max_workers=2) as pool:  # the compiled loops release the interpreter lock
        parts = list(pool.map(part, np.array_split(chosen, 8) if len(chosen) >= 256 else [chosen]))
    return DeviceQuality(
        *(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(DeviceQuality))
    )


# ---- Bootstrap replicates of a rival's figures on the test, under the weights that PEEL's have


Plain = dict[str, list[float | None]]


def replicates(quality: DeviceQuality) -> Plain:
    """Mean recall and NDCG of the devices that count, as :func:`in_json` has them."""
    return in_json(quality.drawn(REPLICATES))


def in_json(sums: Replicates, place: int = 0) -> Plain:
    """Means (B,) of one figure by metric; None in a replicate that drew no device."""
    return {
        f"{metric}@{TOP_N}": [None if np.isnan(mean) else mean for mean in means[place].tolist()]
        for metric, means in zip(("recall", "ndcg"), sums.means(), strict=True)
    }
