"""Tables from sums over devices: what a device says, and what a server makes of the sums. No interaction is collected.

With R (U, I) the interactions, d_u and D_i the counts of users and items, R~ = D_u^-a R D_i^-b. The leading right
singular vectors of R~ are an ideal low-pass filter over items (GF-CF: Shen et al., "How Powerful is Graph Convolution
for Recommendation?", CIKM 2021). They are found by block power iteration (Halko, Martinsson and Tropp, SIAM Review
53(2), 2011, algorithm 4.4), of which every multiplication by R~^T R~ is a sum over users: a device takes the rows of
its items, adds them up, and sends the result back for the rows of its items (:func:`pass_sums`). The server makes the
sum orthonormal; Rayleigh and Ritz's step gives the singular values.

A device's vector in that space is a sum of rows of its own items (:func:`unit_vectors`). User groups are K-means on
these, again sums (:func:`group_sums`); and as a table has d columns and not K, each group gets the d directions in
which its devices' scores differ most (:class:`Compression`), from second moments, sums once more
(:func:`group_moments`).

Everything that is added up over devices is a whole number, rounded on the device: the sum is the same whatever the
order or the number of nodes, and may be masked. What the server makes of the sums (eigenvectors, products) is in
float64, in the order of its linear algebra library (:mod:`fl_peel.cpu_dispatch`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.exchange.contributors import Bools
from fl_peel.pretraining.settings import SpectralConfig
from fl_peel.pretraining.sketch import MOST_ROWS, RowSketch
from fl_peel.randomness import rng_for

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[Any]
"""Whole numbers, or what noise leaves of them, in doubles."""

PASS_SCALE = 2.0**36
"""Units of a pass in one: a device's numbers are below 2^7, so that sums of 2^20 devices fit 64 bits."""
UNIT_SCALE = 2.0**20
"""Units of vectors of length 1: products of two of them, added up over thousands, are exact in doubles."""
MAP_BITS = 26
"""Bits of a map's largest entry: a product of a map with a vector in units is exact in doubles, whatever the order."""
CHUNK_DEVICES = 4096
"""Vectors whose products are added up in doubles before they are added up as integers: below 2^53 units squared."""
USER_LENGTH, SCORE_SPREAD = 2.0, 0.75
"""Length of user embeddings, and spread of scores in a group: about those of trained tables, which the rates of
refinement fit.
"""
LEAST_DRAWN = 512
"""Items that validation items are compared with at least, where there are as many."""
WIDEST = 100.0
"""Largest eigenvalue over the smallest up to which two passes are filtered: beyond, rounding would be lifted, too."""
UNUSED = 0.1
"""Part of a use that is added to an item's recent uses."""
EMPTY = 1e-9
"""Directions below this share of the largest squared length are rounding alone."""


@dataclass(frozen=True)
class Units:
    """Units in one of the whole numbers that devices say: in passes, of vectors that are added up in user groups, and
    of those whose products are moments; bits: of a word that holds their sum.
    """

    passes: float = PASS_SCALE
    groups: float = UNIT_SCALE
    moments: float = UNIT_SCALE
    bits: Literal[32, 64] = 64

    @staticmethod
    def from_config(config: SpectralConfig, devices: int, items: int) -> Units:
        """The finest powers of two with which sums of so many devices fit, whatever they have.

        Of a pass with columns of length 1 at most, d_u^-2a times the sum of d_u rows is below d_u^(1/2 - 2a), by Cauchy
        and Schwarz, for D^-b is 1 at most; a bucket of a sketch has ``MOST_ROWS`` times that. Entries of vectors of
        length 1 are at most 1, and so are their products. A thousandth is left for rounding.
        """
        bits = config.sum_bits
        if bits == 64:
            return Units()
        limit = ((1 << (bits - 1)) - 1) // devices
        largest = 1.001 * max(1.0, items ** (0.5 - 2 * config.user_exponent))
        largest *= 1 if config.row_sketch is None else MOST_ROWS
        return Units(
            min(_power_below((limit - MOST_ROWS) / largest), PASS_SCALE),
            min(_power_below((limit - 1) / 1.001), UNIT_SCALE),
            min(_power_below((math.sqrt(limit) - 1) / 1.001), UNIT_SCALE),
            bits,
        )


