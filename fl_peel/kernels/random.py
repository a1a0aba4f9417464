"""A device's own random numbers, inside compiled loops."""

from __future__ import annotations

import numpy as np
from numba import njit

STEP = np.uint64(0x9E3779B97F4A7C15)
"""What a state grows by with every number."""


@njit(nogil=True, cache=True, inline="always")
def _mixed(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def next_number(state):
    """One step of SplitMix64: the new state and 64 random bits."""
    state = state + STEP
    return state, _mixed(state)


@njit(nogil=True, cache=True, inline="always")
def next_below(state, bound, numbers):
    """The next len(numbers) of the numbers 0..bound-1, many at a time; the state moves by ``STEP`` for each that is
    used.
    """
    for k in range(len(numbers)):
        numbers[k] = below(_mixed(state + np.uint64(k + 1) * STEP), bound)


@njit(nogil=True, cache=True, inline="always")
def below(bits, bound):
    """Map 64 random bits to 0..bound-1 (bound < 2**32)."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


# ---- Compiled drawing of synthetic devices' items


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
                state, bits = next_number(state)
                if _uniform(bits) < noise:
                    state, bits = next_number(state)
                    world = (world + 1 + np.int64(_uniform(bits) * (num_groups - 1))) % num_groups
            ranks = (num_items - world + num_groups - 1) // num_groups  # of this world
            while True:
                state, bits = next_number(state)
                rank = np.searchsorted(cumulative[:ranks], _uniform(bits) * cumulative[ranks - 1], side="right")
                item = min(rank, ranks - 1) * num_groups + world
                if taken_by[item] != i:
                    taken_by[item] = i
                    items[j] = item
                    break


# ---- Compiled sums over devices under random weights: the replicates of a bootstrap


@njit(nogil=True, cache=True)
def weighted_sums(
    seeds,  # (N,) uint64, of each device
    limits,  # (K,) float64: a weight is the number of limits that a uniform number reaches
    values,  # (N, C) float64, whole numbers
    sums,  # (C, B) float64, added to: whole numbers below 2**53, so that every addition is exact
):
    num_columns, num_replicates = sums.shape
    uniform = np.empty(num_replicates, np.float64)
    weight = np.empty(num_replicates, np.float64)
    for i in range(len(seeds)):
        for b in range(num_replicates):  # SplitMix64, by its counter: nothing here waits for the number before
            z = seeds[i] + np.uint64(b + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            uniform[b] = np.float64(np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(11))) * 2.0**-53
            weight[b] = 0.0
        for k in range(len(limits)):
            limit = limits[k]
            for b in range(num_replicates):
                weight[b] += 1.0 if uniform[b] >= limit else 0.0
        for c in range(num_columns):
            value = values[i, c]
            for b in range(num_replicates):
                sums[c, b] += weight[b] * value
