"""Compiled selection: what each device keeps under its budget."""

from __future__ import annotations

from numba import njit


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
