"""A device's memory in a round: what it holds, which falls with its budget while it trains, and what training takes.

A device chooses blocks for the budget it reads when the round reaches it: it reads its user group's list from the front
and stores block after block, so that choosing takes a block's bytes and no more. It trains the first of them, as many
as its working memory allows. When the budget falls below what it holds, it drops its last blocks on the spot, without
asking anybody, and trains anew if it lost some that it trained; its update is that of a device which held only these.
When not one block is left to train, it drops out: nothing of it is counted. Budgets that rise within a round change
nothing until the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import overhead_bytes, user_bytes
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.memory import TrainingMemory

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class WorkingMemory:
    """The memory that devices (N,) may use while they train, besides what they store: allowed, bytes; interactions:
    train items; takes: what training takes.
    """

    allowed: IntArray
    interactions: IntArray
    takes: TrainingMemory

    def cutoffs(self, ranked: RankedBlocks) -> IntArray:
        """Blocks (N,) that each can train."""
        held = self.takes.most_held(self.allowed, self.interactions)
        return np.searchsorted(ranked.row_pieces, held, side="right").astype(np.int64) - 1

    def most_bytes(self, ranked: RankedBlocks, cutoffs: IntArray) -> IntArray:
        """Bytes (N,) that choosing blocks, and training ``cutoffs`` (N,) of them, never exceed."""
        held = ranked.row_pieces[cutoffs]
        training = np.where(cutoffs > 0, self.takes.most_bytes(held, self.interactions), 0)
        return np.maximum(training, ranked.largest_bytes)

    def taken_bytes(self, ranked: RankedBlocks, cutoffs: IntArray, touched: IntArray) -> IntArray:
        """The same of devices that touched so many row pieces (N,)."""
        held = ranked.row_pieces[cutoffs]
        return np.maximum(self.takes.taken_bytes(held, touched, self.interactions), ranked.largest_bytes)


@dataclass(frozen=True)
class RoundMemory:
    """The memory that devices hold in a round, (N,) each.

    budgets: bytes when the round begins; first: blocks chosen then; last: blocks still held when it ends (a prefix of
    the first); stored: bytes of the first and what lies beside them; violations: steps at which a device held more than
    its budget. started: blocks whose training began; trained: those whose training ended, all that the update covers.
    """

    budgets: IntArray
    first: IntArray
    last: IntArray
    stored: IntArray
    violations: IntArray
    started: IntArray
    trained: IntArray

    @staticmethod
    def from_budgets(ranked: RankedBlocks, budgets: IntArray, trainable: IntArray, extra_bytes: int = 0) -> RoundMemory:
        """budgets: (T, N) bytes at every step of the round; trainable: (N,) blocks that working memory is enough for.

        extra_bytes: bytes that every device holds besides its blocks' file.
        """
        lowest = np.minimum.accumulate(budgets, axis=0)  # (T, N): nothing dropped comes back within the round
        held = ranked.cutoffs(lowest - extra_bytes)
        stored = stored_bytes(ranked, held, lowest, extra_bytes)
        over = (stored > budgets).sum(axis=0).astype(np.int64)
        started, trained = (np.minimum(blocks, trainable) for blocks in (held[0], held[-1]))
        return RoundMemory(budgets[0], held[0], held[-1], stored[0], over, started, trained)

    @property
    def dropped_blocks(self) -> NDArray[np.bool_]:
        """Devices (N,) that lost blocks during the round."""
        return self.last < self.first

    @property
    def interrupted(self) -> NDArray[np.bool_]:
        """Devices (N,) that lost blocks which they trained."""
        return self.trained < self.started

    @property
    def dropped_out(self) -> NDArray[np.bool_]:
        """Devices (N,) that end the round without a single block to train."""
        return np.asarray(self.trained == 0)

    def working_bytes(
        self, ranked: RankedBlocks, working: WorkingMemory, kept: IntArray, touched: IntArray
    ) -> IntArray:
        """Bytes (N,) that the round took besides what is stored. touched: row pieces (M,) of the devices at positions
        ``kept`` (M,), which ended it; the others, and those that were interrupted, count what they may have touched.
        """
        taken = working.most_bytes(ranked, self.started)
        pieces = np.zeros(len(taken), np.int64)
        pieces[kept] = touched
        ended = np.zeros(len(taken), np.bool_)
        ended[kept] = True
        known = ended & ~self.interrupted
        return np.where(known, working.taken_bytes(ranked, self.trained, pieces), taken)


def stored_bytes(ranked: RankedBlocks, cutoffs: IntArray, budgets: IntArray, extra_bytes: int) -> IntArray:
    """Bytes held with these cutoffs; nothing at all where the budget does not hold what every device holds."""
    fits = budgets >= overhead_bytes(ranked.layout.embedding_dim) + extra_bytes
    return np.where(fits, ranked.stored_bytes(cutoffs) + extra_bytes, 0)


def extra_bytes(scenario: Scenario) -> int:
    """Return the bytes that a device holds during refinement besides its file: the user embedding that it may go back
    to.
    """
    goes_back = scenario.refinement.acceptance.rule != "always"
    return user_bytes(scenario.pretraining.embedding_dim) if goes_back else 0
