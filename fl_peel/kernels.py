"""Compiled loops over the devices of a cohort: local training, ranking, weight signals.

Every loop handles the devices of one user group, one after the other, on the group's ranked blocks
(:class:`fl_peel.selection.RankedBlocks`): ``table`` (R, d) holds the rows the group was sent, ``position`` (R, S) the
rank of each block and ``first_position`` (R,), ascending, each row's best rank. A device that keeps the first ``c``
blocks has the rows with ``first_position < c`` and, of those, the slices with ``position < c``: no table is copied
per device, and memory does not grow with the cohort.

Sums over devices are int64 in units of ``1 / FIXED_POINT``. Integer addition is associative, so that a sum does not
depend on the order of devices or on how they are spread over nodes.

The readable twins are in :mod:`fl_peel.reference`; tests compare the two.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

FIXED_POINT = float(1 << 24)
"""Resolution of sums: an update of one device is rounded to the nearest 2**-24 (6e-8)."""

_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(nogil=True, cache=True, inline="always")
def _next(state):
    """One step of SplitMix64: the new state and 64 random bits."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state, z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def _below(bits, bound):
    """Map 64 random bits to 0..bound-1 (bound < 2**32)."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@njit(nogil=True, cache=True, fastmath=_FAST, inline="always")
def _dot(a, b, dim):
    total = np.float32(0.0)
    for k in range(dim):
        total += a[k] * b[k]
    return total


@njit(nogil=True, cache=True, inline="always")
def _fixed(value):
    return np.int64(math.floor(np.float64(value) * 16777216.0 + 0.5))


@njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def train_devices(
    table,  # (R, d) float32, read only
    position,  # (R, S) int32
    num_present,  # (N,) int64: rows each device has, a prefix of the table
    cutoffs,  # (N,) int64: blocks each device keeps
    users,  # (N, d) float32, updated in place
    indptr,  # (N + 1,) int64
    rows,  # (sum n_u,) int32: table row of each train item, -1 where the group was not sent it
    seeds,  # (N,) uint64
    epochs,
    batch_size,
    num_negatives,
    learning_rate,
    user_learning_rate,
    l2,
    softmax,
    temperature,
    max_norm,
    sums,  # (R, d) int64, added to: block updates
    touched,  # (R, S) int64, added to: devices that changed the slice of the row
    row_loss,  # (R,) int64, added to: loss of the row's train interactions
    row_examples,  # (R,) int64, added to: train interactions of the row, over epochs
    loss,  # (N,) float64: mean loss in the last epoch
    examples,  # (N,) int64: train interactions used per epoch
    touched_pieces,  # (N,) int64: row pieces (slices of rows) each device changed
    squared_norms,  # (N,) float64: squared L2 norm of each device's update, before clipping
):
    num_rows, dim = table.shape
    num_slices = position.shape[1]
    width = dim // num_slices
    one = np.float32(1.0)
    inverse_temperature = np.float32(1.0 / temperature)
    rate = np.float32(learning_rate)
    user_rate = np.float32(user_learning_rate)
    decay = np.float32(l2)
    num_devices = len(cutoffs)
    most = 1
    for i in range(num_devices):
        here = indptr[i + 1] - indptr[i]
        most = max(most, min(num_present[i], here * (1 + num_negatives * epochs)))
    local = np.empty((most, dim), np.float32)  # the device's own copy of the rows it touches
    gradient = np.zeros((most, dim), np.float32)
    slot_row = np.empty(most, np.int64)
    in_batch = np.zeros(most, np.bool_)
    batch_slots = np.empty(most, np.int64)
    slot_of = np.zeros(num_rows, np.int32)
    seen_by = np.full(num_rows, -1, np.int64)  # device whose slot_of entry is valid
    positive_of = np.full(num_rows, -1, np.int64)  # device for which the row is a train item
    longest = 1
    for i in range(num_devices):
        longest = max(longest, indptr[i + 1] - indptr[i])
    positives = np.empty(longest, np.int64)
    user_gradient = np.empty(dim, np.float32)
    logits = np.empty(num_negatives + 1, np.float32)
    slots = np.empty(num_negatives + 1, np.int64)

    for i in range(num_devices):
        present = num_present[i]
        cutoff = cutoffs[i]
        user = users[i]
        count = 0
        distinct = 0
        for j in range(indptr[i], indptr[i + 1]):
            row = rows[j]
            if row >= 0 and row < present:
                positives[count] = row
                count += 1
                if positive_of[row] != i:
                    positive_of[row] = i
                    distinct += 1
        examples[i] = count
        loss[i] = 0.0
        touched_pieces[i] = 0
        squared_norms[i] = 0.0
        if count == 0 or distinct >= present:
            examples[i] = 0
            continue  # nothing to learn from, or no item left to contrast with
        state = seeds[i]
        num_slots = 0
        for _epoch in range(epochs):
            for j in range(count - 1, 0, -1):  # Fisher-Yates
                state, bits = _next(state)
                other = _below(bits, j + 1)
                positives[j], positives[other] = positives[other], positives[j]
            epoch_loss = 0.0
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                user_gradient[:] = 0.0
                num_batch = 0
                for j in range(start, stop):
                    for k in range(num_negatives + 1):
                        row = positives[j]
                        if k > 0:
                            while True:
                                state, bits = _next(state)
                                row = _below(bits, present)
                                if positive_of[row] != i:
                                    break
                        if seen_by[row] != i:
                            seen_by[row] = i
                            slot_of[row] = num_slots
                            slot_row[num_slots] = row
                            for s in range(num_slices):
                                if position[row, s] < cutoff:
                                    for c in range(s * width, (s + 1) * width):
                                        local[num_slots, c] = table[row, c]
                                else:
                                    for c in range(s * width, (s + 1) * width):
                                        local[num_slots, c] = 0.0
                            num_slots += 1
                        slot = np.int64(slot_of[row])
                        slots[k] = slot
                        if not in_batch[slot]:
                            in_batch[slot] = True
                            batch_slots[num_batch] = slot
                            num_batch += 1
                        logits[k] = _dot(user, local[slot], dim) * inverse_temperature
                    # coefficient of each negative: minus the derivative of the loss by (positive - negative) logit
                    if softmax:
                        top = logits[0]
                        for k in range(1, num_negatives + 1):
                            top = max(top, logits[k])
                        total = np.float32(0.0)
                        for k in range(num_negatives + 1):
                            total += np.float32(math.exp(logits[k] - top))
                        this_loss = math.log(total) + top - logits[0]
                        for k in range(1, num_negatives + 1):
                            logits[k] = np.float32(math.exp(logits[k] - top)) / total
                    else:
                        this_loss = 0.0
                        for k in range(1, num_negatives + 1):
                            gap = np.float64(logits[k] - logits[0])
                            this_loss += (max(gap, 0.0) + math.log1p(math.exp(-abs(gap)))) / num_negatives
                            logits[k] = np.float32(1.0 / (1.0 + math.exp(-gap)) / num_negatives)
                    epoch_loss += this_loss
                    row_loss[positives[j]] += _fixed(this_loss)
                    row_examples[positives[j]] += 1
                    liked = local[slots[0]]
                    liked_gradient = gradient[slots[0]]
                    push = np.float32(0.0)
                    for k in range(1, num_negatives + 1):
                        weight = logits[k] * inverse_temperature
                        push += weight
                        disliked = local[slots[k]]
                        disliked_gradient = gradient[slots[k]]
                        for c in range(dim):
                            disliked_gradient[c] += weight * user[c] + decay * disliked[c]
                            user_gradient[c] += weight * disliked[c]
                    for c in range(dim):
                        liked_gradient[c] += decay * liked[c] - push * user[c]
                        user_gradient[c] += decay * user[c] - push * liked[c]
                for b in range(num_batch):
                    slot = batch_slots[b]
                    in_batch[slot] = False
                    row = slot_row[slot]
                    for s in range(num_slices):
                        if position[row, s] < cutoff:
                            for c in range(s * width, (s + 1) * width):
                                local[slot, c] -= rate * gradient[slot, c]
                    for c in range(dim):
                        gradient[slot, c] = 0.0
                for c in range(dim):
                    user[c] -= user_rate * user_gradient[c]
            loss[i] = epoch_loss / count
        # the update is what changed, clipped to max_norm, in fixed point
        square = 0.0
        for slot in range(num_slots):
            row = slot_row[slot]
            for s in range(num_slices):
                if position[row, s] < cutoff:
                    for c in range(s * width, (s + 1) * width):
                        step = local[slot, c] - table[row, c]
                        square += np.float64(step) * np.float64(step)
        squared_norms[i] = square
        scale = one
        if square > max_norm * max_norm:
            scale = np.float32(max_norm / math.sqrt(square))
        for slot in range(num_slots):
            row = slot_row[slot]
            for s in range(num_slices):
                if position[row, s] < cutoff:
                    touched[row, s] += 1
                    touched_pieces[i] += 1
                    for c in range(s * width, (s + 1) * width):
                        sums[row, c] += _fixed(scale * (local[slot, c] - table[row, c]))


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


@njit(nogil=True, cache=True)
def serving_cutoffs(
    room,  # (N,) int64: bytes each device has for blocks
    cost,  # (K + 1,) int64: bytes of the first k ranked blocks
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
                if cost[middle] <= limit:
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
            kept_bytes[i] = cost[low] - saved
            kept_blocks[i] = low - passed
