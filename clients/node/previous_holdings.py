"""Holdings of a node's devices in the last period of a timeline, which the node remembers for them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from fl_peel.data.interactions import IntArray
from fl_peel.errors import EngineError
from fl_peel.wire import OWN_BUDGET

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class PreviousHoldings:
    """The previous holdings of the hosted devices, (N,) by place: user group, -1 where there is none; cutoffs: (N, X)
    how far they read under each budget (X,); ranks: (G, B) of every block in the list of each group, NEVER where it was
    not.
    """

    groups: IntArray
    cutoffs: IntArray
    ranks: NDArray[np.int32]
    budgets: IntArray

    @staticmethod
    def read(cohort: Cohort, budgets: IntArray | None = None) -> PreviousHoldings:
        """Read what was saved, for all devices that are or were hosted. budgets: (X,), used where nothing was saved
        yet.

        Raises:
            EngineError: what was saved is damaged.
        """
        count = len(cohort.devices)
        if not cohort.held_file.is_file():
            some = np.zeros(0, np.int64) if budgets is None else budgets
            nothing = np.zeros((count, len(some)), np.int64), np.zeros((0, 0), np.int32)
            return PreviousHoldings(np.full(count, -1, np.int64), *nothing, some)
        try:
            with np.load(cohort.held_file) as kept:
                known, some = len(kept["groups"]), kept["budgets"]
                count = max(count, known)
                groups, cutoffs = np.full(count, -1, np.int64), np.zeros((count, len(some)), np.int64)
                groups[:known], cutoffs[:known] = kept["groups"], kept["cutoffs"]
                return PreviousHoldings(groups, cutoffs, kept["ranks"], some)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise EngineError(
                f"{cohort.held_file}: the state of this node's devices is damaged; start the run again"
            ) from error

    def save(self, cohort: Cohort) -> None:
        """Save the holdings for the next period."""
        cohort.held_file.parent.mkdir(parents=True, exist_ok=True)
        part = cohort.held_file.with_suffix(".part.npz")
        np.savez(part, **vars(self))
        part.replace(cohort.held_file)  # a node that dies meanwhile leaves what was

    @property
    def own(self) -> int:
        """Return the index of the devices' own budget, the one that moves."""
        return int(np.flatnonzero(self.budgets == OWN_BUDGET)[0])

    def held_blocks(self, places: IntArray, budget: int, blocks: IntArray) -> NDArray[np.bool_]:
        """Return which of these blocks (K,) the devices at ``places`` (N,) held, (N, K)."""
        held = np.zeros((len(places), len(blocks)), np.bool_)
        known = np.flatnonzero(blocks < self.ranks.shape[1])
        some = np.flatnonzero(self.groups[places] >= 0)
        ranks = self.ranks[self.groups[places[some]]][:, blocks[known]] if len(some) else np.zeros((0, len(known)))
        held[np.ix_(some, known)] = ranks < self.cutoffs[places[some], budget][:, None]
        return held

    def current_groups(self, former: IntArray) -> IntArray:
        """Return the present numbers (N,) of the devices' user groups, -1 for a group that no longer exists. former:
        (G,) previous numbers of the present groups, -1 for new ones.
        """
        current = np.full(max(int(self.groups.max(initial=-1)), int(former.max(initial=-1))) + 2, -1, np.int64)
        known = np.flatnonzero(former >= 0)
        current[former[known]] = known
        return np.where(self.groups >= 0, current[self.groups], -1)
