"""Compiled training of rivals: local steps of federated ones, and an epoch of central training.

Federated (:mod:`strategies.rivals.federated`): device after device, each on its own. A device trains its own vector in
place and a copy of the rows that it touches; what it sends, the change of these rows, is written behind what the
devices before it sent. No device reads what another wrote.

Central (:mod:`strategies.rivals.central`), the yardstick of federated refinement: pooled interactions of many users,
one table, one step per interaction. The loss and the negatives are those of :func:`fl_peel.kernels.train_devices`, but
every step sees the table as the step before left it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fl_peel.kernels.lanes import dot
from fl_peel.kernels.random import below, next_number


@njit(nogil=True, cache=True, inline="always")
def _is_among(items, start, stop, item):
    while start < stop:
        middle = (start + stop) // 2
        if items[middle] < item:
            start = middle + 1
        elif items[middle] > item:
            stop = middle
        else:
            return True
    return False


@njit(nogil=True, cache=True, inline="always")
def _slot(item, stamp, device, slot_of, slots, count, local, table):
    """Where the device's copy of a row lies, made when it is first touched: the slot, and how many there are."""
    if stamp[item] != device:
        stamp[item] = device
        slot_of[item] = count
        slots[count] = item
        for c in range(table.shape[1]):
            local[count, c] = table[item, c]
        count += 1
    return slot_of[item], count


@njit(nogil=True, cache=True, inline="always")
def _negative(state, items, first, last, num_items):
    """The state of the random numbers, and an item that is not among a device's own, items[first:last]."""
    while True:
        state, bits = next_number(state)
        negative = below(bits, num_items)
        if not _is_among(items, first, last, negative):
            break
    return state, negative


@njit(nogil=True, cache=True, inline="always")
def _send(slots, count, local, table, sent, items_out, rows_out):
    """By how much a device's copies of rows changed, written behind what was sent; how much is sent now."""
    for k in range(count):
        items_out[sent] = slots[k]
        for c in range(rows_out.shape[1]):
            rows_out[sent, c] = local[k, c] - table[slots[k], c]
        sent += 1
    return sent


@njit(nogil=True, cache=True)
def bpr_devices(
    table,  # (I, d) float32: as the server sent it
    users,  # (N, d) float32: every device's own, changed
    indptr,  # (N + 1,) int64
    items,  # (sum n_u,) int32: train items, ascending within each device
    seeds,  # (N,) uint64
    epochs,
    num_negatives,
    rate,  # of rows; 0: the table stays, and nothing is sent
    user_rate,
    l2,
    widths,  # (W,) int64, ascending, the last d: the loss is the sum over the first columns of each
    indptr_out,  # (N + 1,) int64, written
    items_out,  # (>= rows touched,) int32, written: rows that each device changed
    rows_out,  # (>= rows touched, w <= d) float32, written: and by how much; further columns of rows stay as they are
):
    num_items, dim = table.shape
    trained = rows_out.shape[1]
    longest = 0
    for n in range(len(users)):
        longest = max(longest, indptr[n + 1] - indptr[n])
    most = min(num_items, longest * (1 + num_negatives) * epochs)
    order = np.empty(longest, np.int64)
    stamp = np.full(num_items, -1, np.int64)
    slot_of = np.empty(num_items, np.int64)
    slots = np.empty(most, np.int64)
    local = np.empty((most, dim), np.float32)
    pull = np.empty(len(widths), np.float32)
    sent = 0
    indptr_out[0] = 0
    for n in range(len(users)):
        first, last = indptr[n], indptr[n + 1]
        count = 0
        if last > first and last - first < num_items:
            user = users[n]
            state = seeds[n]
            for _ in range(epochs):
                for j in range(last - first):
                    order[j] = first + j
                for j in range(last - first - 1, 0, -1):  # Fisher-Yates
                    state, bits = next_number(state)
                    other = below(bits, j + 1)
                    order[j], order[other] = order[other], order[j]
                for j in range(last - first):
                    for _ in range(num_negatives):
                        item = items[order[j]]
                        state, negative = _negative(state, items, first, last, num_items)
                        p, count = _slot(item, stamp, n, slot_of, slots, count, local, table)
                        q, count = _slot(negative, stamp, n, slot_of, slots, count, local, table)
                        gap = np.float32(0.0)
                        c = 0
                        for w in range(len(widths)):
                            while c < widths[w]:
                                gap += user[c] * (local[p, c] - local[q, c])
                                c += 1
                            pull[w] = np.float32(1.0 / (1.0 + math.exp(np.float64(gap))))
                        total = np.float32(0.0)
                        w = len(widths) - 1
                        for c in range(dim - 1, -1, -1):  # a column is in the loss of every width above it
                            while w >= 0 and widths[w] > c:
                                total += pull[w]
                                w -= 1
                            own, one, two = user[c], local[p, c], local[q, c]
                            user[c] = own + user_rate * (total * (one - two) - l2 * own)
                            if rate > 0.0 and c < trained:
                                local[p, c] = one + rate * (total * own - l2 * one)
                                local[q, c] = two - rate * (total * own + l2 * two)
        if rate > 0.0:
            sent = _send(slots, count, local, table, sent, items_out, rows_out)
        indptr_out[n + 1] = sent


