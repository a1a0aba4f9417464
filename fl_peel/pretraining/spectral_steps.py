"""Tables from sums over devices: what a server makes of the sums. No interaction is collected.

With R (U, I) the interactions, d_u and D_i the counts of users and items, R~ = D_u^-a R D_i^-b. The leading right
singular vectors of R~ are an ideal low-pass filter over items (GF-CF: Shen et al., "How Powerful is Graph Convolution
for Recommendation?", CIKM 2021). They are found by block power iteration (Halko, Martinsson and Tropp, SIAM Review
53(2), 2011, algorithm 4.4), of which every multiplication by R~^T R~ is a sum over users: a device takes the rows of
its items, adds them up, and sends the result back for the rows of its items (:mod:`fl_peel.steps.passes`). The server
makes the sum orthonormal; Rayleigh and Ritz's step gives the singular values.

A device's vector in that space is a sum of rows of its own items. User groups are K-means on items' owners, moved once
to the means of devices' vectors; and as a table has d columns and not K, each group gets the d directions in which its
devices' scores differ most (:class:`Compression`), from second moments. Means and moments are sums of one step
(:mod:`fl_peel.steps.user_groups`).

What the server makes of the sums (eigenvectors, products) is in float64, in the order of its linear algebra library
(:mod:`fl_peel.cpu_dispatch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.randomness import rng_for
from fl_peel.steps.choice import spread_of
from fl_peel.steps.units import EMPTY, UNIT_SCALE, Counts, Doubles, Floats, Ints, in_units, inverse_power
from fl_peel.steps.user_groups import Moments

MAP_BITS = 26
"""Bits of a map's largest entry: a product of a map with a vector in units is exact in doubles, whatever the order."""
USER_LENGTH, SCORE_SPREAD = 2.0, 0.75
"""Length of user embeddings, and spread of scores in a group: about those of trained tables, which the rates of
refinement fit.
"""
INDEPENDENT = 0.01
"""Smallest squared length over the largest from which on columns are orthonormal to all digits at once."""
LEAST_DRAWN = 512
"""Items that validation items are compared with at least, where there are as many."""
WIDEST = 100.0
"""Largest eigenvalue over the smallest up to which two passes are filtered: beyond, rounding would be lifted, too."""


def halves(table: Floats) -> Floats:
    """Return rows (I, k) as sent: in half precision, a column in units of a power of two above its entries."""
    largest = np.abs(table).max(axis=0, initial=0.0)
    unit = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30)))).astype(np.float32)
    rounded: Floats = (table / unit).astype(np.float16).astype(np.float32) * unit
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
        if len(squares) and squares[0] > INDEPENDENT * squares[-1]:
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
    once = 2.0 / cut * passed(directions) - directions
    length = float(np.sqrt((once * once).sum(axis=0).max()))  # devices' numbers stay within their units
    block = 2.0 * (2.0 / cut * length * passed(once / length) - once) - directions
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


def leading_of(factor: Doubles, mean: Doubles, count: int, devices: int) -> tuple[Doubles, Doubles]:
    """The ``count`` leading eigenvalues (count,), descending, and eigenvectors (K, count) of L^T C L. factor: L (K, K),
    lower triangular; mean: C (K, K), a mean of outer products of as many vectors as there are ``devices``.

    Of few vectors C = F F^T has few columns F, which a Cholesky factorization with pivoting finds (Higham, "Accuracy
    and Stability of Numerical Algorithms", 2002, section 10.3): the eigenvectors are then those of the smaller
    (L^T F)^T (L^T F), of which no direction is lost.
    """
    import scipy.linalg

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
    """Start of a user group: its devices' map (K, d), its item table (I, d); size: of the devices that its moments are
    of; items: (I,) how many of these have each item; users: (S, d) embeddings drawn from the moments, no device's own.
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
        """Return a user group's start; of one whose sums are void or withheld as if its devices were alike in all
        directions. num_users: S, embeddings to draw; scale: units of moments' vectors in one.
        """
        import scipy.linalg

        columns, used = self.scored.shape[1], self.used
        second = moments.second if len(used) == columns else moments.second[np.ix_(used, used)]
        mean = second / (scale**2 * max(moments.size, 1)) if second.any() else np.eye(len(used))
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
        middle = moments.mean(scale) @ group_map
        # second moments are diagonal in these directions
        spread = np.zeros((dim, dim))
        spread[:rank, :rank] = np.diag(values)
        spread -= np.outer(middle, middle)
        users = drawn_users(middle, spread, num_users, rng)
        return GroupStart(halves(group_map.astype(np.float32)), wide, moments.size, moments.items, users)