def _power_below(number: float) -> float:
    """The largest power of two that is no larger; 1 at least."""
    return 2.0 ** math.floor(math.log2(max(number, 1.0)))


def count_items(rows: UserItems, num_items: int) -> Ints:
    """Return how many devices have each item, (I,)."""
    return rows.popularity(num_items)


def inverse_power(counts: Counts, exponent: float) -> Doubles:
    """Return counts^-exponent; zero where the count is zero."""
    scale: Doubles = np.zeros(len(counts))
    np.power(counts, -exponent, out=scale, where=counts > 0, dtype=np.float64)
    return scale


def _matrix(rows: UserItems, num_items: int, kind: type[np.generic]) -> sp.csr_matrix:
    """0/1 interactions (N, I); a user's items in ascending order, so that its sums are the same to the last bit."""
    ordered = rows.by_item()
    ones = np.ones(len(ordered.items), kind)
    return sp.csr_matrix((ones, ordered.items, ordered.indptr), shape=(rows.num_users, num_items))


def pass_sums(
    table: Floats,
    rows: UserItems,
    user_exponent: float,
    scale: float = PASS_SCALE,
    sketch: RowSketch | None = None,
    opened: Bools | None = None,
) -> Ints:
    """Return the devices' contributions to a pass, added up, (I, k) in units of 1 / ``scale``; under a sketch (B, k).

    table: (I, k) = D^-b Q as the server sent it, some columns of it. A device's y = d_u^-2a sum of the rows of its
    items; it is returned for each of them, so the sum is R^T D_u^-2a R ``table``. opened: rows (I,) that devices
    contribute to, None for all of them; the others are zero.
    """
    given = _matrix(rows, len(table), np.int64)
    vectors = given.astype(np.float64) @ table.astype(np.float64)
    vectors *= scale * inverse_power(rows.counts(), 2 * user_exponent)[:, None]
    whole = np.rint(vectors, out=vectors).astype(np.int64)
    if opened is not None:
        given = given @ sp.diags(opened.astype(np.int64), format="csr", dtype=np.int64)
    sums: Ints = (given if sketch is None else sketch.rows_of(given)).T @ whole
    return sums


def add_rows(table: Floats, rows: UserItems, fading: float | None = None) -> Floats:
    """Return the sum of the rows of each device's items, (N, k). fading: as of :func:`weighted_matrix`."""
    vectors: Floats = (weighted_matrix(rows, len(table), fading) @ table.astype(np.float64)).astype(np.float32)
    return vectors


def weighted_matrix(rows: UserItems, num_items: int, fading: float | None) -> sp.csr_matrix:
    """Return interactions (N, I): 1 each, or e^(-n / ``fading``) where a device has had n interactions since."""
    if fading is None:
        return _matrix(rows, num_items, np.float64)
    counts = rows.counts()
    since = np.repeat(rows.indptr[1:], counts) - 1 - np.arange(rows.num_interactions)
    order = np.lexsort((rows.items, rows.users()))
    weights = np.exp(-since / fading)[order]
    return sp.csr_matrix((weights, rows.items[order], rows.indptr), shape=(rows.num_users, num_items))


def freshness(recent: Counts, counts: Counts, exponent: float) -> Doubles:
    """Return the factor of items' scores (I,) for freshness: the share of their uses that is ``recent``, to a power.
    ``UNUSED`` of a use is added, so that items without recent uses keep a positive factor.
    """
    scale: Doubles = ((np.asarray(recent, np.float64) + UNUSED) / (np.asarray(counts, np.float64) + 1.0)) ** exponent
    return scale


