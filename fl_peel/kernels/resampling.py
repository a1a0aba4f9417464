"""Compiled sums over devices under random weights: the replicates of a bootstrap."""

from __future__ import annotations

import numpy as np
from numba import njit


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
