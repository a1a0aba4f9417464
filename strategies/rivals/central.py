"""Central training of rivals' tables.

Each user group's table starts as in the federation and is trained on the pooled train interactions of the group's
members, interaction by interaction in random order, on the full table: the same losses, negatives and number of epochs
as the devices have over all rounds. Learning rates, optimizer and number of epochs are chosen on validation.

Whole users in a batch, the pretraining's own losses, Adam with a learning rate that falls to zero; see
:mod:`fl_peel.pretraining.central_training`, from which these differ in what the loss is taken of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.blocks.layout import BlockLayout
from fl_peel.data.interactions import UserItems
from fl_peel.events import Event
from fl_peel.kernels.rivals import pooled_epoch
from fl_peel.pretraining.central_training import PretrainedEmbeddings, scaled_tables
from fl_peel.pretraining.clusters import UserGroups, choose_group
from fl_peel.pretraining.losses import BatchLoss, InteractionGraph, propagate
from fl_peel.randomness import rng_for, seed_for
from fl_peel.ranking.top import MetricSums
from fl_peel.scenario.settings import LocalTraining, PretrainingConfig
from fl_peel.training.workers import fixed_threads, threads_for
from strategies.rivals.base import FloatArray, Material, Split, chosen_quality, ranked_blocks, sample_of_groups

SAMPLE = 5000
"""Devices, by whole user groups, on which settings are compared; all where there are fewer."""


@dataclass(frozen=True)
class Rates:
    """The learning rates of central refinement. optimizer: optimizer of the table; users always take plain steps."""

    optimizer: Literal["sgd", "adagrad"]
    learning_rate: float
    user_learning_rate: float


def grid(local: LocalTraining) -> tuple[Rates, ...]:
    """Return the settings to try: three sizes of plain steps, two of AdaGrad; users' steps as is or a quarter."""
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
    sample = sample_of_groups({group: members[group] for group in numbers}, material.seed, "central-sample", SAMPLE)
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
                hidden, wanted = (rows(split).select(members) for rows in (material.hidden, material.wanted))
                places = np.arange(len(members))
                result[epoch, split] = chosen_quality(ranked, whole, users, hidden, wanted, places).sums()
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
                np.uint64(seed_for(material.seed, "central-negatives", group, epoch)),
                local.num_negatives,
                rates.learning_rate,
                rates.user_learning_rate,
                local.l2,
                local.loss == "sampled-softmax",
                local.temperature,
                moments,
            )
            yield table, users


@contextmanager
def training(num_interactions: int) -> Iterator[None]:
    """Use as many threads as pretraining takes for data of this size."""
    with fixed_threads(threads_for(num_interactions)):
        yield


def generator_for(seed: int, *what: int | str) -> torch.Generator:
    """Return torch's random numbers for a purpose."""
    return torch.Generator().manual_seed(seed_for(seed, *what) >> 1)


