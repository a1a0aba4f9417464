"""The refinement that the federation is measured against: the same, done where all interactions lie together.

Each user group's table starts as in the federation and is trained on the pooled train interactions of the group's
members, interaction by interaction in random order, on the full table: the same losses, negatives and number of epochs
as the devices have over all rounds. Learning rates, optimizer and number of epochs are chosen on validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.events import Event
from fl_peel.grouping.clusters import UserGroups, choose_group
from fl_peel.kernels.pooled import pooled_epoch
from fl_peel.randomness import rng_for, seed_for
from fl_peel.ranking.top import MetricSums
from fl_peel.training.settings import LocalTraining
from strategies.rivals.base import FloatArray, Material, Split, chosen_quality, ranked_blocks

SAMPLE = 5000
"""Devices, by whole user groups, on which settings are compared; all where there are fewer."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of central refinement. optimizer: optimizer of the table; users always take plain steps."""

    optimizer: Literal["sgd", "adagrad"]
    learning_rate: float
    user_learning_rate: float


def grid(local: LocalTraining) -> tuple[Rates, ...]:
    """Return the settings to try: plain steps of three sizes and AdaGrad of two, users' steps as on devices or a
    quarter of it.
    """
    user = local.user_learning_rate
    plain = [Rates("sgd", factor * local.learning_rate, u) for factor in (0.25, 1.0, 4.0) for u in (user, user / 4)]
    return (*plain, Rates("adagrad", 0.01, user), Rates("adagrad", 0.04, user))


def refine_centrally(
    material: Material,
    groups: UserGroups,
    local: LocalTraining,
    epochs: int,
    rates: Sequence[Rates] | None = None,
    start: Callable[[int], FloatArray] | None = None,
) -> dict[str, Any]:
    """Quality of the full fp32 tables after central refinement. start: each group's first table, (I, d), by number;
    without it, the pretrained one.

    Returns validation, test and the choice made: {"rates", "epochs"}. ``epochs`` is the most that may be chosen.
    """
    assignment = groups.assignment.copy()
    alone = np.flatnonzero(assignment < 0)
    assignment[alone] = choose_group(material.users[alone], groups.centroids)
    members = [np.flatnonzero(assignment == group) for group in range(groups.num_groups)]
    numbers = [group for group in range(groups.num_groups) if len(members[group])]
    tried = tuple(rates or grid(local))
    sample = _sample(numbers, members, material.seed)
    start = lru_cache(maxsize=max(len(sample), 1))(start or (lambda group: material.pretrained.items))
    best: tuple[float, Rates, int] | None = None
    for done, choice in enumerate(tried, start=1):
        sums = CentralTraining(material, local, choice, epochs, start).over_groups(members, sample, every=True)
        for epoch in range(epochs + 1):
            recall = float(sums[epoch, "validation"].mean()[0][0])
            if best is None or recall > best[0]:
                best = (recall, choice, epoch)
        material.on_event(Event("central refinement", done, len(tried) + 1, f"validation recall@20 {best[0]:.4f}"))  # type: ignore[index]
    assert best is not None
    _, choice, epoch = best
    sums = CentralTraining(material, local, choice, epoch, start).over_groups(members, numbers, every=False)
    material.on_event(Event("central refinement", len(tried) + 1, len(tried) + 1, f"{choice}, {epoch} epochs"))
    result: dict[str, Any] = {"rates": vars(choice) | {}, "epochs": epoch}
    for split in ("validation", "test"):
        recall_mean, ndcg_mean = sums[epoch, split].mean()
        result[split] = {"recall@20": float(recall_mean[0]), "ndcg@20": float(ndcg_mean[0])}
    return result


def _sample(numbers: list[int], members: list[NDArray[np.int64]], seed: int) -> list[int]:
    """Random user groups that hold at least SAMPLE devices together, if there are as many."""
    reached, chosen = 0, []
    for group in rng_for(seed, "central-sample").permutation(numbers).tolist():
        if reached >= SAMPLE:
            break
        chosen.append(group)
        reached += len(members[group])
    return chosen


Sums = dict[tuple[int, Split], MetricSums]


@dataclass(frozen=True)
class CentralTraining:
    """How user groups are refined on a server. start: a group's first table (I, d), by number."""

    material: Material
    local: LocalTraining
    rates: Rates
    epochs: int
    start: Callable[[int], FloatArray]

    def over_groups(self, members: list[NDArray[np.int64]], numbers: Sequence[int], *, every: bool) -> Sums:
        """Metric sums by epoch and split: validation after each epoch (``every``), or both splits after the last."""
        total: Sums = {}
        with ThreadPoolExecutor(max_workers=2) as pool:  # the compiled loops release the interpreter lock
            for part in pool.map(lambda group: self._one_group(members[group], group, every), numbers):
                for key, sums in part.items():
                    total[key] = total[key] + sums if key in total else sums
        return total

    def _one_group(self, members: NDArray[np.int64], group: int, every: bool) -> Sums:
        material = self.material
        layout = BlockLayout(np.arange(material.num_items, dtype=np.int32), material.config.embedding_dim, 1)
        result: Sums = {}
        for epoch, (table, users) in enumerate(self.tables(members, group)):
            last: tuple[Split, ...] = ("validation", "test") if epoch == self.epochs else ()
            splits: tuple[Split, ...] = ("validation",) if every else last
            for split in splits:
                ranked = replace(ranked_blocks(layout, "fp32", np.arange(material.num_items), table), precision="fp32")
                whole = np.full(len(members), material.num_items, np.int64)
                exclude = material.seen if split == "test" else material.splits.train
                wanted = material.splits.test if split == "test" else material.splits.validation
                places = np.arange(len(members))
                result[epoch, split] = chosen_quality(
                    ranked, whole, users, exclude.select(members), wanted.select(members), places
                ).sums()
        return result

    def tables(self, members: NDArray[np.int64], group: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        """The group's table (I, d) and its members' embeddings (N, d) before the first and after each epoch.

        The arrays are the same ones each time, changed in place.
        """
        material, local, rates = self.material, self.local, self.rates
        table = np.array(self.start(group), np.float32)
        users = material.users[members].astype(np.float32, copy=True)
        train = material.splits.train.select(members)
        sorted_items = np.concatenate([np.sort(train.row(u)) for u in range(train.num_users)] or [train.items])
        moments = np.zeros_like(table) if rates.optimizer == "adagrad" else np.zeros((1, 1), np.float32)
        yield table, users
        for epoch in range(self.epochs):
            pooled_epoch(
                table,
                users,
                train.indptr,
                sorted_items.astype(np.int64),
                train.users(),
                rng_for(material.seed, "central", group, epoch).permutation(train.num_interactions),
                seed_for(material.seed, "central-negatives", group, epoch),
                local.num_negatives,
                rates.learning_rate,
                rates.user_learning_rate,
                local.l2,
                local.loss == "sampled-softmax",
                local.temperature,
                moments,
            )
            yield table, users