@njit(nogil=True, cache=True)
def bce_devices(
    table,  # (I, d) float32: as the server sent it
    users,  # (N, d + 1) float32: every device's score function, its bias last, changed
    indptr,  # (N + 1,) int64
    items,  # (sum n_u,) int32: train items, ascending within each device
    seeds,  # (N,) uint64
    epochs,
    num_negatives,
    rate,  # of rows
    user_rate,
    l2,
    batch_size,
    indptr_out,  # (N + 1,) int64, written
    items_out,  # (>= rows touched,) int32, written
    rows_out,  # (>= rows touched, d) float32, written
):
    """In each batch first the score function takes a step, then, under the new one, the batch's rows."""
    num_items, dim = table.shape
    longest = 0
    for n in range(len(users)):
        longest = max(longest, indptr[n + 1] - indptr[n])
    examples = longest * (1 + num_negatives)
    most = min(num_items, examples * epochs)
    drawn = np.empty(examples, np.int64)
    label = np.empty(examples, np.float32)
    stamp = np.full(num_items, -1, np.int64)
    slot_of = np.empty(num_items, np.int64)
    slots = np.empty(most, np.int64)
    local = np.empty((most, dim), np.float32)
    step = np.empty((batch_size, dim), np.float32)
    gradient = np.empty(dim + 1, np.float32)
    place = np.empty(batch_size, np.int64)
    sent = 0
    indptr_out[0] = 0
    for n in range(len(users)):
        first, last = indptr[n], indptr[n + 1]
        count = 0
        if last > first and last - first < num_items:
            user = users[n]
            state = seeds[n]
            for _ in range(epochs):
                total = 0
                for j in range(first, last):
                    drawn[total], label[total] = items[j], 1.0
                    total += 1
                    for _ in range(num_negatives):
                        state, negative = _negative(state, items, first, last, num_items)
                        drawn[total], label[total] = negative, 0.0
                        total += 1
                for j in range(total - 1, 0, -1):
                    state, bits = next_number(state)
                    other = below(bits, j + 1)
                    drawn[j], drawn[other] = drawn[other], drawn[j]
                    label[j], label[other] = label[other], label[j]
                for start in range(0, total, batch_size):
                    size = min(batch_size, total - start)
                    for half in range(2):
                        gradient[:] = 0.0
                        for k in range(size):
                            if half == 0:
                                place[k], count = _slot(drawn[start + k], stamp, n, slot_of, slots, count, local, table)
                            score = user[dim]
                            for c in range(dim):
                                score += user[c] * local[place[k], c]
                            error = np.float32(1.0 / (1.0 + math.exp(-np.float64(score)))) - label[start + k]
                            error /= np.float32(size)
                            if half == 0:
                                for c in range(dim):
                                    gradient[c] += error * local[place[k], c]
                                gradient[dim] += error
                            else:
                                for c in range(dim):
                                    step[k, c] = error * user[c] + l2 / np.float32(size) * local[place[k], c]
                        if half == 0:
                            for c in range(dim + 1):
                                user[c] -= user_rate * (gradient[c] + l2 * user[c])
                        else:
                            for k in range(size):
                                for c in range(dim):
                                    local[place[k], c] -= rate * step[k, c]
        sent = _send(slots, count, local, table, sent, items_out, rows_out)
        indptr_out[n + 1] = sent


@njit(nogil=True, cache=True)
def solve_users(
    table,  # (I, d) float64
    gram,  # (d, d) float64: table' table
    users,  # (N, d) float64, written: the least squares of each device
    indptr,  # (N + 1,) int64
    items,  # (sum n_u,) int32
    alpha,  # confidence of an interaction, less the one of no interaction, which is 1
    l2,
):
    """Implicit feedback (Hu, Koren and Volinsky, ICDM 2008): (Y'Y + alpha Y_u'Y_u + l2) x = (1 + alpha) sum of Y_u."""
    dim = table.shape[1]
    a = np.empty((dim, dim), np.float64)
    b = np.empty(dim, np.float64)
    for n in range(len(users)):
        b[:] = 0.0
        for r in range(dim):
            for c in range(r + 1):
                a[r, c] = gram[r, c]
            a[r, r] += l2
        for j in range(indptr[n], indptr[n + 1]):
            row = table[items[j]]
            for r in range(dim):
                b[r] += (1.0 + alpha) * row[r]
                for c in range(r + 1):
                    a[r, c] += alpha * row[r] * row[c]
        for r in range(dim):  # Cholesky, in place, below the diagonal
            for c in range(r + 1):
                value = a[r, c]
                for k in range(c):
                    value -= a[r, k] * a[c, k]
                a[r, c] = math.sqrt(value) if r == c else value / a[c, c]
        for r in range(dim):
            for k in range(r):
                b[r] -= a[r, k] * b[k]
            b[r] /= a[r, r]
        for r in range(dim - 1, -1, -1):
            for k in range(r + 1, dim):
                b[r] -= a[k, r] * b[k]
            b[r] /= a[r, r]
        for r in range(dim):
            users[n, r] = b[r]


