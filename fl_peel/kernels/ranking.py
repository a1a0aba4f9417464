"""Compiled full ranking of the devices of one user group, its metrics, and the signals for block weights."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fl_peel.kernels.lanes import dot, fma


@njit(nogil=True, cache=True, inline="always")
def _fixed(value):
    return np.int64(math.floor(np.float64(value) * 16777216.0 + 0.5))


@njit(nogil=True, cache=True)
def tile_rows(
    table,  # (R, S * width) float32
    position,  # (R, S) int32
    never,  # a rank that no device keeps
    tiles,  # (T, S * padded, 64) float32, written: 64 rows side by side, slices padded with zeros
    places,  # (T, S, 64) int32, written: their positions
):
    num_rows, num_slices = position.shape
    width = table.shape[1] // num_slices
    padded = tiles.shape[1] // num_slices
    for t in range(len(tiles)):
        top = min(64, num_rows - 64 * t)
        for s in range(num_slices):
            for r in range(64):
                places[t, s, r] = position[64 * t + r, s] if r < top else never
            for k in range(padded):
                for r in range(64):
                    inside = r < top and k < width
                    tiles[t, s * padded + k, r] = table[64 * t + r, s * width + k] if inside else np.float32(0.0)


@njit(nogil=True, cache=True)
def top_rows(
    tiles,  # (T, S * padded, 64) float32, of tile_rows; padded is a multiple of 4
    places,  # (T, S, 64) int32
    tie_order,  # (R,) int32: of rows with equal scores the one with the smallest comes first
    num_present,  # (N, X) int64: rows that each list is made of, from the first one on
    turns,  # (N, X) int64: the lists of each device by how many rows they are made of
    cutoffs,  # (N,) int64
    users,  # (N, d) float32
    indptr,  # (N + 1,) int64
    rows,  # table rows that are not to be recommended, -1 for rows that are not here
    order,  # (N,) int64: in which order devices are taken, best by num_present
    best_rows,  # (X, N, n) int32, written: best first, -1 where there are fewer
):
    """Blocks of 32 devices meet tiles of 64 rows, 4 devices at a time. A score is always added up in the same order,
    whoever else is in the block and whatever the processor: column by column, one rounding each. The lists of a device
    are read off one after the other as its rows go by.
    """
    num_devices = len(cutoffs)
    num_slices = places.shape[1]
    padded = tiles.shape[1] // num_slices
    width = users.shape[1] // num_slices
    num_lists, _, num_top = best_rows.shape
    excluded = np.zeros(len(tie_order), np.int64)
    mine = np.zeros((32, num_slices * padded), np.float32)
    now_rows = np.empty((32, num_top), np.int32)
    now_scores = np.empty((32, num_top), np.float32)
    filled = np.zeros(32, np.int64)
    limits = np.zeros(32, np.int64)
    finished = np.zeros(32, np.int64)
    cuts = np.zeros(32, np.int64)
    thresholds = np.empty(32, np.float32)
    part = np.empty((4, 64), np.float32)
    score = np.empty((4, 64), np.float32)
    earliest = np.zeros(num_slices, np.int32)
    for first in range(0, num_devices, 32):
        number = min(32, num_devices - first)
        stamp = (first // 32 + 1) << 32
        last = 0
        for m in range(32):
            filled[m] = 0
            limits[m] = 0
            finished[m] = 0
            cuts[m] = 0
            thresholds[m] = np.float32(-np.inf)
            if m < number:
                i = order[first + m]
                limits[m] = num_present[i, turns[i, num_lists - 1]]
                cuts[m] = cutoffs[i]
                last = max(last, limits[m])
                for s in range(num_slices):
                    for k in range(width):
                        mine[m, s * padded + k] = users[i, s * width + k]
                for j in range(indptr[i], indptr[i + 1]):
                    row = rows[j]
                    if row >= 0:
                        if excluded[row] < stamp:
                            excluded[row] = stamp
                        excluded[row] |= 1 << m
        for t in range((last + 63) // 64):
            for s in range(num_slices if num_slices > 1 else 0):
                earliest[s] = places[t, s].min()
            for quad in range(0, number, 4):
                if max(max(limits[quad], limits[quad + 1]), max(limits[quad + 2], limits[quad + 3])) <= 64 * t:
                    continue
                furthest = max(max(cuts[quad], cuts[quad + 1]), max(cuts[quad + 2], cuts[quad + 3]))
                if num_slices > 1:
                    score[:] = 0.0
                for s in range(num_slices):
                    if num_slices > 1 and earliest[s] >= furthest:
                        continue  # none of the four keeps a block of this slice here
                    for r in range(64):
                        part[0, r] = 0.0
                        part[1, r] = 0.0
                        part[2, r] = 0.0
                        part[3, r] = 0.0
                    for k in range(s * padded, (s + 1) * padded, 4):
                        a0 = mine[quad, k]
                        a1 = mine[quad, k + 1]
                        a2 = mine[quad, k + 2]
                        a3 = mine[quad, k + 3]
                        b0 = mine[quad + 1, k]
                        b1 = mine[quad + 1, k + 1]
                        b2 = mine[quad + 1, k + 2]
                        b3 = mine[quad + 1, k + 3]
                        c0 = mine[quad + 2, k]
                        c1 = mine[quad + 2, k + 1]
                        c2 = mine[quad + 2, k + 2]
                        c3 = mine[quad + 2, k + 3]
                        d0 = mine[quad + 3, k]
                        d1 = mine[quad + 3, k + 1]
                        d2 = mine[quad + 3, k + 2]
                        d3 = mine[quad + 3, k + 3]
                        for r in range(64):
                            w = tiles[t, k, r]
                            x = tiles[t, k + 1, r]
                            y = tiles[t, k + 2, r]
                            z = tiles[t, k + 3, r]
                            part[0, r] = fma(a3, z, fma(a2, y, fma(a1, x, fma(a0, w, part[0, r]))))
                            part[1, r] = fma(b3, z, fma(b2, y, fma(b1, x, fma(b0, w, part[1, r]))))
                            part[2, r] = fma(c3, z, fma(c2, y, fma(c1, x, fma(c0, w, part[2, r]))))
                            part[3, r] = fma(d3, z, fma(d2, y, fma(d1, x, fma(d0, w, part[3, r]))))
                    if num_slices > 1:
                        for q in range(4):
                            cut = np.int32(cuts[quad + q])
                            for r in range(64):
                                score[q, r] += part[q, r] if places[t, s, r] < cut else np.float32(0.0)
                scores = part if num_slices == 1 else score
                for q in range(4):
                    m = quad + q
                    if limits[m] <= 64 * t:
                        continue
                    i = order[first + m]
                    threshold = thresholds[m]
                    promising = 0
                    for r in range(64):
                        promising += np.int32(1) if scores[q, r] >= threshold else np.int32(0)
                    if promising == 0 and num_present[i, turns[i, finished[m]]] > 64 * (t + 1):
                        continue
                    begin = 0
                    while finished[m] < num_lists:
                        left = num_present[i, turns[i, finished[m]]] - 64 * t
                        for r in range(begin, min(left, 64) if promising > 0 else begin):
                            value = scores[q, r]
                            if value < threshold:
                                continue
                            row = 64 * t + r
                            if excluded[row] >= stamp and (excluded[row] >> m) & 1:
                                continue
                            full = filled[m] == num_top
                            place = num_top - 1 if full else filled[m]
                            if full and value == threshold and tie_order[row] > tie_order[now_rows[m, place]]:
                                continue
                            if not full:
                                filled[m] += 1
                            while place > 0 and (
                                now_scores[m, place - 1] < value
                                or (
                                    now_scores[m, place - 1] == value
                                    and tie_order[now_rows[m, place - 1]] > tie_order[row]
                                )
                            ):
                                now_scores[m, place] = now_scores[m, place - 1]
                                now_rows[m, place] = now_rows[m, place - 1]
                                place -= 1
                            now_scores[m, place] = value
                            now_rows[m, place] = row
                            if filled[m] == num_top:
                                threshold = now_scores[m, num_top - 1]
                        if left > 64:
                            break
                        begin = left
                        for place in range(num_top):
                            best_rows[turns[i, finished[m]], i, place] = now_rows[m, place] if place < filled[m] else -1
                        finished[m] += 1
                    thresholds[m] = threshold
        for m in range(number):
            i = order[first + m]
            for x in range(finished[m], num_lists):  # of no rows at all
                for place in range(num_top):
                    best_rows[turns[i, x], i, place] = -1


@njit(nogil=True, cache=True)
def find_hits(
    best_rows,  # (N, m) int32
    indptr,  # (N + 1,) int64
    rows,  # held-out items as table rows, -1 where the item is not in the table
    num_rows,
    hits,  # (N, m) bool, written: whether each of the best rows is of a held-out item
):
    wanted_by = np.full(num_rows, -1, np.int64)
    for i in range(len(best_rows)):
        for j in range(indptr[i], indptr[i + 1]):
            if rows[j] >= 0:
                wanted_by[rows[j]] = i
        for place in range(best_rows.shape[1]):
            row = best_rows[i, place]
            hits[i, place] = row >= 0 and wanted_by[row] == i


@njit(nogil=True, cache=True)
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
                    part = dot(users, i, table, row, s * width, (s + 1) * width)
                    shares[s] = max(np.float64(part), 1e-9)
                    total += shares[s]
            for s in range(num_slices):
                if shares[s] > 0.0:
                    credit = _fixed(discount * shares[s] / total)
                    shown[position[row, s]] += credit
                    if wanted_by[row] == i:
                        hits[position[row, s]] += credit


# ---- Compiled selection: what each device keeps under its budget


@njit(nogil=True, cache=True)
def serving_cutoffs(
    room,  # (N,) int64: bytes each device has for blocks
    cost,  # (K + 1,) int64: bytes of the first k ranked blocks
    wider,  # (N, S - 1) int64, ascending within a device: ranks of blocks each of which takes a slice more of the user
    slice_bytes,  # bytes of a slice of the user embedding
    indptr,  # (N + 1,) int64
    skipped,  # ascending within a device: ranks of blocks that the device never needs
    cutoffs,  # (N,) int64, written: ranks considered
    kept_bytes,  # (N,) int64, written
    kept_blocks,  # (N,) int64, written
):
    num_blocks = len(cost) - 1
    for i in range(len(room)):
        saved = 0
        passed = 0
        j = indptr[i]
        end = indptr[i + 1]
        low = 0
        while True:
            limit = room[i] + saved  # the largest cutoff whose cost is at most this
            high = num_blocks
            while low < high:
                middle = (low + high + 1) // 2
                if cost[middle] + slice_bytes * _below(wider[i], middle) <= limit:
                    low = middle
                else:
                    high = middle - 1
            before = j
            while j < end and skipped[j] < low:
                saved += cost[skipped[j] + 1] - cost[skipped[j]]
                passed += 1
                j += 1
            # a block to be skipped right at the cutoff costs nothing: step over it
            while j < end and skipped[j] == low:
                saved += cost[low + 1] - cost[low]
                passed += 1
                low += 1
                j += 1
            if j == before:
                break
        if room[i] < 0:
            cutoffs[i] = 0
            kept_bytes[i] = 0
            kept_blocks[i] = 0
        else:
            cutoffs[i] = low
            kept_bytes[i] = cost[low] - saved + slice_bytes * _below(wider[i], low)
            kept_blocks[i] = low - passed


@njit(nogil=True, cache=True)
def _below(ranks, rank):
    count = 0
    while count < len(ranks) and ranks[count] < rank:
        count += 1
    return count


# ---- Compiled loop over devices: validation signals whose norm is bounded per device before they are added up


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
