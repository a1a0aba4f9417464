"""Holdings that devices serve from under a budget: blocks considered, and bytes stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.round.memory import IntArray
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.wire import OWN_BUDGET, UNLIMITED


@dataclass(frozen=True)
class Holdings:
    """The holdings that devices serve from, (N,) each: blocks of the ranked list considered, bytes stored, budgets they
    are under (UNLIMITED where there is none), and whether the list ended before the budget did.
    """

    cutoffs: IntArray
    stored: IntArray
    budgets: IntArray
    short: NDArray[np.bool_]

    @staticmethod
    def under(
        ranked: RankedBlocks, budget: int, factor: float, room: float, own: IntArray, seen: UserItems
    ) -> Holdings:
        """Blocks chosen for ``budget`` bytes (UNLIMITED: all; OWN_BUDGET: ``factor`` times the device's, ``own`` (N,)).

        room: with room >= 0, a device has them only if they fit into ``room`` times its own budget, else nothing.
        """
        return Holdings.without(ranked, budget, factor, room, own, ranked.unneeded(seen))

    @staticmethod
    def without(
        ranked: RankedBlocks, budget: int, factor: float, room: float, own: IntArray, skipped: UserItems
    ) -> Holdings:
        """Return the same holdings where the items that devices skip,
        :meth:`fl_peel.blocks.ranked_blocks.RankedBlocks.unneeded`, are known already.
        """
        num_devices = len(own)
        if budget == UNLIMITED:
            cutoffs = np.full(num_devices, len(ranked.blocks), np.int64)
            stored, unlimited = ranked.stored_bytes(cutoffs), np.full(num_devices, UNLIMITED, np.int64)
            return Holdings(cutoffs, stored, unlimited, np.zeros(num_devices, np.bool_))
        budgets = scaled(own, factor) if budget == OWN_BUDGET else np.full(num_devices, budget, np.int64)
        cutoffs, stored, _ = ranked.cutoffs_without(budgets, skipped)
        short = (cutoffs == len(ranked.blocks)) & (len(ranked.blocks) < ranked.layout.num_blocks)
        if room >= 0:
            budgets = scaled(own, room)
            fits = stored <= budgets
            short &= fits  # with a longer list it would hold as much or more
            cutoffs, stored = np.where(fits, cutoffs, 0), np.where(fits, stored, 0)
        return Holdings(cutoffs, stored, budgets, short)

    @property
    def violations(self) -> IntArray:
        """Devices (N,) that store more than they may: 1, else 0."""
        return np.asarray((self.budgets != UNLIMITED) & (self.stored > self.budgets), np.int64)


def scaled(budgets: IntArray, factor: float) -> IntArray:
    """Budgets times a factor, in whole bytes."""
    return budgets if factor == 1 else np.floor(budgets * factor).astype(np.int64)


__all__ = ["Holdings", "scaled"]
