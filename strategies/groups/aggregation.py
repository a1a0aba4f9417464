"""Block-wise aggregation on plain arrays: from sums over devices to mean updates, and the server's optimizer, which
applies them to the rows of a group table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.kernels import FIXED_POINT, add_rows, step_rows

FloatArray = NDArray[np.float32]


@dataclass
class ServerOptimizer:
    """Applies mean updates to rows of one table (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).

    ``sgd`` adds learning_rate x update; ``adam`` and ``adagrad`` keep moments per table entry. Entries that no device
    changed stay as they are, and so do their moments.
    """

    name: Literal["sgd", "adam", "adagrad"]
    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-3
    _first: FloatArray | None = field(default=None, repr=False)
    _second: FloatArray | None = field(default=None, repr=False)

    def apply(
        self, table: FloatArray, items: NDArray[np.integer], update: FloatArray, changed: NDArray[np.bool_]
    ) -> None:
        """Change rows ``items`` (R,) of ``table`` (I, d) in place by ``update`` (R, d), where ``changed`` (R, d)."""
        if self.name == "sgd":
            step = update
        else:
            if self._first is None or self._second is None:
                self._first, self._second = np.zeros_like(table), np.zeros_like(table)
            first, second = self._first[items], self._second[items]
            if self.name == "adagrad":
                first, second = update, second + update**2
            else:
                first = self.beta_1 * first + (1 - self.beta_1) * update
                second = self.beta_2 * second + (1 - self.beta_2) * update**2
            step = first / (np.sqrt(second) + np.float32(self.epsilon))
            self._first[items] = np.where(changed, first, self._first[items])
            self._second[items] = np.where(changed, second, self._second[items])
        table[items] += np.where(changed, np.float32(self.learning_rate) * step, np.float32(0))


Denominator = Literal["holders", "touched"]


CHUNK_ROWS = 2048
"""Rows whose sums are added up at a time: as many as stay in a processor's own cache."""


@dataclass
class BlockSums:
    """The sums over the devices of one user group in a round, added up over nodes. Order-free: all integers.

    For R table rows of S slices and K ranked blocks: parts, the rows (T,) and sums (T, d) of every node; touched
    (R, S); row_loss, row_examples (R,); holders, hits, shown, exposed (K,).
    """

    dim: int
    parts: list[tuple[NDArray[np.integer], NDArray[np.integer]]]
    touched: NDArray[np.int64]
    row_loss: NDArray[np.int64]
    row_examples: NDArray[np.int64]
    holders: NDArray[np.int64]
    hits: NDArray[np.int64]
    shown: NDArray[np.int64]
    exposed: NDArray[np.int64]

    @staticmethod
    def zeros(num_rows: int, num_slices: int, dim: int, num_blocks: int) -> BlockSums:
        return BlockSums(
            dim,
            [],
            np.zeros((num_rows, num_slices), np.int64),
            *(np.zeros(num_rows, np.int64) for _ in range(2)),
            *(np.zeros(num_blocks, np.int64) for _ in range(4)),
        )

    def add(self, reply: dict[str, NDArray[np.integer]]) -> None:
        """Add one node's reply for this user group; its rows are distinct."""
        rows = reply["rows"]
        self.parts.append((rows, reply["sums"]))
        if "wide_rows" in reply:
            self.parts.append((reply["wide_rows"], reply["wide_sums"]))
        for name in ("touched", "row_loss", "row_examples"):
            getattr(self, name)[rows] += reply[name]
        for name in ("holders", "hits", "shown", "exposed"):
            if name in reply:
                getattr(self, name)[:] += reply[name]

    @property
    def sums(self) -> NDArray[np.int64]:
        """Block updates (R, d) in units of 1 / FIXED_POINT, added up."""
        total = np.zeros((len(self.touched), self.dim), np.int64)
        for rows, sums in self.parts:
            add_rows(total, 0, rows, sums)
        return total


def mean_update(
    total: BlockSums, position: NDArray[np.int32], denominator: Denominator
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Mean block update (R, d), and which entries any device changed (R, d).

    position: (R, S) rank of each block, K where it was not sent. "holders" divides by the devices that held the block
    (McMahan et al., AISTATS 2017, block by block); "touched" by those that changed that slice of the row: with one item
    per block most holders never meet a given item, and a mean over them would forget what the others learned.
    """
    width = total.dim // position.shape[1]
    mean = total.sums * np.repeat(_scale(total, position, denominator), width, axis=1)
    return mean.astype(np.float32), np.repeat(total.touched > 0, width, axis=1)


def _scale(total: BlockSums, position: NDArray[np.int32], denominator: Denominator) -> NDArray[np.float64]:
    """Return the factors (R, S) that turn sums into means."""
    counts = total.touched
    if denominator == "holders":
        counts = np.concatenate([total.holders, [0]])[position]
    return np.where(counts > 0, 1.0 / (np.maximum(counts, 1) * FIXED_POINT), 0.0)


def apply_mean(
    table: FloatArray,
    items: NDArray[np.int32],
    total: BlockSums,
    position: NDArray[np.int32],
    denominator: Denominator,
    optimizer: ServerOptimizer,
) -> None:
    """Change rows ``items`` (R,) of ``table`` (I, d) in place by the mean update: mean_update, then optimizer.apply.

    Plain steps take sums to the table chunk by chunk and build no mean of the whole table; the result is the same to
    the last bit.
    """
    ascending = all((np.diff(rows) > 0).all() for rows, _ in total.parts)
    if optimizer.name != "sgd" or not ascending:
        update, changed = mean_update(total, position, denominator)
        rows = changed.any(axis=1)
        optimizer.apply(table, items[rows], update[rows], changed[rows])
        return
    scale = np.where(total.touched > 0, _scale(total, position, denominator), 0.0)
    chunk = np.zeros((min(CHUNK_ROWS, len(items)), total.dim), np.int64)
    for start in range(0, len(items), CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, len(items))
        for part, sums in total.parts:
            first, last = np.searchsorted(part, [start, stop])
            add_rows(chunk, start, part[first:last], sums[first:last])
        step_rows(table, items[start:stop], chunk, scale[start:stop], np.float32(optimizer.learning_rate))
