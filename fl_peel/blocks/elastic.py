"""One device's elastic embedding: the list of its user group, and what it keeps of it under a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.errors import BudgetError


@dataclass(frozen=True)
class ElasticEmbedding:
    """One device's elastic embedding: the list of its user group, and what it keeps of it under a budget.

    >>> pee = ElasticEmbedding(ranked, user, seen_items)      # doctest: +SKIP
    >>> small = pee.at(budget_bytes=10_000)                   # a StoredEmbedding of at most 10,000 bytes
    """

    ranked: RankedBlocks
    user: NDArray[np.float32]
    seen: NDArray[np.integer]
    user_group: int = 0

    def kept(self, budget_bytes: int) -> NDArray[np.int64]:
        """Block numbers kept under a budget, best first; empty where not even the user embedding fits."""
        items = np.unique(self.seen).astype(np.int32)  # seen twice is seen once
        seen = UserItems(np.array([0, len(items)], np.int64), items)
        cutoff = int(self.ranked.serving_cutoffs(np.array([budget_bytes], np.int64), seen)[0][0])
        skipped = self.ranked.unneeded(seen).items
        ranks = np.setdiff1d(np.arange(cutoff), skipped)
        return self.ranked.blocks[ranks]

    def at(self, budget_bytes: int) -> StoredEmbedding:
        """The artefact for a budget.

        Raises:
            BudgetError: the budget does not even hold the header and the user embedding.
        """
        layout = self.ranked.layout
        if budget_bytes < overhead_bytes(layout.embedding_dim):
            raise BudgetError(
                f"budget {budget_bytes} B does not hold header and user embedding "
                f"({overhead_bytes(layout.embedding_dim)} B); raise the budget"
            )
        blocks = self.kept(budget_bytes)
        items, slices, _ = layout.block_rows(blocks)
        rows = self.ranked.table.reshape(-1, layout.num_slices, layout.slice_dim)
        pieces = rows[self.ranked.row_of_item[items], slices]  # (T, s)
        return StoredEmbedding.from_pieces(layout, self.ranked.precision, self.user, blocks, pieces, self.user_group)

    def top_n(self, budget_bytes: int, n: int) -> NDArray[np.int64]:
        """Items recommended under a budget, best first."""
        stored = self.at(budget_bytes)
        layout = self.ranked.layout
        return layout.catalogue[stored.top_n(n, layout.row_in_catalogue[self.seen])].astype(np.int64)
