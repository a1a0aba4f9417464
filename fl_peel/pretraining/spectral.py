"""Which directions of the interaction matrix are worth an embedding dimension?

A truncated singular value decomposition of the degree-normalized interactions. It needs no gradient, takes
seconds,
and already ranks well: it is the low-pass graph filter that LightGCN's propagation converges to (Shen et
al., "How Powerful is Graph Convolution for Recommendation?", CIKM 2021; Peng et al., "SVD-GCN", CIKM 2022).

The range finder is the randomized subspace iteration of Halko, Martinsson and Tropp (SIAM Review 53(2), 2011,
algorithm 4.4), written out here so that the result depends on the data and the seed alone.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.randomness import rng_for

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


def truncated_svd(
    matrix: sp.csr_matrix, rank: int, *, seed: int, oversampling: int = 32, iterations: int = 8
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the leading singular triplets U (n, rank), s (rank,), V (m, rank); signs are fixed, so are ties.

    Where the matrix has fewer than ``rank`` directions, the missing columns are zero.
    """
    num_rows, num_columns = matrix.shape
    width = min(rank + oversampling, num_rows, num_columns)
    transposed = sp.csr_matrix(matrix.T)
    right = rng_for(seed, "spectral").standard_normal((num_columns, width)).astype(np.float32)
    left = np.linalg.qr(matrix @ right)[0]
    for _ in range(iterations):
        right = np.linalg.qr(transposed @ left)[0]
        left = np.linalg.qr(matrix @ right)[0]
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


def spectral_tables(
    rows: UserItems,
    num_items: int,
    dim: int,
    *,
    seed: int,
    degree_exponent: float = 0.5,
    value_exponent: float = 0.5,
) -> tuple[FloatArray, FloatArray]:
    """User (U, dim) and item (I, dim) starting tables: singular vectors times s^value_exponent."""
    users, values, items = truncated_svd(
        normalized_interactions(rows, num_items, exponent=degree_exponent), dim, seed=seed
    )
    scale = np.power(values, value_exponent, dtype=np.float32) * (values > 0)
    return users * scale, items * scale