def unit_vectors(vectors: Floats) -> Floats:
    """Return vectors (N, k) at length 1; those of devices without items stay zero."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    units: Floats = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0).astype(np.float32)
    return units


def in_units(vectors: Floats, scale: float = UNIT_SCALE) -> Doubles:
    """Return vectors of length 1 as whole numbers in units of 1 / ``scale``."""
    return np.rint(vectors.astype(np.float64) * scale)


def halves(table: Floats) -> Floats:
    """Return rows as they are sent: (I, k) in half precision, a column in units of a power of two above its largest
    entry.
    """
    largest = np.abs(table).max(axis=0, initial=0.0)
    unit = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30)))).astype(np.float32)
    rounded: Floats = (table / unit).astype(np.float16).astype(np.float32) * unit
    return rounded


def coarse(centroids: Floats) -> Floats:
    """Return centroids as they are sent: a byte for each number, in units of the largest over 127."""
    unit = max(float(np.abs(centroids).max(initial=0.0)), 1e-30) / 127
    rounded: Floats = (np.rint(centroids / unit) * unit).astype(np.float32)
    return rounded


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


def embeddings(vectors: Floats, group_map: Floats) -> Floats:
    """Return the user embeddings (N, d) of devices of one user group: their vectors (N, K) times the group's map (K,
    d).
    """
    largest = float(np.abs(group_map).max(initial=0.0))
    if largest == 0:
        return np.zeros((len(vectors), group_map.shape[1]), np.float32)
    scale = 2.0**MAP_BITS / largest
    product = in_units(vectors) @ np.rint(group_map.astype(np.float64) * scale)
    users: Floats = (product / (scale * UNIT_SCALE)).astype(np.float32)
    return users


@dataclass(frozen=True)
class GroupSums:
    """Sums over the devices of each user group: how many (G,); their vectors of length 1 added up (G, c), in units."""

    sizes: Ints
    sums: Ints

    def __add__(self, other: GroupSums) -> GroupSums:
        """Return the sums over both sets of devices."""
        return GroupSums(self.sizes + other.sizes, self.sums + other.sums)


def group_sizes(vectors: Floats, centroids: Floats) -> Ints:
    """Return how many of the devices with a vector (N, K) have each centroid of (G, c) as their nearest, (G,)."""
    known = vectors[vectors.any(axis=1)]
    return np.bincount(nearest(known, centroids), minlength=len(centroids))


def group_sums(vectors: Floats, centroids: Floats, scale: float = UNIT_SCALE, opened: Bools | None = None) -> GroupSums:
    """Return the sums of one round of Lloyd's algorithm: devices with a vector (N, K) join their nearest centroid of
    (G, c). scale: units of sums in one; opened: groups (G,) that devices contribute to, None for all of them; the
    others look empty.
    """
    count, columns = centroids.shape
    known = np.flatnonzero(vectors.any(axis=1))
    groups = nearest(vectors[known], centroids)
    if opened is not None:
        known, groups = known[opened[groups]], groups[opened[groups]]
    sums = np.zeros((count, columns), np.int64)
    points = in_units(unit_vectors(vectors[known, :columns]), scale).astype(np.int64)
    np.add.at(sums, groups, points)
    return GroupSums(np.bincount(groups, minlength=count), sums)


@dataclass(frozen=True)
class Moments:
    """Moments of the devices of one user group: how many, their vectors of length 1 added up (K,) in units, their outer
    products (K, K) in squared units, and how many of them have each item (I,).
    """

    size: int
    first: Ints
    second: Ints
    items: Counts

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of devices."""
        return Moments(
            self.size + other.size, self.first + other.first, self.second + other.second, self.items + other.items
        )


def half_of(second: Ints) -> Ints:
    """Return the lower triangle of a symmetric matrix (K, K), row by row, (K (K + 1) / 2,): half the bytes to send."""
    half: Ints = second.reshape(-1)[_lower(len(second))]
    return half


def whole_of(half: Ints, columns: int) -> Ints:
    """Return the symmetric matrix (K, K) that :func:`half_of` halved."""
    second = np.zeros((columns, columns), np.int64)
    second.reshape(-1)[_lower(columns)] = half
    second += np.tril(second, -1).T
    return second


@lru_cache(maxsize=2)
def _lower(columns: int) -> Ints:
    """Return the places of the lower triangle in a matrix that is laid out flat."""
    return np.flatnonzero(np.tri(columns, dtype=np.bool_))