@njit(nogil=True, cache=True)
def add_gradients(
    table,  # (I, d) float64
    users,  # (N, d) float64
    indptr,  # (N + 1,) int64
    items,  # (sum n_u,) int32
    alpha,
    scale,  # units to one
    moments,  # (d, d) int64, added to: x x'
    rows,  # (I, d) int64, added to: what interactions add to the gradient of their rows
):
    """Gradients of all devices in whole units; that of item i is moments @ y_i + rows[i] (without regularization)."""
    dim = table.shape[1]
    for n in range(len(users)):
        user = users[n]
        for r in range(dim):
            for c in range(dim):
                moments[r, c] += np.int64(np.rint(user[r] * user[c] * scale))
        for j in range(indptr[n], indptr[n + 1]):
            item = items[j]
            score = 0.0
            for c in range(dim):
                score += user[c] * table[item, c]
            weight = -(1.0 + alpha) * (1.0 - score) - score
            for c in range(dim):
                rows[item, c] += np.int64(np.rint(weight * user[c] * scale))


@njit(nogil=True, cache=True)
def add_updates(
    items,  # (E,) int32
    rows,  # (E, w) float32
    scale,
    total,  # (I, >= w) int64, added to
):
    for e in range(len(items)):
        for c in range(rows.shape[1]):
            total[items[e], c] += np.int64(np.rint(np.float64(rows[e, c]) * scale))


@njit(nogil=True, cache=True, error_model="numpy")
def pooled_epoch(
    table,  # (I, d) float32, changed
    users,  # (N, d) float32, changed
    indptr,  # (N + 1,) int64
    items,  # (E,) int64: train items, ascending within each user
    owners,  # (E,) int64: the user of each
    order,  # (E,) int64: of the pass
    seed,  # uint64
    num_negatives,
    learning_rate,
    user_learning_rate,
    l2,
    softmax,
    temperature,
    moments,  # (I, d) float32, changed: sums of squared gradients for AdaGrad; (1, 1) for plain steps
):
    """One pass; returns the mean loss. AdaGrad: Duchi et al., JMLR 2011."""
    rate, user_rate, decay = np.float32(learning_rate), np.float32(user_learning_rate), np.float32(l2)
    inverse_temperature = np.float32(1 / temperature)
    num_items, dim = table.shape
    adaptive = moments.shape[0] == num_items and moments.shape[1] == dim
    rows = np.empty(num_negatives + 1, np.int64)
    logits = np.empty(num_negatives + 1, np.float32)
    user_gradient = np.empty(dim, np.float32)
    total_loss = 0.0
    used = 0
    state = np.uint64(seed)
    for j in order:
        owner = owners[j]
        start, stop = indptr[owner], indptr[owner + 1]
        if stop - start >= num_items:
            continue
        user = users[owner]
        for k in range(num_negatives + 1):
            row = items[j]
            if k > 0:
                state, row = _negative(state, items, start, stop, num_items)
            rows[k] = row
            logits[k] = dot(users, owner, table, row, 0, dim) * inverse_temperature
        if softmax:
            top = logits.max()
            total = np.float32(0.0)
            for k in range(num_negatives + 1):
                total += np.float32(math.exp(logits[k] - top))
            total_loss += math.log(total) + top - logits[0]
            for k in range(1, num_negatives + 1):
                logits[k] = np.float32(math.exp(logits[k] - top)) / total
        else:
            for k in range(1, num_negatives + 1):
                gap = np.float64(logits[k] - logits[0])
                total_loss += (max(gap, 0.0) + math.log1p(math.exp(-abs(gap)))) / num_negatives
                logits[k] = np.float32(1.0 / (1.0 + math.exp(-gap)) / num_negatives)
        used += 1
        user_gradient[:] = 0.0
        push = np.float32(0.0)
        for k in range(1, num_negatives + 1):
            push += logits[k] * inverse_temperature
        for k in range(num_negatives + 1):
            row = rows[k]
            weight = -push if k == 0 else logits[k] * inverse_temperature
            for c in range(dim):
                old = table[row, c]
                user_gradient[c] += weight * old
                step = weight * user[c] + decay * old
                if adaptive:
                    moments[row, c] += step * step
                    step = step / (math.sqrt(moments[row, c]) + np.float32(1e-6))
                table[row, c] = old - rate * np.float32(step)
        for c in range(dim):
            user[c] -= user_rate * (user_gradient[c] + decay * user[c])
    return total_loss / max(used, 1)
