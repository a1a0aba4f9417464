"""A device's own random numbers, inside compiled loops; and local training's mini-batches drawn from them: the random
stream of ``train_devices`` without its arithmetic.
"""

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


@njit(nogil=True, cache=True)
def count_examples(
    num_present,  # (N,) int64: rows each device has, a prefix of the table
    indptr,  # (N + 1,) int64
    rows,  # (sum n_u,) int32: table row of each train item, -1 where the group was not sent it
    num_rows,
    examples,  # (N,) int64, written: train interactions used per epoch; 0 where a device cannot learn
):
    last = np.full(num_rows, -1, np.int64)  # last device to have the row in train
    for i in range(len(num_present)):
        count = 0
        distinct = 0
        for j in range(indptr[i], indptr[i + 1]):
            row = rows[j]
            if row >= 0 and row < num_present[i]:
                count += 1
                if last[row] != i:
                    last[row] = i
                    distinct += 1
        examples[i] = 0 if distinct >= num_present[i] else count


@njit(nogil=True, cache=True)
def draw_batches(
    devices,  # (M,) int64: devices to draw for, each with at least one example
    num_present,  # (N,) int64
    indptr,  # (N + 1,) int64
    rows,  # (sum n_u,) int32
    seeds,  # (N,) uint64
    epochs,
    place,  # (E,) int64: where in ``pairs`` each example goes, in order of device, epoch, example
    num_rows,
    pairs,  # (E, 1 + negatives) int32, written: slots of a positive and of its negatives
    slot_row,  # (>= T,) int32, written: table row of each slot; the slots of a device follow those of the one before
    slot_ends,  # (M,) int64, written: where the slots of each device end
):
    """A slot is a row that a device touches, numbered in the order of the first touch."""
    drawn = pairs.shape[1]
    in_train = np.full(num_rows, -1, np.int64)  # last device to have the row in train
    touched = np.full(num_rows, -1, np.int64)  # last device to touch it, and its slot there
    slot_of = np.empty(num_rows, np.int64)
    longest = 0
    for m in range(len(devices)):
        longest = max(longest, indptr[devices[m] + 1] - indptr[devices[m]])
    positives = np.empty(longest, np.int64)
    at = 0
    num_slots = 0
    for m in range(len(devices)):
        i = devices[m]
        present = num_present[i]
        count = 0
        for j in range(indptr[i], indptr[i + 1]):
            row = rows[j]
            if row >= 0 and row < present:
                positives[count] = row
                count += 1
                in_train[row] = m
        state = seeds[i]
        for _epoch in range(epochs):
            for j in range(count - 1, 0, -1):  # Fisher-Yates
                state, bits = next_number(state)
                other = below(bits, j + 1)
                positives[j], positives[other] = positives[other], positives[j]
            for j in range(count):
                for k in range(drawn):
                    row = positives[j]
                    if k > 0:
                        while True:
                            state, bits = next_number(state)
                            row = below(bits, present)
                            if in_train[row] != m:
                                break
                    if touched[row] != m:
                        touched[row] = m
                        slot_of[row] = num_slots
                        slot_row[num_slots] = row
                        num_slots += 1
                    pairs[place[at], k] = slot_of[row]
                at += 1
        slot_ends[m] = num_slots
