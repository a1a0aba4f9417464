"""What the server knows about the blocks of one user group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.scenario.settings import FeatureName

FloatArray = NDArray[np.float32]
LEAST_SHOWN = 1e-3
"""Rate that is added to the exposure and popularity of blocks before the logarithm is taken."""


@dataclass
class BlockStatistics:
    """Statistics of the blocks of one user group that the server knows; (B,) each.

    Rates are per device and per item of the block, so that a large item group has no advantage by its size. ``hits``
    and ``exposure`` are the validation signals, accumulated over rounds.

    popularity: train interactions; shown: appearances in top lists, discounted by rank (the selector and feature
    ``exposure``); global_popularity: train interactions over all devices; loss: mean local loss (0: unknown); energy:
    mean squared norm of the row pieces; exposure: devices that stored the block times its items.
    """

    popularity: FloatArray
    shown: FloatArray
    global_popularity: FloatArray
    loss: FloatArray
    energy: FloatArray
    hits: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    exposure: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not len(self.hits):
            self.hits = np.zeros(len(self.popularity))
            self.exposure = np.zeros(len(self.popularity))

    @staticmethod
    def unknown(num_blocks: int) -> dict[str, NDArray[Any]]:
        """Return statistics without any observation: loss, hits and exposure are zero. User groups may share it; each
        gets arrays of its own as it learns."""
        loss, signals = np.zeros(num_blocks, np.float32), np.zeros(num_blocks)
        loss.flags.writeable = signals.flags.writeable = False
        return {"loss": loss, "hits": signals, "exposure": signals}

    def of_item_groups(self, num_slices: int) -> BlockStatistics:
        """Return the statistics of whole item groups, (B / num_slices,) each, whose slices are that many blocks."""
        if num_slices == 1:
            return self
        by_slice = {name: known.reshape(-1, num_slices) for name, known in vars(self).items()}
        added = {name: by_slice[name].sum(axis=1) for name in ("shown", "energy", "hits")}
        widest = {name: by_slice[name].max(axis=1) for name in ("popularity", "global_popularity", "loss", "exposure")}
        return BlockStatistics(**added, **widest)

    def features(self, names: Sequence[FeatureName]) -> FloatArray:
        """Return the controller's inputs (B, F): rates and energies as logarithms, the loss as it is."""
        columns = []
        for name in names:
            match name:
                case "exposure":
                    columns.append(np.log(self.shown + LEAST_SHOWN))
                case "popularity":
                    columns.append(np.log(self.popularity + LEAST_SHOWN))
                case "global-popularity":
                    columns.append(np.log(self.global_popularity + 1e-5))
                case "loss":
                    columns.append(self.loss)
                case "energy":
                    columns.append(np.log(self.energy + 1e-6))
        return np.stack(columns, axis=1).astype(np.float32)

    def add_signals(self, hits: NDArray[np.float64], exposure: NDArray[np.float64], memory: float) -> None:
        """Add one round's validation hits and exposure (B,)."""
        self.hits = memory * self.hits + hits
        self.exposure = memory * self.exposure + exposure
