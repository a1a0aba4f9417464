"""Spectral tables: leading directions of interactions, their denoising and principal axes.

A truncated singular value decomposition of the degree-normalized interactions. It needs no gradient, takes
seconds, and already ranks well: it is the low-pass graph filter that LightGCN's propagation converges to (Shen et
al., "How Powerful is Graph Convolution for Recommendation?", CIKM 2021; Peng et al., "SVD-GCN", CIKM 2022).

The range finder is the randomized subspace iteration of Halko, Martinsson and Tropp (SIAM Review 53(2), 2011,
algorithm 4.4), written out here so that the result depends on the data and the seed alone.

Denoising is free of privacy, as nothing is asked of devices (Dwork & Roth, "The Algorithmic Foundations of Differential
Privacy", 2014, proposition 2.1). Standard deviations of the noise are known beforehand, but for the number of devices
that add it.

With user embeddings P (N, d) and item rows V (I, d), scores are P V^T. The best approximation by c columns is that of
the leading singular vectors, whatever c is (Eckart and Young, 1936). With M = V^T V / I and C = P^T P / N, these follow
from the eigenvectors B of M^(1/2) C M^(1/2), of eigenvalues L: users are P M^(1/2) B S and rows V M^(-1/2) B S^(-1).
Scores stay as they are. S = c L^(-1/4) gives users and rows half of each column's energy, so that rows are coded well,
and c leaves users as long as they were. Tables from sums (:mod:`fl_peel.pretraining.spectral`) are of such
columns from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.randomness import rng_for
from fl_peel.steps.base import EMPTY, UNIT_SCALE, Counts, Doubles, Floats, Ints, in_units, inverse_power
from fl_peel.steps.choice import spread_of
from fl_peel.steps.user_groups import Moments

FloatArray = NDArray[np.float32]


def normalized_interactions(rows: UserItems, num_items: int, *, exponent: float = 0.5) -> sp.csr_matrix:
    """Return D_u^-exponent R D_i^-exponent as (U, I) float32 CSR; users and items without data have empty
    rows.

    Repeated pairs count once.
    """
    shape = (rows.num_users, num_items)
    ones = np.ones(rows.num_interactions, np.float32)
    matrix = sp.csr_matrix((ones, rows.items, rows.indptr), shape=shape, copy=True)  # else the next line sorts ``rows``
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    user_scale = _inverse_power(np.asarray(matrix.sum(axis=1)).ravel(), exponent)
    item_scale = _inverse_power(np.asarray(matrix.sum(axis=0)).ravel(), exponent)
    scaled = sp.diags(user_scale) @ matrix @ sp.diags(item_scale)
    return sp.csr_matrix(scaled, dtype=np.float32)


def _inverse_power(degrees: NDArray[np.float32], exponent: float) -> FloatArray:
    """Degree^-exponent, and zero where the degree is zero."""
    scale = np.zeros(len(degrees), dtype=np.float32)
    np.power(degrees, -exponent, out=scale, where=degrees > 0)
    return scale


OVERSAMPLING, ITERATIONS = 32, 8
"""Directions besides those that are wanted, and power iterations, of a truncated singular value decomposition."""
INDEPENDENT = 1e-3
"""Smallest diagonal of Cholesky's factor, over the largest, from which a basis has all digits of float32: rounding of
float64 grows with the square of the columns' condition.
"""


def truncated_svd(matrix: sp.csr_matrix, rank: int, *, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the leading singular triplets U (n, rank), s (rank,), V (m, rank); signs are fixed, so are ties.

    Where the matrix has fewer than ``rank`` directions, the missing columns are zero.
    """
    num_rows, num_columns = matrix.shape
    width = min(rank + OVERSAMPLING, num_rows, num_columns)
    transposed = sp.csr_matrix(matrix.T)
    right = rng_for(seed, "spectral").standard_normal((num_columns, width)).astype(np.float32)
    left = basis(matrix @ right)
    for _ in range(ITERATIONS):
        right = basis(transposed @ left)
        left = basis(matrix @ right)
    # matrix ~ left @ (left.T @ matrix), and the second factor is small enough for an exact decomposition
    small_left, values, small_right = np.linalg.svd((transposed @ left).T.astype(np.float64), full_matrices=False)
    users = np.zeros((num_rows, rank), np.float32)
    items = np.zeros((num_columns, rank), np.float32)
    kept = np.zeros(rank, np.float32)
    size = min(rank, width)
    users[:, :size] = (left.astype(np.float64) @ small_left)[:, :size]
    items[:, :size] = small_right[:size].T
    kept[:size] = values[:size]
    # a singular vector's sign is arbitrary: make the largest entry of each item direction positive
    signs = np.where(items[np.abs(items).argmax(axis=0), np.arange(rank)] < 0, -1.0, 1.0).astype(np.float32)
    return users * signs, kept, items * signs