def group_moments(vectors: Floats, rows: UserItems, num_items: int, scale: float = UNIT_SCALE) -> Moments:
    """Return the moments of devices of one user group: vectors (N, K) of length 1, and their items. scale: units of
    vectors in one.
    """
    columns = vectors.shape[1]
    first, second = np.zeros(columns, np.int64), np.zeros((columns, columns), np.int64)
    for start in range(0, len(vectors), CHUNK_DEVICES):
        points = in_units(vectors[start : start + CHUNK_DEVICES], scale)
        first += points.sum(axis=0).astype(np.int64)
        second += (points.T @ points).astype(np.int64)
    return Moments(len(vectors), first, second, count_items(rows, num_items))


def starting_directions(counts: Counts, columns: int, seed: int) -> Doubles:
    """(I, min(columns, items that anybody has)) orthonormal at random; zero rows for items that nobody has."""
    known = np.flatnonzero(counts > 0)
    random = rng_for(seed, "stage-1").standard_normal((len(known), min(columns, len(known))))
    directions = np.zeros((len(counts), random.shape[1]))
    directions[known] = random
    return orthonormal(directions)


def orthonormal(columns: Doubles) -> Doubles:
    """Return an orthonormal basis (I, k) of the columns' span, zero columns where they span less."""
    for _ in range(2):  # the first basis is orthonormal to the square root of the precision, the second to all of it
        squares, turn = np.linalg.eigh(columns.T @ columns)
        kept = squares > EMPTY**2 * max(float(squares.max(initial=0.0)), 1e-300)
        scale = np.zeros(len(squares))
        scale[kept] = 1.0 / np.sqrt(squares[kept])
        columns = columns @ (turn * scale)
    return columns


def spectrum(block: Doubles) -> tuple[Doubles, Doubles]:
    """Left singular vectors (I, k) and singular values (k,), descending, of a block of columns; of what is rounding
    alone the vectors are zero. They are orthonormal up to rounding times (largest value / smallest)^2, which is enough
    for the next pass; see :func:`orthonormal_again`.
    """
    squares, turn = np.linalg.eigh(block.T @ block)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    scale = np.divide(1.0, values, out=np.zeros_like(values), where=values > EMPTY * max(float(values[0]), 1e-300))
    turn = turn[:, ::-1]
    signs = np.where(turn[np.abs(turn).argmax(axis=0), np.arange(len(values))] < 0, -1.0, 1.0)
    return block @ (turn * (scale * signs)), np.where(scale > 0, values, 0.0)


def orthonormal_again(vectors: Doubles) -> Doubles:
    """Columns (I, k) that are orthonormal, or zero, up to rounding: now to the last digits, and hardly moved. One step
    of Newton's iteration for the nearest orthonormal matrix (Higham, SIAM J. Sci. Stat. Comput. 7(4), 1986).
    """
    return vectors @ (1.5 * np.eye(vectors.shape[1]) - 0.5 * (vectors.T @ vectors))


