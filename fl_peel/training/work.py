"""What devices of one user group are to train: the one value that compiled, torch and poisoned training take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.training.settings import LocalTraining


@dataclass(frozen=True)
class LocalWork:
    """Local training to be done for devices (N,), each of which starts from the same blocks.

    ranked: the blocks; cutoffs: (N,) how many of them each keeps; users: (N, d) embeddings to start with; train: N rows
    of item numbers; seeds: (N,), one per device; how: settings of the training; device: where it is computed, as
    ``engine.device``.
    """

    ranked: RankedBlocks
    cutoffs: NDArray[np.int64]
    users: NDArray[np.float32]
    train: UserItems
    seeds: NDArray[np.uint64]
    how: LocalTraining
    device: str = "cpu"

    def __len__(self) -> int:
        """Return the number of devices, N."""
        return len(self.cutoffs)

    def select(self, devices: NDArray[np.int64]) -> LocalWork:
        """Return the work of some of the devices, by their places (M,)."""
        return replace(
            self,
            cutoffs=self.cutoffs[devices],
            users=self.users[devices],
            train=self.train.select(devices),
            seeds=self.seeds[devices],
        )
