"""Whole numbers that devices add up: their units, how vectors are rounded to them, and bounds that rounding keeps.

Everything that is added up over devices is a whole number, rounded on the device: the sum is the same whatever the
order or the number of nodes, and may be masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.exchange.counters import BELOW
from fl_peel.kernels import sum_rows
from fl_peel.scenario.settings import SpectralConfig

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[Any]
"""Whole numbers, or what noise leaves of them, in doubles."""

PASS_SCALE = 2.0**36
"""Units of a pass in one: a device's numbers are below 2^7, so that sums of 2^20 devices fit 64 bits."""
UNIT_SCALE = 2.0**20
"""Units of vectors of length 1: products of two of them, added up over thousands, are exact in doubles."""
CHUNK_DEVICES = 4096
"""Vectors that are held in doubles at once: their products, added up, are below 2^53 units squared."""
EMPTY = 1e-9
"""Directions below this share of the largest squared length are rounding alone."""


@dataclass(frozen=True)
class Units:
    """Units in one of the whole numbers that devices send: in passes, and of vectors whose products are moments; bits:
    of a word that holds their sum.
    """

    passes: float = PASS_SCALE
    moments: float = UNIT_SCALE
    bits: Literal[32, 64] = 64

    @staticmethod
    def from_config(config: SpectralConfig, devices: int, items: int) -> Units:
        """The finest powers of two with which sums of so many devices fit, whatever they have.

        Of a pass with columns of length 1 at most, d_u^-2a times the sum of d_u rows is below d_u^(1/2 - 2a), by Cauchy
        and Schwarz, for D^-b is 1 at most. Entries of vectors of length 1 are at most 1, and so are their products. A
        thousandth is left for rounding.
        """
        bits = config.sum_bits
        if bits == 64:
            return Units()
        limit = ((1 << (bits - 1)) - 1) // devices
        largest = 1.001 * max(1.0, items ** (0.5 - 2 * config.user_exponent))
        return Units(
            min(_power_below((limit - 1) / largest), PASS_SCALE),
            min(_power_below((math.sqrt(limit) - 1) / 1.001), UNIT_SCALE),
            bits,
        )


def _power_below(number: float) -> float:
    """The largest power of two that is no larger; 1 at least."""
    return 2.0 ** math.floor(math.log2(max(number, 1.0)))


def inverse_power(counts: Counts, exponent: float) -> Doubles:
    """Return counts^-exponent; zero where the count is zero."""
    scale: Doubles = np.zeros(len(counts))
    np.power(counts, -exponent, out=scale, where=counts > 0, dtype=np.float64)
    return scale


def item_matrix(rows: UserItems, num_items: int, kind: type[np.generic]) -> sp.csr_matrix:
    """0/1 interactions (N, I); a user's items in ascending order, so that its sums are the same to the last bit."""
    ordered = rows.by_item()
    ones = np.ones(len(ordered.items), kind)
    return sp.csr_matrix((ones, ordered.items, ordered.indptr), shape=(rows.num_users, num_items))


def weighted_matrix(rows: UserItems, num_items: int, fading: float | None) -> sp.csr_matrix:
    """Return interactions (N, I): 1 each, or e^(-n / ``fading``) where a device has had n interactions since."""
    if fading is None:
        return item_matrix(rows, num_items, np.float64)
    counts = rows.counts()
    since = np.repeat(rows.indptr[1:], counts) - 1 - np.arange(rows.num_interactions)
    order = np.lexsort((rows.items, rows.users()))
    weights = np.exp(-since / fading)[order]
    return sp.csr_matrix((weights, rows.items[order], rows.indptr), shape=(rows.num_users, num_items))


def add_rows(table: Floats, rows: UserItems, fading: float | None = None) -> Floats:
    """Return the sum of the rows of each device's items, (N, k). fading: as of :func:`weighted_matrix`."""
    matrix = weighted_matrix(rows, len(table), fading)
    vectors = np.empty((rows.num_users, table.shape[1]), np.float32)
    sum_rows(matrix.indptr, matrix.indices, matrix.data, table, vectors)
    return vectors


def unit_vectors(vectors: Floats) -> Floats:
    """Return vectors (N, k) at length 1; those of devices without items stay zero."""
    units = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), CHUNK_DEVICES):
        wide = vectors[start : start + CHUNK_DEVICES].astype(np.float64)
        lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        units[start : start + CHUNK_DEVICES] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return units


def in_units(vectors: Floats, scale: float = UNIT_SCALE) -> Doubles:
    """Return vectors of length 1 as whole numbers in units of 1 / ``scale``."""
    return np.rint(vectors.astype(np.float64) * scale)


def within(values: Floats | Doubles, bound: float | Doubles, unit: float, *, l1: bool) -> Ints:
    """Rows (N, k) shortened to a norm of ``bound`` (each, or (N,)) where they are longer, in units of 1 / ``unit``,
    rounded towards zero. What is not a number counts as zero.
    """
    wide = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.abs(wide).sum(axis=1) if l1 else np.sqrt((wide * wide).sum(axis=1))
    shorter = np.minimum(1.0, bound * BELOW / np.maximum(norms, 1e-300))
    whole: Ints = np.trunc(wide * shorter[:, None] * unit).astype(np.int64)
    return whole


def nearest(vectors: Floats, centroids: Floats) -> NDArray[np.int32]:
    """Return the user group of each device (N,): the nearest centroid of (G, c), ties to the lower number.

    It is computed in whole numbers, so that it does not depend on which devices are computed together. vectors: (N, K),
    K >= c; the first c columns, at length 1, count.
    """
    centres = in_units(centroids)
    squares = (centres * centres).sum(axis=1)
    groups = np.zeros(len(vectors), np.int32)
    for start in range(0, len(vectors), CHUNK_DEVICES):
        points = in_units(unit_vectors(vectors[start : start + CHUNK_DEVICES, : centroids.shape[1]]))
        groups[start : start + CHUNK_DEVICES] = (squares - 2.0 * (points @ centres.T)).argmin(axis=1)
    return groups
