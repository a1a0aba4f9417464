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
