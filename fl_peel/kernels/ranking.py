"""Compiled full ranking of the devices of one user group, its metrics, and the signals for block weights."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(nogil=True, cache=True, fastmath=_FAST, inline="always")
def _dot(a, b, dim):
    total = np.float32(0.0)
    for k in range(dim):
        total += a[k] * b[k]
    return total


@njit(nogil=True, cache=True, inline="always")
def _fixed(value):
    return np.int64(math.floor(np.float64(value) * 16777216.0 + 0.5))


@njit(nogil=True, cache=True, fastmath=_FAST)
def top_rows(
    table,  # (R, d) float32
    position,  # (R, S) int32
    tie_order,  # (R,) int32: of rows with equal scores the one with the smallest comes first
    num_present,  # (N,) int64
    cutoffs,  # (N,) int64
    users,  # (N, d) float32
    indptr,  # (N + 1,) int64
    rows,  # table rows that are not to be recommended, -1 for rows that are not here
    best_rows,  # (N, n) int32, written: best first, -1 where there are fewer
    best_scores,  # (N, n) float32, written
):
    dim = table.shape[1]
    num_slices = position.shape[1]
    width = dim // num_slices
    num_top = best_rows.shape[1]
    excluded_by = np.full(table.shape[0], -1, np.int64)
    for i in range(len(cutoffs)):
        for j in range(indptr[i], indptr[i + 1]):
            if rows[j] >= 0:
                excluded_by[rows[j]] = i
        user = users[i]
        cutoff = cutoffs[i]
        filled = 0
        threshold = np.float32(-np.inf)
        for row in range(num_present[i]):
            if num_slices == 1:
                score = _dot(user, table[row], dim)
            else:
                score = np.float32(0.0)
                for s in range(num_slices):
                    if position[row, s] < cutoff:
                        score += _dot(user[s * width :], table[row, s * width :], width)
            if filled == num_top and score < threshold:
                continue
            if excluded_by[row] == i:
                continue
            place = filled if filled < num_top else num_top - 1
            if filled == num_top and score == threshold and tie_order[row] > tie_order[best_rows[i, place]]:
                continue
            if filled < num_top:
                filled += 1
            while place > 0 and (
                best_scores[i, place - 1] < score
                or (best_scores[i, place - 1] == score and tie_order[best_rows[i, place - 1]] > tie_order[row])
            ):
                best_scores[i, place] = best_scores[i, place - 1]
                best_rows[i, place] = best_rows[i, place - 1]
                place -= 1
            best_scores[i, place] = score
            best_rows[i, place] = row
            if filled == num_top:
                threshold = best_scores[i, num_top - 1]
        for place in range(filled, num_top):
            best_rows[i, place] = -1
            best_scores[i, place] = np.float32(-np.inf)


@njit(nogil=True, cache=True)
def hit_sums(
    best_rows,  # (N, m) int32
    indptr,  # (N + 1,) int64
    rows,  # held-out items as table rows, -1 where the item is not in the table
    num_top,
    num_rows,
    recall,  # (N,) float64, written
    ndcg,  # (N,) float64, written
):
    wanted_by = np.full(num_rows, -1, np.int64)
    for i in range(len(best_rows)):
        wanted = indptr[i + 1] - indptr[i]
        recall[i] = 0.0
        ndcg[i] = 0.0
        if wanted == 0:
            continue
        for j in range(indptr[i], indptr[i + 1]):
            if rows[j] >= 0:
                wanted_by[rows[j]] = i
        gain = 0.0
        hits = 0
        for place in range(num_top):
            row = best_rows[i, place]
            if row >= 0 and wanted_by[row] == i:
                hits += 1
                gain += 1.0 / math.log2(place + 2.0)
        ideal = 0.0
        for place in range(min(num_top, wanted)):
            ideal += 1.0 / math.log2(place + 2.0)
        recall[i] = hits / wanted
        ndcg[i] = gain / ideal


@njit(nogil=True, cache=True, fastmath=_FAST)
def block_signals(
    table,  # (R, d) float32
    position,  # (R, S) int32
    cutoffs,  # (N,) int64
    users,  # (N, d) float32
    best_rows,  # (N, m) int32
    indptr,  # (N + 1,) int64
    rows,  # validation items as table rows, -1 where not here
    hits,  # (K,) int64, added to: discounted validation hits that a block served
    shown,  # (K,) int64, added to: discounted appearances of a block in the top lists
):
    dim = table.shape[1]
    num_slices = position.shape[1]
    width = dim // num_slices
    wanted_by = np.full(table.shape[0], -1, np.int64)
    shares = np.empty(num_slices, np.float64)
    for i in range(len(best_rows)):
        for j in range(indptr[i], indptr[i + 1]):
            if rows[j] >= 0:
                wanted_by[rows[j]] = i
        for place in range(best_rows.shape[1]):
            row = best_rows[i, place]
            if row < 0:
                break
            discount = 1.0 / math.log2(place + 2.0)
            total = 0.0
            for s in range(num_slices):
                shares[s] = 0.0
                if position[row, s] < cutoffs[i]:
                    part = _dot(users[i, s * width :], table[row, s * width :], width)
                    shares[s] = max(np.float64(part), 1e-9)
                    total += shares[s]
            for s in range(num_slices):
                if shares[s] > 0.0:
                    credit = _fixed(discount * shares[s] / total)
                    shown[position[row, s]] += credit
                    if wanted_by[row] == i:
                        hits[position[row, s]] += credit
