"""Compiled drawing of local training's mini-batches: the random stream of ``train_devices`` without its arithmetic."""

from __future__ import annotations

import numpy as np
from numba import njit

from fl_peel.kernels.random import below, next_number


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