def basis(block: FloatArray) -> FloatArray:
    """Orthonormal basis (n, k) of the span of columns (n, k), that of a QR decomposition up to signs. By Cholesky's
    factor of the products, in a tenth of its time; where columns nearly depend, by Householder's reflections.
    """
    wide = block.astype(np.float64)
    try:
        factor = np.linalg.cholesky(wide.T @ wide)
    except np.linalg.LinAlgError:
        return np.linalg.qr(block)[0]
    diagonal = np.diag(factor)
    if diagonal.min() < INDEPENDENT * diagonal.max():
        return np.linalg.qr(block)[0]
    basis: FloatArray = (wide @ np.linalg.inv(factor).T).astype(block.dtype)
    return basis


def spectral_tables(rows: UserItems, num_items: int, dim: int, *, seed: int) -> tuple[FloatArray, FloatArray]:
    """User (U, dim) and item (I, dim) starting tables: singular vectors times the roots of the singular values."""
    users, values, items = truncated_svd(normalized_interactions(rows, num_items, exponent=0.5), dim, seed=seed)
    scale = np.power(values, 0.5, dtype=np.float32) * (values > 0)
    return users * scale, items * scale


CERTAIN, CERTAIN_OVER_TIME = 4.0, 2.0
"""Standard deviations of noise that an item's count must exceed to be known, chosen on ML-100K's validation items; in a
timeline items are new, and their counts small.
"""
LEAST_KNOWN = 200
"""Items that are known at least, those with the largest counts."""


def known(counts: Ints, std: float, certain: float = CERTAIN) -> Doubles:
    """Item counts (I,) of bounded sums, zero where noise alone has as much: passes are then over fewer items, and so
    over less noise, and every item that is left out would add more of it than of devices. certain: standard deviations.
    """
    estimates = counts / UNIT_SCALE
    least = float(np.sort(estimates)[-min(LEAST_KNOWN, len(estimates))])
    return np.where((estimates > 0) & (estimates >= min(least, certain * std)), estimates, 0.0)


def popular_directions(counts: Doubles, columns: int, exponent: float) -> Doubles:
    """Where passes over noised sums begin, (I, min(columns, items that are known)) orthonormal: D^(1 - b), which is
    close to the leading direction, and the directions of the most popular items. Random ones would be nearly orthogonal
    to what devices have, and drown (Hardt and Price, "The Noisy Power Method", NeurIPS 2014).
    """
    order = np.argsort(-counts, kind="stable")[: min(columns, int((counts > 0).sum()))]
    directions = np.zeros((len(counts), len(order)))
    directions[order, np.arange(len(order))] = 1.0
    directions[:, -1] = np.where(counts > 0, counts ** (1.0 - exponent), 0.0)
    basis: Doubles = np.linalg.qr(directions[:, ::-1])[0]
    return basis * (counts > 0)[:, None]


def symmetric(passed: Doubles, directions: Doubles, counts: Doubles) -> Doubles:
    """A pass (I, K) as far as it can be one of a symmetric matrix over known items, which noise is not."""
    block = np.where((counts > 0)[:, None], passed, 0.0)
    inside = directions.T @ block
    return block + directions @ ((inside.T - inside) / 2)


def above_noise(values: Doubles, counts: Doubles, std: float) -> Doubles:
    """Singular values (K,), descending, of a noised pass; zero where noise alone has as much: its norm is about
    std (sqrt(2 K) + sqrt(m - K)) over m known items (Davidson and Szarek, "Local operator theory, random matrices and
    Banach spaces", 2001, section 2.3). The leading one stays.
    """
    items, columns = int((counts > 0).sum()), len(values)
    noise = std * (math.sqrt(2.0 * columns) + math.sqrt(max(items - columns, 0)))
    kept = np.where(values > noise, values, 0.0)
    kept[:1] = values[:1]
    return kept


