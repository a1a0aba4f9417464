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


# ---- Compiled scores of items by the interactions of a user's neighbours: two steps through the interaction graph


@njit(nogil=True, cache=True)
def neighbour_scores(
    users,  # (M,) int64: whose scores are wanted
    indptr,  # (U + 1,) int64
    items,  # (indptr[-1],) int32: items of every user
    item_indptr,  # (I + 1,) int64
    item_users,  # (item_indptr[-1],) int32: users of every item
    scores,  # (M, I) float32, added to
):
    num_users = len(indptr) - 1
    weight = np.zeros(num_users, np.float32)
    met = np.empty(num_users, np.int32)
    for k in range(len(users)):
        u = users[k]
        degree = indptr[u + 1] - indptr[u]
        if degree == 0:
            continue
        own = np.float32(1.0 / np.sqrt(np.float64(degree)))
        num_met = 0
        for a in range(indptr[u], indptr[u + 1]):
            i = items[a]
            first, last = item_indptr[i], item_indptr[i + 1]
            step = np.float32(1.0 / np.float64(last - first))
            for b in range(first, last):
                v = item_users[b]
                if weight[v] == 0.0:
                    met[num_met] = v
                    num_met += 1
                weight[v] += step
        for m in range(num_met):
            v = met[m]
            pull = own * weight[v] / np.float32(indptr[v + 1] - indptr[v])
            weight[v] = 0.0
            for a in range(indptr[v], indptr[v + 1]):
                scores[k, items[a]] += pull
