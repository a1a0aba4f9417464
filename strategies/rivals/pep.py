"""PEP-style pruning: which entries of the table go is learned with the table, through soft thresholds.

Liu et al., "Learnable Embedding Sizes for Recommender Systems" (PEP), ICLR 2021: an entry w is used as
sign(w) * max(|w| - threshold, 0), and thresholds are trained by the recommendation loss. Their thresholds grow under
weight decay until the wanted sparsity happens to be met; here the level of all thresholds is set in each step so that
the wanted number of entries is left, and what is learned are the thresholds of items and of dimensions relative to
one another. One training from the pretrained tables passes all budgets, the largest first.

Section 3.3 of the paper: what is left is then retrained, from the values that it had at first, with the others held at
zero (a lottery ticket). At first means the pretrained table here, as that is where the search began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_peel.blocks.compression import SparseTable, most_entries
from fl_peel.randomness import seed_for
from strategies.rivals.base import FloatArray, Material, Option, Request, Rival, whole_table
from strategies.rivals.training import BatchLoss, PrunedTable, descend, training


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
        """Yield, for each request and rate, what the thresholds leave, as it is and retrained at every rate of that; in
        the order of falling numbers of entries.
        """
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
                pruned.train(counts, [_generator(material.seed, place, number) for number in range(self.epochs)])
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
            generators=[
                torch.Generator().manual_seed(seed_for(material.seed, "pep-retraining", epoch) >> 1)
                for epoch in range(loss_of.epochs(self.steps))
            ],
        )
        return users, np.where(kept, table, np.float32(0))


def _option(
    material: Material, request: Request, stored: SparseTable, users: FloatArray, start: float, label: str
) -> Option:
    """Make the option that a trained table is. users (U, d): embeddings of those who gave data; start: time when its
    training began.
    """
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


def _generator(seed: int, place: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, "pep", place, number) >> 1)