def cleaned(moments: Moments, counts: Doubles, stds: dict[str, float]) -> Moments:
    """A user group's moments as if of devices: a size of at least one, products without negative eigenvalues nor such
    as noise alone has, items shrunk towards the counts (I,) of everybody. stds: by part.
    """
    size = max(1, round(moments.size / UNIT_SCALE))
    products = moments.second / UNIT_SCALE**2
    values, turn = np.linalg.eigh((products + products.T) / 2)
    noise = stds["moment products"] * math.sqrt(2.0 * len(values))  # of a symmetric matrix: Davidson and Szarek
    kept = np.where(values > noise, values, 0.0)
    kept[-1] = max(values[-1], 1.0 / UNIT_SCALE)
    second = np.rint((turn * kept) @ turn.T * UNIT_SCALE**2).astype(np.int64)
    items = shrunk_items(moments.items / UNIT_SCALE, counts, stds["moment items"])
    return Moments(size, moments.first, (second + second.T) // 2, items)


def shrunk_items(items: Doubles, counts: Doubles, std: float) -> Doubles:
    """Item counts (I,) of a user group, between its noised ones and its share of everybody's: an item's own part goes
    with how far counts are from those of everybody beyond noise.
    """
    prior = counts * max(float(items.sum()), 0.0) / max(float(counts.sum()), 1e-300)
    away = items - prior
    beyond = max(0.0, float((away * away).mean()) - std**2)
    return np.maximum(prior + away * (beyond / (beyond + std**2) if beyond else 0.0), 0.0)


LEAST = 1e-3
"""Smallest eigenvalue that counts, as a share of the mean one: a small group has no users in most directions."""


@dataclass(frozen=True)
class Axes:
    """Maps of user groups onto their principal axes: users (G, d, d) of embeddings, rows (G, d, d) of tables."""

    users: Floats
    rows: Floats

    @staticmethod
    def from_embeddings(embeddings: Floats, groups: NDArray[np.integer], num_groups: int, items: Floats) -> Axes:
        """Return the axes of user groups. embeddings: (U, d) of users; groups: (U,) their groups, -1 for users that do
        not count; items: (I, d) rows of all groups.
        """
        wide = items.astype(np.float64)
        root, inverse = _roots(wide.T @ wide / len(wide))
        users, rows = np.empty((2, num_groups, *root.shape), np.float32)
        for group in range(num_groups):
            mine = embeddings[groups == group].astype(np.float64)
            moments = mine.T @ mine / max(len(mine), 1)
            values, turn = np.linalg.eigh(root @ moments @ root)
            values, turn = values[::-1], turn[:, ::-1]
            turn = turn * np.where(turn[np.abs(turn).argmax(axis=0), np.arange(len(values))] < 0, -1.0, 1.0)
            values = np.maximum(values, max(LEAST * float(values.mean()), 1e-30))
            length = np.sqrt(np.trace(moments) / np.sqrt(values).sum()) or 1.0
            scale = length * values**-0.25
            users[group], rows[group] = root @ turn * scale, inverse @ turn / scale
        return Axes(users, rows)


def _roots(moments: Doubles) -> tuple[Doubles, Doubles]:
    """Return the square root of a symmetric matrix (d, d), and its inverse."""
    values, basis = np.linalg.eigh(moments)
    roots = np.sqrt(np.maximum(values, max(LEAST**2 * float(values.mean()), 1e-30)))
    return basis * roots @ basis.T, basis / roots @ basis.T


def turned(embeddings: Floats, groups: NDArray[np.integer], maps: Floats) -> Floats:
    """Return user embeddings (N, d) of devices in these user groups (N,) on the axes of theirs. maps: (G, d, d). One
    after the other, so that no device's embedding depends on who else is there.
    """
    result = np.empty_like(embeddings)
    for place, group in enumerate(groups.tolist()):
        result[place] = embeddings[place].astype(np.float64) @ maps[group].astype(np.float64)
    return result


# ---- Tables from sums over devices: what a server makes of the sums. No interaction is collected
# With R (U, I) the interactions, d_u and D_i the counts of users and items, R~ = D_u^-a R D_i^-b. The leading right
# singular vectors of R~ are an ideal low-pass filter over items (GF-CF: Shen et al., "How Powerful is Graph
# Convolution for Recommendation?", CIKM 2021). They are found by block power iteration (Halko, Martinsson and Tropp,
# SIAM Review 53(2), 2011, algorithm 4.4), of which every multiplication by R~^T R~ is a sum over users: a device
# takes the rows of its items, adds them up, and sends the result back for the rows of its items
# (:mod:`fl_peel.steps.passes`). The server makes the sum orthonormal; Rayleigh and Ritz's step gives the singular
# values.
#
# A device's vector in that space is a sum of rows of its own items. User groups are K-means on items' owners, moved
# once to the means of devices' vectors; and as a table has d columns and not K, each group gets the d directions in
# which its devices' scores differ most (:class:`Compression`), from second moments. Means and moments are sums of one
# step (:mod:`fl_peel.steps.user_groups`).
#
# What the server makes of the sums (eigenvectors, products) is in float64, in the order of its linear algebra library
# (:mod:`fl_peel.cpu_dispatch`).


MAP_BITS = 26
"""Bits of a map's largest entry: a product of a map with a vector in units is exact in doubles, whatever the order."""
USER_LENGTH, SCORE_SPREAD = 2.0, 0.75
"""Length of user embeddings, and spread of scores in a group: about those of trained tables, which the rates of
refinement fit.
"""
INDEPENDENT_SQUARES = 0.01
"""Smallest squared length over the largest from which on columns are orthonormal to all digits at once."""
ROWS_AT_ONCE = 4096
"""Rows that are computed at a time where the result takes the place of what it is computed from."""
LEAST_DRAWN = 512
"""Items that validation items are compared with at least, where there are as many."""
WIDEST = 100.0
"""Largest eigenvalue over the smallest up to which two passes are filtered: beyond, rounding would be lifted, too."""


def halves(table: Floats) -> Floats:
    """Return rows (I, k) as sent: in half precision, a column in units of a power of two above its entries."""
    largest = np.maximum(table.max(axis=0, initial=0.0), -table.min(axis=0, initial=0.0))
    unit = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30)))).astype(np.float32)
    rounded: Floats = np.divide(table, unit, out=np.empty(table.shape, np.float16), casting="same_kind") * unit
    return rounded


