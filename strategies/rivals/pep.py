"""PEP-style pruning: which entries of the table go is learned with the table, through soft thresholds.

Liu et al., "Learnable Embedding Sizes for Recommender Systems" (PEP), ICLR 2021: an entry w is used as
sign(w) * max(|w| - threshold, 0), and thresholds are trained by the recommendation loss. Their thresholds grow under
weight decay until the wanted sparsity happens to be met; here the level of all thresholds is set in each step so that
the wanted number of entries is left, and what is learned are the thresholds of items and of dimensions relative to
one another. One training from the pretrained tables passes all budgets, the largest first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fl_peel.blocks.compression import SparseTable, most_entries
from fl_peel.randomness import seed_for
from strategies.rivals.base import FloatArray, Material, Option, Request, Rival, whole_table
from strategies.rivals.training import BatchLoss, PrunedTable, training


@dataclass(frozen=True)
class Pep(Rival):
    """Learned thresholds. epochs: passes over the users on the way from one request to the next, the last at its
    own number of entries; rates: of Adam, as parts of the pretraining's, one training each.
    """

    name: str = "pep"
    epochs: int = 1
    rates: tuple[float, ...] = (0.1, 0.01)

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One option a request and rate, in the order of falling numbers of entries."""
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
            users = np.where(material.has_data[:, None], pruned.users.detach().numpy(), np.float32(0))
            users = material.complete(users, table)
            seconds = time.perf_counter() - start
            label = f"{len(stored.flat)} entries, {stored.encoding}, rate {rate:g}"
            yield whole_table(request, stored, users, seconds, label, num_items)
            start = time.perf_counter()
            before = about[request]


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
    return SparseTable.of(table, table != 0, request.precision), table


def _generator(seed: int, place: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, "pep", place, number) >> 1)
