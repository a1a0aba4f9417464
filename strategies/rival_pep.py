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

from fl_peel.compression import SparseTable, most_entries
from fl_peel.precision import Precision
from fl_peel.randomness import seed_for
from strategies.rival_training import BatchLoss, PrunedTable, fixed_threads
from strategies.rivals import FloatArray, Material, Option, Request, whole_table


@dataclass(frozen=True)
class Pep:
    """Learned thresholds. epochs: passes over the users on the way from one request to the next, the last at its
    own number of entries; learning_rate: of Adam, None for a tenth of the pretraining's.
    """

    name: str = "pep"
    epochs: int = 2
    learning_rate: float | None = None

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One option a request, in the order of falling numbers of entries. Floats are stored in fp16."""
        config = material.config
        num_items, dim = material.pretrained.items.shape
        wanted = sorted(requests, key=lambda r: -self._about(r, num_items, dim))
        rate = self.learning_rate or config.learning_rate / 10
        start = time.perf_counter()
        with fixed_threads(material.given.num_interactions):
            loss_of = BatchLoss(material.given, num_items, config)
            pruned = PrunedTable(material.users, material.pretrained.items, loss_of, rate)
        before = num_items * dim
        for place, request in enumerate(wanted):
            about = self._about(request, num_items, dim)
            if not about:
                continue
            counts = np.geomspace(before, about, self.epochs + 1)[1:].astype(np.int64).tolist()
            with fixed_threads(material.given.num_interactions):
                pruned.train(counts, lambda n, place=place: _generator(material.seed, place, n))  # type: ignore[misc]
            stored, table = pruned_table(pruned, request)
            users = np.where(material.has_data[:, None], pruned.users.detach().numpy(), np.float32(0))
            users = material.complete(users, table)
            seconds = time.perf_counter() - start
            label = f"{len(stored.flat)} entries, {stored.encoding}"
            yield whole_table(request, stored, users, seconds, label, num_items)
            start = time.perf_counter()
            before = about

    def _about(self, request: Request, num_items: int, dim: int) -> int:
        """Entries that fit if those left lie in as many different rows as random ones would."""
        order = np.arange(num_items * dim, dtype=np.int64)
        spread = (order % num_items) * dim + order // num_items  # a row after the other, then again
        return most_entries(spread, num_items, dim, _stored_as(request.precision), request.budget_bytes)


def pruned_table(pruned: PrunedTable, request: Request) -> tuple[SparseTable, FloatArray]:
    """The entries furthest above their thresholds, as many as fit; stored, and as a table (I, d) in floats."""
    precision = _stored_as(request.precision)
    shape = (pruned.weights.shape[0], pruned.weights.shape[1])
    with torch.no_grad():
        ratio = pruned.thresholds(1)[1].numpy()
        order = np.argsort(-ratio.ravel(), kind="stable")
        count = most_entries(order, *shape, precision, request.budget_bytes)
        table = pruned.table(count).numpy()
    return SparseTable.of(table, table != 0, precision), table


def _stored_as(precision: Precision) -> Precision:
    return "fp16" if precision == "fp32" else precision


def _generator(seed: int, place: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, "pep", place, number) >> 1)