def coarse(centroids: Floats) -> Floats:
    """Return centroids as they are sent: a byte for each number, in units of the largest over 127."""
    unit = max(float(np.abs(centroids).max(initial=0.0)), 1e-30) / 127
    rounded: Floats = (np.rint(centroids / unit) * unit).astype(np.float32)
    return rounded


def embeddings(vectors: Floats, group_map: Floats) -> Floats:
    """Return user embeddings (N, d) of a group's devices: vectors (N, K) times the group's map (K, d)."""
    largest = float(np.abs(group_map).max(initial=0.0))
    if largest == 0:
        return np.zeros((len(vectors), group_map.shape[1]), np.float32)
    scale = 2.0**MAP_BITS / largest
    product = in_units(vectors) @ np.rint(group_map.astype(np.float64) * scale)
    users: Floats = (product / (scale * UNIT_SCALE)).astype(np.float32)
    return users


def starting_directions(counts: Counts, columns: int, seed: int) -> Doubles:
    """(I, min(columns, items that anybody has)) orthonormal at random; zero rows for items that nobody has."""
    known = np.flatnonzero(counts > 0)
    random = rng_for(seed, "stage-1").standard_normal((len(known), min(columns, len(known))))
    directions = np.zeros((len(counts), random.shape[1]))
    directions[known] = random
    return orthonormal(directions)


def orthonormal(columns: Doubles) -> Doubles:
    """Return an orthonormal basis (I, k) of the columns' span, zero columns where they span less."""
    for _ in range(2):  # of columns that nearly depend, the first basis is orthonormal to half of the digits alone
        squares, turn = np.linalg.eigh(columns.T @ columns)
        kept = squares > EMPTY**2 * max(float(squares.max(initial=0.0)), 1e-300)
        scale = np.zeros(len(squares))
        scale[kept] = 1.0 / np.sqrt(squares[kept])
        columns = columns @ (turn * scale)
        if len(squares) and squares[0] > INDEPENDENT_SQUARES * squares[-1]:
            break
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
    once = passed(directions)  # 2 / cut * passed - directions
    once *= 2.0 / cut
    once -= directions
    length = float(np.sqrt((once * once).sum(axis=0).max()))  # devices' numbers stay within their units
    block = passed(once / length)  # 2 (2 / cut * passed - once) - directions
    block *= 2.0 / cut * length
    block -= once
    block *= 2.0
    block -= directions
    vectors, lengths = spectrum(block)
    return vectors, np.where(lengths > 0, cut / 2 * (1.0 + np.sqrt((lengths + 1.0) / 2.0)), 0.0)


