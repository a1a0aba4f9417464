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
and c leaves users as long as they were. Tables from sums (:mod:`fl_peel.pretraining.spectral_steps`) are of such
columns from the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.randomness import rng_for
from fl_peel.steps.units import UNIT_SCALE, Doubles, Floats, Ints
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


CERTAIN = 2.0
"""Standard deviations of noise that an item's count must exceed to be known."""
LEAST_KNOWN = 64
"""Items that are known at least, those with the largest counts."""


def known(counts: Ints, std: float) -> Doubles:
    """Item counts (I,) of bounded sums, zero where noise alone has as much: passes are then over fewer items, and so
    over less noise, and every item that is left out would add more of it than of devices.
    """
    estimates = counts / UNIT_SCALE
    least = float(np.sort(estimates)[-min(LEAST_KNOWN, len(estimates))])
    return np.where((estimates > 0) & (estimates >= min(least, CERTAIN * std)), estimates, 0.0)


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
