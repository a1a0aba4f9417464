"""Compiled drawing of synthetic devices' items."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, inline="always")
def _next(state):
    """One step of SplitMix64: the new state and 64 random bits."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def _uniform(bits):
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@njit(nogil=True, cache=True)
def draw_items(
    seeds,  # (N,) uint64
    groups,  # (N,) int32
    indptr,  # (N + 1,) int64: how many each device takes
    cumulative,  # (ranks,) float64: cumulative weights of a world's ranks
    num_items,
    num_groups,
    noise,
    items,  # (indptr[-1],) int32, written
):
    taken_by = np.full(num_items, -1, np.int32)
    for i in range(len(seeds)):
        state = seeds[i]
        for j in range(indptr[i], indptr[i + 1]):
            world = np.int64(groups[i])
            if noise > 0.0:
                state, bits = _next(state)
                if _uniform(bits) < noise:
                    state, bits = _next(state)
                    world = (world + 1 + np.int64(_uniform(bits) * (num_groups - 1))) % num_groups
            ranks = (num_items - world + num_groups - 1) // num_groups  # of this world
            while True:
                state, bits = _next(state)
                rank = np.searchsorted(cumulative[:ranks], _uniform(bits) * cumulative[ranks - 1], side="right")
                item = min(rank, ranks - 1) * num_groups + world
                if taken_by[item] != i:
                    taken_by[item] = i
                    items[j] = item
                    break