@dataclass(frozen=True)
class Filter:
    """Filter in K columns. own: (I, K) rows that devices add up to vectors; scored: (I, K), by which they score."""

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


def leading_of(factor: Doubles, mean: Doubles, count: int, devices: int, alike: Doubles) -> tuple[Doubles, Doubles]:
    """The ``count`` leading eigenvalues (count,), descending, and eigenvectors (K, count) of L^T C L. factor: L (K, K),
    lower triangular; mean: C (K, K), a mean of outer products of as many vectors as there are ``devices``; alike: (K,
    count) leading eigenvectors of L^T L, times the roots of their eigenvalues.

    Of few vectors C = F F^T has few columns F, which a Cholesky factorization with pivoting finds (Higham, "Accuracy
    and Stability of Numerical Algorithms", 2002, section 10.3): the eigenvectors are then those of the smaller
    (L^T F)^T (L^T F), of which no direction is lost. Where these are fewer than ``count``, the rest are of eigenvalue
    0, and the leading ones of devices that are alike in all directions: devices that were not in the sum need some.
    """
    import scipy.linalg

    columns = len(factor)
    if not 0 < devices <= columns // 2:
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
    none = ~turn.any(axis=0)
    if none.any():
        turn[:, none] = np.linalg.svd(alike - turn @ (turn.T @ alike), full_matrices=False)[0][:, : none.sum()]
    return values, turn


@dataclass(frozen=True)
class GroupStart:
    """Start of a user group: its devices' map (K, d); rows: (I, k) of all user groups; turn: (k, d), which makes of
    them the group's item table; size: of the devices that its moments are of; items: (I,) how many of these have each
    item; users: (S, d) embeddings drawn from the moments, no device's own.
    """

    map: Floats
    rows: Floats
    turn: Floats
    size: int
    items: Counts
    users: Floats

    @property
    def table(self) -> Floats:
        """Return the item table (I, d), computed anew: those of hundreds of user groups take gigabytes."""
        return self.rows @ self.turn


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
    columns of V that are not zero; factor: L of these; alike: see :func:`leading_of`; means: of theirs over items.
    """

    scored: Floats
    dim: int
    used: NDArray[np.int64]
    factor: Doubles
    alike: Doubles
    means: Doubles

    @staticmethod
    def from_scored(scored: Floats, dim: int) -> Compression:
        """Return the compression of scored rows (I, K) to d columns."""
        wide = scored.astype(np.float64)
        squares = wide.T @ wide
        used = np.flatnonzero(np.diag(squares) > EMPTY**2 * max(float(np.diag(squares).max(initial=0.0)), 1e-300))
        squares = squares[np.ix_(used, used)]
        ridge = 1e-12 * np.trace(squares) / max(len(used), 1)
        factor = np.linalg.cholesky(squares + ridge * np.eye(len(used)))
        values, turn = np.linalg.eigh(factor.T @ factor)
        alike = (turn * np.sqrt(np.maximum(values, 0.0)))[:, ::-1][:, :dim]
        return Compression(scored, dim, used, factor, alike, wide[:, used].mean(axis=0))

    def group(
        self, moments: Moments, *, num_users: int, rng: np.random.Generator, scale: float = UNIT_SCALE
    ) -> GroupStart:
        """Return a user group's start; of one whose sums are void or withheld as if its devices were alike in all
        directions. num_users: S, embeddings to draw; scale: units of moments' vectors in one.
        """
        import scipy.linalg

        columns, dim, used = self.scored.shape[1], self.dim, self.used
        second = moments.second if len(used) == columns else moments.second[np.ix_(used, used)]
        mean = second / (scale**2 * max(moments.size, 1)) if second.any() else np.eye(len(used))
        rank = min(dim, len(used))
        values, turn = leading_of(self.factor, mean, rank, moments.size, self.alike)
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
        middle = moments.mean(scale) @ group_map
        # second moments are diagonal in these directions
        spread = np.zeros((dim, dim))
        spread[:rank, :rank] = np.diag(values)
        spread -= np.outer(middle, middle)
        users = drawn_users(middle, spread, num_users, rng)
        return GroupStart(
            halves(group_map.astype(np.float32)),
            self.scored,
            narrow.astype(np.float32),
            moments.size,
            moments.items,
            users,
        )
