"""Which items or rows devices have, as counts within a bound: of a round, and of stage 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BELOW = 1.0 - 1e-12
"""Bounds are met from below, by more than a sum of squares can be rounded."""


def counts_within(
    owners: NDArray[np.int64],
    places: NDArray[np.integer],
    num_places: int,
    bound: float,
    unit: float,
    *,
    l1: bool,
) -> NDArray[np.int64]:
    """Devices that have each place (P,), in units of 1 / unit: one that has n places counts bound / sqrt(n) in each
    (L1: bound / n), 1 at most. owners, places: (N,) pairs, of which each counts once.
    """
    pairs = np.unique(owners * num_places + places)
    owners, places = pairs // max(num_places, 1), pairs % max(num_places, 1)
    distinct = np.bincount(owners)
    spread = np.maximum(distinct, 1) if l1 else np.sqrt(np.maximum(distinct, 1))
    each = np.floor(np.minimum(1.0, bound * BELOW / spread) * unit).astype(np.int64)
    counts = np.zeros(num_places, np.int64)
    np.add.at(counts, places, each[owners])
    return counts