def generators_for(loss_of: BatchLoss, steps: int, seed: int, *what: int | str) -> list[torch.Generator]:
    """Return a generator for each pass over the users, of at least ``steps`` batches together."""
    return [generator_for(seed, *what, number) for number in range(-(-steps // loss_of.num_batches))]


def train_nested(
    given: UserItems, num_items: int, config: PretrainingConfig, widths: Sequence[int], *, seed: int
) -> PretrainedEmbeddings:
    """Tables whose first w columns are good tables by themselves, for every w of ``widths`` (ascending).

    The loss is the mean over the widths. Propagation treats every column by itself, so that a prefix of the spread
    tables is the spread of the prefix.
    """
    dim = widths[-1]
    with training(given.num_interactions):
        loss_of = BatchLoss(given, num_items, config)
        graph = InteractionGraph.build(given, num_items)
        num_layers = config.num_layers if config.model == "lightgcn" else 0
        start = scaled_tables(given, num_items, dim, config.initial_norm, seed=seed)
        users, items = (torch.from_numpy(table).requires_grad_() for table in start)

        def prefixes() -> list[tuple[Tensor, Tensor]]:
            all_users, all_items = propagate(graph, users, items, num_layers)
            return [(all_users[:, :width].contiguous(), all_items[:, :width].contiguous()) for width in widths]

        optimizer = torch.optim.Adam([users, items], lr=config.learning_rate, fused=True)
        for epoch in range(config.epochs):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1.0 - epoch / config.epochs)
            generator = generator_for(seed, "nested", epoch)
            for batch in loss_of.batches(generator):
                optimizer.zero_grad(set_to_none=True)
                losses = [loss_of(u[batch.users], i, batch, generator) for u, i in prefixes()]
                loss = torch.stack(losses).mean() + loss_of.penalty(users, items)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            final_users, final_items = prefixes()[-1]
            final_users = final_users.clone()
            final_users[torch.from_numpy(given.counts() == 0)] = 0.0
        return PretrainedEmbeddings(final_users.numpy(), final_items.numpy(), config.temperature)


def descend(
    users: FloatArray,
    parts: Sequence[FloatArray],
    compose: Callable[[Sequence[Tensor]], Tensor],
    loss_of: BatchLoss,
    *,
    learning_rate: float,
    generators: Sequence[torch.Generator],
) -> tuple[FloatArray, list[FloatArray]]:
    """Users (U, d) and the parts that an item table is composed of, trained on the table's loss.

    compose: from the parts to the table (I, d); generators: one for each pass over the users. Adam, from
    ``learning_rate`` down to zero; the arrays given are left as they are.
    """
    free = [torch.from_numpy(part.astype(np.float32, copy=True)).requires_grad_() for part in (users, *parts)]
    optimizer = torch.optim.Adam(free, lr=learning_rate)
    with training(loss_of.given.num_interactions):
        for number, generator in enumerate(generators):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1.0 - number / len(generators))
            for batch in loss_of.batches(generator):
                optimizer.zero_grad(set_to_none=True)
                table = compose(free[1:])
                loss = loss_of(free[0][batch.users], table, batch, generator) + loss_of.penalty(free[0], table)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    arrays = [part.detach().numpy() for part in free]
    return arrays[0], arrays[1:]


class PrunedTable:
    """An item table under learned soft thresholds; see :mod:`strategies.rivals.compressed`.

    weights: (I, d); log_rows (I, 1) and log_columns (1, d): an entry's threshold is
    ``level * exp(log_row + log_column)``, of which the level is set so that a given number of entries remains.
    """

    def __init__(self, users: FloatArray, items: FloatArray, loss_of: BatchLoss, learning_rate: float) -> None:
        self.users = torch.from_numpy(users.copy()).requires_grad_()
        self.weights = torch.from_numpy(items.copy()).requires_grad_()
        self.log_rows = torch.zeros(items.shape[0], 1, requires_grad=True)
        self.log_columns = torch.zeros(1, items.shape[1], requires_grad=True)
        self._loss_of = loss_of
        self._optimizer = torch.optim.Adam(
            [self.users, self.weights, self.log_rows, self.log_columns], lr=learning_rate
        )

    def thresholds(self, count: int) -> tuple[Tensor, Tensor]:
        """Thresholds (I, d) that leave ``count`` entries, and how far each entry is along: |w| / relative one."""
        relative = torch.exp(self.log_rows + self.log_columns)
        with torch.no_grad():
            ratio = self.weights.abs() / relative
            left_out = ratio.numel() - count
            level = float(np.partition(ratio.numpy().ravel(), left_out - 1)[left_out - 1]) if left_out > 0 else 0.0
        return level * relative, ratio

    def table(self, count: int) -> Tensor:
        """The soft-thresholded table (I, d) with ``count`` entries that are not zero."""
        limits, _ = self.thresholds(count)
        return torch.sign(self.weights) * torch.relu(self.weights.abs() - limits)

    def train(self, counts: Sequence[int], generators: Sequence[torch.Generator]) -> None:
        """One pass over the users for each of ``counts``, with that many entries left."""
        for count, generator in zip(counts, generators, strict=True):
            for batch in self._loss_of.batches(generator):
                self._optimizer.zero_grad(set_to_none=True)
                loss = self._loss_of(self.users[batch.users], self.table(count), batch, generator)
                loss = loss + self._loss_of.penalty(self.users, self.weights)
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
