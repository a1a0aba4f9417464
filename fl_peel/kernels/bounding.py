"""Compiled loop over devices: validation signals whose norm is bounded per device before they are added up."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fl_peel.kernels.ranking import block_signals

_UNIT = 16777216.0  # FIXED_POINT, as a literal


@njit(nogil=True, cache=True)
def bounded_hits(
    table,  # (R, d) float32
    position,  # (R, S) int32
    cutoffs,  # (N,) int64
    users,  # (N, d) float32
    best_rows,  # (N, m) int32
    indptr,  # (N + 1,) int64
    rows,  # validation items as table rows, -1 where not here
    bound,  # of a device's hits
    l1,  # bool: in L1 instead of L2
    hits,  # (K,) int64, added to
):
    one, shown = np.zeros(len(hits), np.int64), np.zeros(len(hits), np.int64)
    ends = np.zeros(2, np.int64)
    for i in range(len(best_rows)):
        ends[1] = indptr[i + 1] - indptr[i]
        if ends[1] == 0:
            continue
        one[:] = 0
        here = rows[indptr[i] : indptr[i + 1]]
        block_signals(
            table, position, cutoffs[i : i + 1], users[i : i + 1], best_rows[i : i + 1], ends, here, one, shown
        )
        size = 0.0
        for b in range(len(one)):
            value = np.float64(one[b])
            size += abs(value) if l1 else value * value
        if not l1:
            size = math.sqrt(size)
        limit = bound * _UNIT * (1.0 - 1e-12)
        if size > limit:
            for b in range(len(one)):
                hits[b] += np.int64(np.float64(one[b]) * (limit / size))  # towards zero: never above the bound
        else:
            for b in range(len(one)):
                hits[b] += one[b]
