"""Hashing: items share rows, told apart by two of them each.

Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems", KDD
2020, the quotient-remainder trick: of two tables, item i has row i mod m of the one and row floor(i / m) of the other,
added or multiplied. Items are numbered by popularity here, which costs nothing, as the server gives the numbers: so the
m most popular have a remainder row of their own, and the rest change it by their quotient's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.blocks.compression import DenseTable
from fl_peel.blocks.precision import row_bytes
from fl_peel.blocks.settings import Precision
from fl_peel.blocks.stored import HEADER_BYTES
from fl_peel.randomness import rng_for, seed_for
from strategies.rivals.base import TOP_N, FloatArray, IntArray, Material, Option, Request, Rival, whole_table
from strategies.rivals.quality import quality
from strategies.rivals.table_rivals import narrowed
from strategies.rivals.training import BatchLoss, descend

Operation = Literal["add", "multiply"]


@dataclass(frozen=True)
class HashedTable:
    """remainders (m, d), quotients (ceil(I / m), d); number: (I,) of each item, by popularity."""

    remainders: DenseTable
    quotients: DenseTable
    operation: Operation
    number: IntArray

    @property
    def user_dim(self) -> int:
        """Return the number of columns of both tables."""
        return self.remainders.dim

    @property
    def kind(self) -> str:
        """Operation, precision, shape."""
        return f"hashed-{self.operation} {self.remainders.precision} {len(self.remainders.codes)} {self.user_dim}"

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Codes of both tables, the remainders' first, and scales likewise."""
        both = [self.remainders.tensors(), self.quotients.tensors()]
        return {name: np.concatenate([part[name] for part in both]) for name in both[0]}

    def decoded(self) -> tuple[NDArray[np.int32], FloatArray]:
        """Return all items with their rows."""
        parts = [torch.from_numpy(part.decoded()[1]) for part in (self.remainders, self.quotients)]
        table: FloatArray = composed(parts, torch.from_numpy(self.number), self.operation).numpy()
        return np.arange(len(self.number), dtype=np.int32), table


def composed(parts: Sequence[Tensor], number: Tensor, operation: Operation) -> Tensor:
    """The table (I, d) of remainders (m, d) and quotients; number: (I,)."""
    remainders, quotients = parts
    first, second = remainders[number % len(remainders)], quotients[number // len(remainders)]
    return first + second if operation == "add" else first * second


def most_remainders(num_items: int, dim: int, precision: Precision, budget_bytes: int) -> int:
    """The most rows m of the first table that fit, with ceil(I / m) of the second; 0 where none does."""
    rows = max(budget_bytes - HEADER_BYTES - 2 * dim, 0) // row_bytes(dim, precision)
    fitting = (m for m in range(min(rows, num_items), 0, -1) if m + -(-num_items // m) <= rows)
    return next(fitting, 0)


@dataclass(frozen=True)
class Hashing(Rival):
    """dims: columns, as parts of d; steps: of training, in whole passes over the users; rates: of Adam, as parts of the
    pretraining's.

    Operation and rate are chosen at the largest budget, in the last of the dims; dims for every request.
    """

    name: str = "hashing"
    dims: tuple[float, ...] = (0.125, 0.25)
    operations: tuple[Operation, ...] = ("add", "multiply")
    steps: int = 400
    rates: tuple[float, ...] = (1.0, 4.0, 16.0)

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option]:
        """One option a request and dim; those that the operation and rate were chosen from belong to one request."""
        widths = [max(round(share * material.pretrained.items.shape[1]), 1) for share in self.dims]
        largest = max(requests, key=lambda request: request.budget_bytes, default=None)
        if largest is None:
            return
        tried = [
            (option, operation, rate)
            for operation in self.operations
            for rate in self.rates
            if (option := self._trained(material, largest, widths[-1], operation, rate)) is not None
        ]
        if not tried:
            return
        yield from (option for option, _, _ in tried)
        _, operation, rate = max(tried, key=lambda one: quality(one[0], material, "validation")[f"recall@{TOP_N}"])
        for request in requests:
            for width in widths if request != largest else widths[:-1]:
                option = self._trained(material, request, width, operation, rate)
                if option is not None:
                    yield option

    def _trained(
        self, material: Material, request: Request, dim: int, operation: Operation, rate: float
    ) -> Option | None:
        num_items = material.num_items
        count = most_remainders(num_items, dim, request.precision, request.budget_bytes)
        if not count:
            return None
        start = time.perf_counter()
        table, users = narrowed(material, dim)
        order = np.argsort(-material.popularity, kind="stable")
        number = np.empty(num_items, np.int64)
        number[order] = np.arange(num_items)
        place = torch.from_numpy(number)
        identity = ("hashing", request.precision, request.budget_bytes, dim, operation)
        rng = rng_for(material.seed, *identity)
        spread = np.float32(table.std())
        remainders, quotients = (
            rng.standard_normal((rows, dim), np.float32) for rows in (count, -(-num_items // count))
        )
        second = spread * quotients if operation == "add" else np.float32(1) + np.float32(0.3) * quotients
        loss_of = BatchLoss(material.given, num_items, material.config)
        users, parts = descend(
            users,
            [spread * remainders, second],
            lambda tables: composed(tables, place, operation),
            loss_of,
            learning_rate=rate * material.config.learning_rate,
            generators=[
                torch.Generator().manual_seed(seed_for(material.seed, *identity, epoch) >> 1)
                for epoch in range(loss_of.epochs(self.steps))
            ],
        )
        first, other = (DenseTable.from_table(part, request.precision) for part in parts)
        stored = HashedTable(first, other, operation, number)
        users = np.where(material.has_data[:, None], users, np.float32(0))
        users = material.complete(users, stored.decoded()[1])
        label = f"{dim} columns, {count} remainders, {operation}, rate {rate:g}"
        return whole_table(request, stored, users, time.perf_counter() - start, label, num_items)
