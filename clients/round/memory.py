"""A memory budget that falls while its device trains.

A device chooses blocks for the budget it reads when the round reaches it. When the budget falls below what it holds,
it drops its last blocks on the spot, without asking anybody, and trains anew on those it still holds; its update is
that of a device which held only these. When not one block fits any more, it drops out: nothing of it is counted.
Budgets that rise within a round change nothing until the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked import RankedBlocks
from fl_peel.blocks.stored import overhead_bytes

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class RoundMemory:
    """What devices hold in a round, (N,) each.

    budgets: bytes when the round begins; first: blocks chosen then; last: blocks still held when it ends (a prefix of
    the first, and all that the update covers); stored: bytes of the first; violations: steps at which a device held
    more than its budget.
    """

    budgets: IntArray
    first: IntArray
    last: IntArray
    stored: IntArray
    violations: IntArray

    @staticmethod
    def of(ranked: RankedBlocks, budgets: IntArray) -> RoundMemory:
        """budgets: (T, N) bytes at every step of the round."""
        lowest = np.minimum.accumulate(budgets, axis=0)  # (T, N): nothing dropped comes back within the round
        held = ranked.cutoffs(lowest.reshape(-1)).reshape(lowest.shape)
        stored = stored_bytes(ranked, held, lowest)
        return RoundMemory(budgets[0], held[0], held[-1], stored[0], (stored > budgets).sum(axis=0).astype(np.int64))

    @property
    def dropped_blocks(self) -> NDArray[np.bool_]:
        """Devices (N,) that lost blocks while they trained."""
        return self.last < self.first

    @property
    def dropped_out(self) -> NDArray[np.bool_]:
        """Devices (N,) that end the round without a single block."""
        return np.asarray(self.last == 0)


def stored_bytes(ranked: RankedBlocks, cutoffs: IntArray, budgets: IntArray) -> IntArray:
    """Bytes stored with these cutoffs; nothing at all where the budget does not hold header and user embedding."""
    fits = budgets >= overhead_bytes(ranked.layout.embedding_dim)
    return np.where(fits, ranked.stored_bytes(cutoffs), 0)


__all__ = ["RoundMemory", "stored_bytes"]
