"""Compiled passes over the rows of tables: coding of row pieces as integers, and adding up sums of updates."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def largest_magnitudes(
    pieces,  # (P, s) float32
    index,  # (T,) int64: which pieces
    largest,  # (T,) float32, written; NaN where the piece holds one
):
    # magnitudes are ordered as their bits are, NaN above all; integers are compared many at a time
    bits, most_bits = pieces.view(np.uint32), largest.view(np.uint32)
    for t in range(len(index)):
        piece = index[t]
        most = np.uint32(0)
        for c in range(bits.shape[1]):
            most = max(most, bits[piece, c] & np.uint32(0x7FFFFFFF))
        most_bits[t] = most


@njit(nogil=True, cache=True)
def encode_integers(
    pieces,  # (P, s) float32
    index,  # (T,) int64: which pieces
    divisor,  # (T,) float32
    most,  # float32: the largest code
    codes,  # (T, s) int8, written
):
    width = pieces.shape[1]
    for t in range(len(index)):
        piece = index[t]
        by = divisor[t]
        for c in range(width):
            value = np.rint(pieces[piece, c] / by)
            value = value if value < most else most
            value = value if value > -most else -most
            codes[t, c] = np.int8(value)


@njit(nogil=True, cache=True)
def coding_errors(
    pieces,  # (P, s) float32
    index,  # (T,) int64: which pieces
    codes,  # (T, s) int8
    scales,  # (T,) float32
    errors,  # (T,) float32, written: squared errors of each piece, added up as NumPy adds up a row
):
    width = pieces.shape[1]
    squares = np.empty(width, np.float32)
    for t in range(len(index)):
        piece, scale = index[t], scales[t]
        for c in range(width):
            error = np.float32(codes[t, c]) * scale - pieces[piece, c]
            squares[c] = error * error
        errors[t] = _pairwise_sum(squares)


@njit(nogil=True, cache=True)
def _pairwise_sum(values):
    """The sum of float32 numbers (n,) as NumPy has it: eight sums side by side, of longer rows half by half."""
    count = len(values)
    if count > 128:
        half = count // 2 - count // 2 % 8
        return _pairwise_sum(values[:half]) + _pairwise_sum(values[half:])
    total, whole = np.float32(0.0), count // 8 * 8
    if whole:
        some = values[:8].copy()
        for start in range(8, whole, 8):
            for lane in range(8):
                some[lane] += values[start + lane]
        total = ((some[0] + some[1]) + (some[2] + some[3])) + ((some[4] + some[5]) + (some[6] + some[7]))
    for c in range(whole, count):
        total += values[c]
    return total


@njit(nogil=True, cache=True)
def decode_int8(
    codes,  # (T, s) int8
    scales,  # (T,) float32
    places,  # (T,) int64
    pieces,  # (P, s) float32, written where ``places`` say
):
    width = pieces.shape[1]
    for t in range(len(places)):
        place = places[t]
        scale = scales[t]
        for c in range(width):
            pieces[place, c] = np.float32(codes[t, c]) * scale


@njit(nogil=True, cache=True)
def add_rows(
    total,  # (R, d) int64, added to
    start,  # number of the first row of ``total``
    rows,  # (T,) int32
    values,  # (T, d) int32 or int64
):
    dim = total.shape[1]
    for t in range(len(rows)):
        row = rows[t] - start
        for c in range(dim):
            total[row, c] += values[t, c]


@njit(nogil=True, cache=True)
def step_rows(
    table,  # (I, d) float32, changed
    items,  # (R,) int32: row of ``table`` that each row is about
    total,  # (R, d) int64: sums; set to 0 again
    scale,  # (R, S) float64: what a sum is multiplied by to get the mean; 0 where nobody changed anything
    rate,  # float32
):
    dim = total.shape[1]
    num_slices = scale.shape[1]
    width = dim // num_slices
    for r in range(len(items)):
        item = np.uint64(items[r])  # a number that may be negative keeps the loop from being many steps at a time
        for s in range(num_slices):
            by = scale[r, s]
            if by != 0.0:
                for column in range(width):
                    c = np.uint64(s * width + column)
                    table[item, c] += rate * np.float32(np.float64(total[r, c]) * by)
        for c in range(dim):
            total[r, c] = 0