def blocks_of(passes: int) -> list[int]:
    """How passes are taken: alone (1) at the start and at the end, in between two at a time (2)."""
    inner = max(passes - 2, 0)
    return [1] * min(passes, 1) + [2] * (inner // 2) + [1] * (inner % 2) + [1] * (passes > 1)


def filtered(passed: Callable[[Doubles], Doubles], directions: Doubles, cut: float) -> tuple[Doubles, Doubles]:
    """Two passes as one filter: the Chebyshev polynomial of degree 2 keeps eigenvalues below ``cut`` between -1 and 1
    and lifts those above as no other of that degree (Zhou, Saad, Tiago and Chelikowsky, "Parallel self-consistent-field
    calculations via Chebyshev-filtered subspace acceleration", Physical Review E 74, 2006).

    Returns left singular vectors of the filtered directions (I, k), and the eigenvalues that their lengths stand for.
    """
    once = 2.0 / cut * passed(directions) - directions
    length = float(np.sqrt((once * once).sum(axis=0).max()))  # devices' numbers stay within their units
    block = 2.0 * (2.0 / cut * length * passed(once / length) - once) - directions
    vectors, lengths = spectrum(block)
    return vectors, np.where(lengths > 0, cut / 2 * (1.0 + np.sqrt((lengths + 1.0) / 2.0)), 0.0)


@dataclass(frozen=True)
class Filter:
    """Filter in the space of K columns. own: (I, K) rows that a device adds up to its vector; scored: (I, K) rows by
    which its vector is multiplied to score items.
    """

    own: Floats
    scored: Floats

    @staticmethod
    def from_spectrum(
        directions: Doubles, values: Doubles, counts: Counts, *, own_exponent: float, count_exponent: float,
        value_exponent: float,
    ) -> Filter:  # fmt: skip
        """Return the filter with own = D^-own Q lambda^value, scored = D^count Q."""
        own = inverse_power(counts, own_exponent)[:, None] * directions * spread_of(values, value_exponent)
        scored = inverse_power(counts, -count_exponent)[:, None] * directions
        return Filter(halves(own.astype(np.float32)), scored.astype(np.float32))


def drawn_items(counts: Counts, seed: int, top_n: int = 20) -> tuple[Ints, int]:
    """Items that validation items are compared with, ascending, and how few of them may rank before one that counts.

    With rank r of I items and M of them drawn, about r M / I rank before it: to be among the first n M / I of the drawn
    ones stands for being among the first n of all. At least one in ``n`` is drawn: recall among fewer would be bent
    (Krichene and Rendle, "On sampled metrics for item recommendation", KDD 2020).
    """
    known = np.flatnonzero(counts > 0)
    number = min(len(known), max(len(known) // top_n, LEAST_DRAWN))
    place = max(1, round(top_n * number / max(len(known), 1)))
    return np.sort(rng_for(seed, "drawn-items").permutation(known)[:number]), min(place, number)


@dataclass(frozen=True)
class FilterGrid:
    """Filters to choose from: exponents of counts, eigenvalues and freshness (C,) each."""

    count_exponents: Doubles
    value_exponents: Doubles
    fresh_exponents: Doubles

    @staticmethod
    def from_exponents(
        count_exponents: Sequence[float], value_exponents: Sequence[float], fresh_exponents: Sequence[float] = (0.0,)
    ) -> FilterGrid:
        """Every one of these with every one of those."""
        every = itertools.product(count_exponents, value_exponents, fresh_exponents)
        counts, values, fresh = np.array(list(every), np.float64).T
        return FilterGrid(counts, values, fresh)


@dataclass(frozen=True)
class FilterRequest:
    """Which filter ranks your validation items best? directions: (I, K) as passes found them; values: (K,); counts:
    (I,); drawn, place: of :func:`drawn_items`; recent: (I,) of these counts, those of late, of a timeline, whose
    devices make their vectors with ``fading``.
    """

    directions: Floats
    values: Doubles
    counts: Counts
    shapes: FilterGrid
    drawn: Ints
    place: int
    recent: Counts | None = None
    fading: float | None = None

    def answer(self, rows: UserItems, wanted: UserItems, item_exponent: float) -> tuple[Ints, int]:
        """Return :meth:`shares` added up over devices (C,) in units of 1 / ``UNIT_SCALE``, and how many devices have
        any.
        """
        shares, answered = self.shares(rows, wanted, item_exponent)
        return np.rint(shares * UNIT_SCALE).astype(np.int64).sum(axis=0), answered

    def answering(self, wanted: UserItems) -> int:
        """Return how many devices have any validation item (N rows) on which somebody trains."""
        return int((self._known(wanted).counts() > 0).sum())

    def _known(self, wanted: UserItems) -> UserItems:
        known = wanted.keep(wanted.items < len(self.counts))
        return known.keep(self.counts[known.items] > 0)

    def shares(self, rows: UserItems, wanted: UserItems, item_exponent: float) -> tuple[Doubles, int]:
        """Return the share of each device's validation items that rank high under each filter (N, C), and how many
        devices have any.

        An item of ``wanted`` (N rows) ranks high if it outranks all but ``place`` - 1 of the drawn items that the
        device does not have; the share is zero where a device has no validation items. rows: train items (N rows).
        Items that nobody trains on are no validation items.
        """
        counts, drawn, shapes, place = self.counts, self.drawn, self.shapes, self.place
        directions = self.directions.astype(np.float64)
        base = weighted_matrix(rows, len(counts), self.fading) @ (
            inverse_power(counts, item_exponent)[:, None] * directions
        )
        known = self._known(wanted)
        users, items = known.users(), known.items
        hidden = (_matrix(rows, len(counts), np.int8) + _matrix(known, len(counts), np.int8))[:, drawn].toarray() > 0
        shares = np.zeros((rows.num_users, len(shapes.value_exponents)))
        for value in np.unique(shapes.value_exponents):
            vectors = base * spread_of(self.values, value)
            of_drawn, of_items = vectors @ directions[drawn].T, np.einsum("nk,nk->n", vectors[users], directions[items])
            for shape in np.flatnonzero(shapes.value_exponents == value):
                scale = inverse_power(counts, -shapes.count_exponents[shape])
                if self.recent is not None:
                    scale = scale * freshness(self.recent, counts, float(shapes.fresh_exponents[shape]))
                scores = np.where(hidden, -np.inf, of_drawn * scale[drawn])
                best = -np.partition(-scores, place - 1, axis=1)[:, place - 1]
                wins = np.bincount(users[of_items * scale[items] > best[users]], minlength=rows.num_users)
                shares[:, shape] = wins / np.maximum(known.counts(), 1)
        return shares, int((known.counts() > 0).sum())


def spread_of(values: Doubles, exponent: float) -> Doubles:
    """Return eigenvalues (K,) to a power; 0 for those that are rounding alone."""
    kept = values > EMPTY * values.max(initial=0.0)
    return np.where(kept, np.maximum(values, 1e-300) ** exponent, 0.0)


def leading_of(factor: Doubles, mean: Doubles, count: int, devices: int) -> tuple[Doubles, Doubles]:
    """The ``count`` leading eigenvalues (count,), descending, and eigenvectors (K, count) of L^T C L. factor: L (K, K),
    lower triangular; mean: C (K, K), a mean of outer products of as many vectors as there are ``devices``.

    Of few vectors C = F F^T has few columns F, which a Cholesky factorization with pivoting finds (Higham, "Accuracy
    and Stability of Numerical Algorithms", 2002, section 10.3): the eigenvectors are then those of the smaller
    (L^T F)^T (L^T F), of which no direction is lost.
    """
    columns = len(factor)
    if not count <= devices <= columns // 2:
        inner = factor.T @ mean @ factor
        values, turn = scipy.linalg.eigh((inner + inner.T) / 2, subset_by_index=(columns - count, columns - 1))
        return values[::-1], turn[:, ::-1]
    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(mean.T, lower=1)
    narrow = np.zeros((columns, rank))
    narrow[pivots - 1] = np.tril(packed[:, :rank])
    narrow = factor.T @ narrow
    squares, inner_turn = np.linalg.eigh(narrow.T @ narrow)
    count_found = min(count, rank)
    values, turn = np.zeros(count), np.zeros((columns, count))
    values[:count_found] = np.maximum(squares[::-1][:count_found], 0.0)
    turn[:, :count_found] = narrow @ inner_turn[:, ::-1][:, :count_found]
    lengths = np.sqrt(values)
    turn *= np.divide(1.0, lengths, out=np.zeros(count), where=lengths > EMPTY * max(float(lengths[0]), 1e-300))
    return values, turn


@dataclass(frozen=True)
class GroupStart:
    """Start of a user group: its devices' map (K, d), its item table (I, d); size: of the group; items: (I,) how many
    of its devices have each item; users: (S, d) embeddings drawn from the group's moments, no device's own.
    """

    map: Floats
    table: Floats
    size: int
    items: Counts
    users: Floats


def drawn_users(middle: Doubles, spread: Doubles, count: int, rng: np.random.Generator) -> Floats:
    """Return embeddings (count, d) drawn from a normal distribution with this mean (d,) and covariance (d, d)."""
    variances, basis = np.linalg.eigh(spread)
    drawn = rng.standard_normal((count, len(middle))) * np.sqrt(np.maximum(variances, 0.0))
    users: Floats = (middle + drawn @ basis.T).astype(np.float32)
    return users


@dataclass(frozen=True)
class Compression:
    """From K columns to the d that a user group needs most: those in which its devices' scores vary most.

    With V (I, K) the scored rows, V^T V = L L^T (Cholesky), C the second moment of the group's vectors and B the
    leading d eigenvectors of L^T C L: devices take L B to their vectors, the table is V L^-T B. It is the best
    approximation of rank d to the group's score matrix in the least-squares sense (Eckart and Young, 1936). used:
    columns of V that are not zero; factor: L of these; means: of theirs over items.
    """

    scored: Floats
    used: NDArray[np.int64]
    factor: Doubles
    means: Doubles

    @staticmethod
    def from_scored(scored: Floats) -> Compression:
        """Return the compression for scored rows (I, K)."""
        wide = scored.astype(np.float64)
        squares = wide.T @ wide
        used = np.flatnonzero(np.diag(squares) > EMPTY**2 * max(float(np.diag(squares).max(initial=0.0)), 1e-300))
        squares = squares[np.ix_(used, used)]
        ridge = 1e-12 * np.trace(squares) / max(len(used), 1)
        factor = np.linalg.cholesky(squares + ridge * np.eye(len(used)))
        return Compression(scored, used, factor, wide[:, used].mean(axis=0))

    def group(
        self, moments: Moments, dim: int, *, num_users: int, rng: np.random.Generator, scale: float = UNIT_SCALE
    ) -> GroupStart:
        """Return a user group's start. num_users: S, embeddings to draw; scale: units of moments' vectors in one."""
        columns, used = self.scored.shape[1], self.used
        second = moments.second if len(used) == columns else moments.second[np.ix_(used, used)]
        mean = second / (scale**2 * max(moments.size, 1))
        rank = min(dim, len(used))
        values, turn = leading_of(self.factor, mean, rank, moments.size)
        turn = turn * np.where(turn[np.abs(turn).argmax(axis=0), np.arange(rank)] < 0, -1.0, 1.0)
        values = np.maximum(values, 0.0)
        # users of length USER_LENGTH and scores that spread by SCORE_SPREAD, root mean square over the group
        longer = USER_LENGTH / max(float(np.sqrt(values.sum())), 1e-30)
        values = values * longer**2
        group_map, narrow = np.zeros((columns, dim)), np.zeros((columns, dim))
        group_map[used, :rank] = longer * (self.factor @ turn)
        inverse = scipy.linalg.solve_triangular(self.factor, turn, lower=True, trans="T")
        # columns of V L^-T B are orthonormal, so that their variance over items follows from their mean
        of_items = 1.0 / len(self.scored) - (self.means @ inverse) ** 2
        shorter = SCORE_SPREAD / max(float(np.sqrt(max(float((values * of_items).sum()), 0.0))), 1e-30)
        narrow[used, :rank] = shorter * inverse
        wide = self.scored @ narrow.astype(np.float32)
        middle = (moments.first / (scale * max(moments.size, 1))) @ group_map
        # second moments are diagonal in these directions
        spread = np.zeros((dim, dim))
        spread[:rank, :rank] = np.diag(values)
        spread -= np.outer(middle, middle)
        users = drawn_users(middle, spread, num_users, rng)
        return GroupStart(halves(group_map.astype(np.float32)), wide, moments.size, moments.items, users)


__all__ = [
    "Compression",
    "Filter",
    "FilterGrid",
    "FilterRequest",
    "GroupStart",
    "GroupSums",
    "Moments",
    "Units",
    "add_rows",
    "blocks_of",
    "coarse",
    "count_items",
    "drawn_items",
    "drawn_users",
    "embeddings",
    "filtered",
    "freshness",
    "group_moments",
    "group_sizes",
    "group_sums",
    "half_of",
    "halves",
    "nearest",
    "orthonormal",
    "orthonormal_again",
    "pass_sums",
    "spectrum",
    "starting_directions",
    "unit_vectors",
    "whole_of",
]
