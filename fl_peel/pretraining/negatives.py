"""Which items is a batch of users compared with? All, or some that are drawn, each of which stands for several.

Most of a softmax's sum lies with popular items. Where these are drawn more often, and count for less each time, the
sum over what is drawn varies less about the sum over all: its estimate is without bias whatever the chances are
(Horvitz and Thompson, JASA 1952; for a softmax, Bengio and Senecal, IEEE TNN 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.scenario.pretraining_settings import PretrainingConfig


@dataclass(frozen=True)
class Candidates:
    """Drawn items, negatives that a whole batch shares.

    items: (M,) different item numbers; log_stands_for: (M,) logarithm of how many items each stands for, one over its
    chance to be drawn.
    """

    items: Tensor
    log_stands_for: Tensor

    @staticmethod
    def alike(items: Tensor, num_items: int) -> Candidates:
        """Items (M,) that were drawn of ``num_items``, all with the same chance."""
        return Candidates(items, torch.full(items.shape, math.log(num_items / len(items)), device=items.device))


@dataclass(frozen=True)
class CandidateSampler:
    """Draws the negatives of a step.

    num_items: I; count: M of them are drawn, 0 or at least I: none, as all take part; chances: (I,) each item's to be
    among them, sum M, None: all the same.
    """

    num_items: int
    count: int
    chances: NDArray[np.float64] | None = None

    @staticmethod
    def from_config(config: PretrainingConfig, popularity: NDArray[np.float64]) -> CandidateSampler:
        """As the settings have it. popularity: (I,) interactions with each item."""
        num_items, count = len(popularity), config.num_negatives
        by_popularity = config.negatives_exponent and 0 < count < num_items
        weighted = chances((popularity + 1.0) ** config.negatives_exponent, count) if by_popularity else None
        return CandidateSampler(num_items, count, weighted)

    def draw(self, generator: torch.Generator, device: str = "cpu") -> Candidates | None:
        """Those of a step; None stands for all items."""
        if self.chances is None:
            alike = evenly_drawn(self.num_items, self.count, generator, device)
            return None if alike is None else Candidates.alike(alike, self.num_items)
        order = torch.randperm(self.num_items, generator=generator)
        items = order[torch.from_numpy(systematic(self.chances[order.numpy()], _uniform(generator)))].to(device)
        stands_for = -np.log(self.chances[items.cpu().numpy()])
        return Candidates(items, torch.from_numpy(stands_for.astype(np.float32)).to(device))


def evenly_drawn(num_items: int, count: int, generator: torch.Generator, device: str = "cpu") -> Tensor | None:
    """``count`` different items of ``num_items``; None stands for all."""
    if not 0 < count < num_items:
        return None
    return torch.randperm(num_items, generator=generator)[:count].to(device)


def _uniform(generator: torch.Generator) -> float:
    """Evenly drawn from [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def chances(weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Chances (I,) to be among ``count`` different items that go with ``weights`` (I,), all above 0; sum ``count``.

    Where a chance would be above 1 the item is always drawn, and the others share what is left.
    """
    certain = np.zeros(len(weights), bool)
    while True:
        shares = np.where(certain, 1.0, weights * ((count - certain.sum()) / weights[~certain].sum()))
        above = (shares > 1.0) & ~certain
        if not above.any():
            return shares
        certain |= above


def systematic(chances: NDArray[np.float64], start: float) -> NDArray[np.int64]:
    """Places of a systematic sample (Madow, Annals of Mathematical Statistics 1949): every unit of the running sum of
    ``chances`` (I,), none above 1, from ``start`` in [0, 1) on, falls upon one; exactly as many as the sum, a whole
    number. In random order every place comes with its chance.
    """
    ends = np.cumsum(chances)
    ends[-1] = round(ends[-1])  # of which rounding may have left a part
    drawn: NDArray[np.int64] = np.flatnonzero(np.diff(np.floor(ends + start), prepend=0.0))
    return drawn
