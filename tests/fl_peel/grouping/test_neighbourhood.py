"""A group's starting table: scores of its users' neighbours, regressed on the users' embeddings."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.data.interactions import UserItems
from fl_peel.grouping.clusters import Neighbourhood, item_covariance
from fl_peel.randomness import rng_for


def dense_scores(given, num_items):
    """Scores of all users by matrix products, (U, I); the readable twin."""
    shape = (given.num_users, num_items)
    matrix = sp.csr_matrix((np.ones(given.num_interactions), given.items, given.indptr), shape=shape).toarray()
    of_user, of_item = np.maximum(matrix.sum(axis=1), 1), np.maximum(matrix.sum(axis=0), 1)
    normalized = matrix / np.sqrt(of_user)[:, None] / np.sqrt(of_item)
    return (normalized @ normalized.T @ normalized * np.sqrt(of_item)).astype(np.float32)


def interactions(num_users, num_items, density, seed):
    drawn = rng_for(seed, "neighbourhood").random((num_users, num_items)) < density
    users, items = np.nonzero(drawn)
    return UserItems.from_pairs(users, items, num_users)


def test_scores_by_hand():
    # user 0 has item 0, user 1 has items 0 and 1. R~[0, 0] = 1/sqrt(1 * 2), R~[1, 0] = 1/sqrt(2 * 2),
    # R~[1, 1] = 1/sqrt(2 * 1); item degrees 2 and 1.
    rows = UserItems.from_pairs(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    scores = Neighbourhood(rows, 3).scores(np.array([0]))
    # (R~ R~^T)[0] = (1/2, 1/(2 sqrt 2)); times R~ D_i^1/2 = [[1, 0], [1/sqrt 2, 1/sqrt 2]]
    np.testing.assert_allclose(scores, [[1 / 2 + 1 / 4, 1 / 4, 0.0]], rtol=1e-6)


@given(st.integers(1, 30), st.integers(1, 25), st.floats(0.0, 0.6), st.integers(0, 1000))
def test_compiled_scores_are_those_of_the_matrix_products(num_users, num_items, density, seed):
    rows = interactions(num_users, num_items, density, seed)
    wanted = np.arange(num_users)[:: 1 + seed % 3]
    result = Neighbourhood(rows, num_items).scores(wanted)
    np.testing.assert_allclose(result, dense_scores(rows, num_items)[wanted], rtol=1e-4, atol=1e-6)


def test_a_groups_table_is_the_ridge_regression_of_scaled_scores():
    rows = interactions(400, 50, 0.15, 3)
    rng = rng_for(0, "tables")
    table, users = rng.standard_normal((50, 6)).astype(np.float32), rng.standard_normal((400, 6)).astype(np.float32)
    members = np.arange(0, 400, 1)[:300]  # more than one chunk
    result = Neighbourhood(rows, 50).group_table(
        table, item_covariance(table), users[members], members, weight=0.3, ridge=0.05
    )
    scores = dense_scores(rows, 50)[members].astype(np.float64)
    own = users[members].astype(np.float64) @ table.T.astype(np.float64)
    spread = scores.std(axis=1)
    scaled = scores * np.where(spread > 0, 0.3 * own.std(axis=1) / np.where(spread > 0, spread, 1), 0)[:, None]
    gram = users[members].T.astype(np.float64) @ users[members]
    wanted = table + np.linalg.solve(gram + 0.05 * np.trace(gram) / 6 * np.eye(6), users[members].T @ scaled).T
    np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-4)
    assert np.abs(result - table).max() > 0.05  # it does something


def test_a_group_without_collected_users_starts_from_the_global_table():
    rows = interactions(20, 10, 0.3, 1)
    table = rng_for(0, "table").standard_normal((10, 4)).astype(np.float32)
    nobody = np.zeros(0, np.int64)
    result = Neighbourhood(rows, 10).group_table(
        table, item_covariance(table), np.zeros((0, 4), np.float32), nobody, weight=0.1, ridge=0.01
    )
    np.testing.assert_array_equal(result, table)
    assert result is not table


def test_neighbours_tell_what_the_global_columns_cannot_hold():
    """Two kinds of users, of different tastes: one column for everybody has no room for both."""
    rng = rng_for(7, "planted")
    taste = np.repeat([0, 1], 60)
    users = np.repeat(np.arange(120), 8)
    items = np.concatenate([kind * 20 + rng.choice(20, 8, replace=False) for kind in taste])
    rows = UserItems.from_pairs(users, items, 120)
    embeddings = np.ones((120, 1), np.float32)
    table = rows.popularity(40)[:, None].astype(np.float32)
    members = np.arange(60)
    own = Neighbourhood(rows, 40).group_table(
        table, item_covariance(table), embeddings[members], members, weight=1.0, ridge=0.01
    )
    hits = (np.argsort(-(embeddings[members] @ table.T), axis=1)[:, :10] < 20).mean()
    own_hits = (np.argsort(-(embeddings[members] @ own.T), axis=1)[:, :10] < 20).mean()
    assert hits < 0.8
    assert own_hits == 1.0


@pytest.mark.parametrize("weight", [0.05, 1.0])
def test_weight_scales_the_correction(weight):
    rows = interactions(50, 20, 0.2, 2)
    rng = rng_for(0, "tables")
    table, users = rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((50, 3)).astype(np.float32)
    members = np.arange(50)
    near = Neighbourhood(rows, 20)
    one = near.group_table(table, item_covariance(table), users, members, weight=0.1, ridge=0.01) - table
    other = near.group_table(table, item_covariance(table), users, members, weight=weight, ridge=0.01) - table
    np.testing.assert_allclose(other, one * (weight / 0.1), rtol=1e-3, atol=1e-4)
