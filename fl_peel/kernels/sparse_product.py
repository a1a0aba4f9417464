"""Compiled sparse products of pretraining. A sum adds its terms one by one, in the order that they are stored, one
rounding a product and one a sum: the same bits on every processor and for any number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def spread_rows(
    indptr,  # (n + 1,) int32
    columns,  # (indptr[-1],) int32
    values,  # (indptr[-1],) float32
    table,  # (m, d) float32
    first,
    last,
    out,  # (n, d) float32, rows first .. last written: of the product of the sparse matrix and the table
    total,  # (n, d) float32, or (0, d): the same rows are added to it
):
    dim = table.shape[1]
    row = np.empty(dim, np.float32)
    adds = len(total) > 0
    for r in range(first, last):
        row[:] = np.float32(0.0)
        for k in range(indptr[r], indptr[r + 1]):
            value = values[k]
            other = columns[k]
            for c in range(dim):
                row[c] += value * table[other, c]
        for c in range(dim):
            out[r, c] = row[c]
        if adds:
            for c in range(dim):
                total[r, c] += row[c]


@njit(nogil=True, cache=True)
def add_scaled_rows(
    target,  # (n, d) float32, columns first .. last added to
    into,  # (p,) int32: rows of target
    table,  # (m, d) float32
    rows,  # (p,) int64: rows of table
    factors,  # (p,) float32
    first,
    last,
):
    for k in range(len(into)):
        factor = factors[k]
        to, of = into[k], rows[k]
        for c in range(first, last):
            target[to, c] += table[of, c] * factor
