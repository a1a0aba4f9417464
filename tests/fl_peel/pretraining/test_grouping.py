"""User groups, item groups, and user embeddings learned on the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError, ScenarioError
from fl_peel.pretraining.central_training import pretrain
from fl_peel.pretraining.clusters import (
    Interests,
    Neighbourhood,
    choose_group,
    fit_user_embeddings,
    item_covariance,
    item_groups,
    unit_rows,
    user_groups,
)
from fl_peel.randomness import rng_for
from tests.helpers.examples import examples
from tests.helpers.settings import PRETRAINING


def rows_of(*rows: list[int]) -> UserItems:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return UserItems.from_pairs(users, np.array([i for row in rows for i in row], dtype=np.int64), len(rows))


def planted_tastes(num_users: int = 60, items_per_world: int = 20, per_user: int = 8) -> UserItems:
    """Even users like items of the first half only, odd users of the second half only."""
    chosen = [
        (rng_for(5, "planted", u).permutation(items_per_world)[:per_user] + (u % 2) * items_per_world).tolist()
        for u in range(num_users)
    ]
    return rows_of(*chosen)


@pytest.mark.parametrize("model", ["lightgcn", "matrix-factorization"])
def test_planted_taste_groups_are_recovered(model: str) -> None:
    collected = planted_tastes()
    config = replace(
        PRETRAINING,
        model=model,  # type: ignore[arg-type]
        embedding_dim=8,
        num_slices=4,
        epochs=20,
        batch_size=30,
        num_negatives=0,
    )
    tables = pretrain(collected, 40, config, seed=3)
    groups = user_groups(tables.users, collected.counts() > 0, count=2, min_size=5, seed=3)
    # the two worlds share no item, so the two groups must be the even and the odd users
    assert len(set(groups.assignment[0::2])) == 1
    assert len(set(groups.assignment[1::2])) == 1
    assert groups.assignment[0] != groups.assignment[1]
    assert groups.sizes().tolist() == [30, 30]


def test_every_user_with_data_sits_where_it_would_put_itself() -> None:
    users = rng_for(1, "users").standard_normal((200, 6)).astype(np.float32)
    has_data = rng_for(1, "data").random(200) < 0.8
    groups = user_groups(users, has_data, count=12, min_size=10, seed=0)
    assert (groups.assignment[~has_data] == -1).all()
    assert (choose_group(users[has_data], groups.centroids) == groups.assignment[has_data]).all()
    # one device alone gets the same answer as many at once
    assert choose_group(users[7], groups.centroids)[0] == choose_group(users, groups.centroids)[7]


@examples(30)
@given(
    num_users=st.integers(1, 80),
    count=st.integers(1, 12),
    min_size=st.integers(1, 30),
    spread=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_no_group_is_smaller_than_the_minimum(
    num_users: int, count: int, min_size: int, spread: float, seed: int
) -> None:
    # spread 0: only three different users, so most groups would be empty; small spread: very uneven groups
    rng = rng_for(seed, "test")
    corners = np.eye(3, 4)[np.minimum(rng.geometric(0.6, num_users) - 1, 2)]
    users = (corners + spread * rng.standard_normal((num_users, 4))).astype(np.float32)
    groups = user_groups(users, np.ones(num_users, dtype=np.bool_), count=count, min_size=min_size, seed=seed)
    sizes = groups.sizes()
    assert sizes.sum() == num_users
    assert 1 <= groups.num_groups <= count
    assert set(groups.assignment) == set(range(groups.num_groups))
    assert sizes.min() >= min(min_size, num_users)


def test_groups_are_the_same_every_time() -> None:
    users = rng_for(2, "users").standard_normal((300, 8)).astype(np.float32)
    first, second = (user_groups(users, np.ones(300, bool), count=8, min_size=5, seed=4) for _ in range(2))
    assert np.array_equal(first.assignment, second.assignment)
    assert np.array_equal(first.centroids, second.centroids)


def test_users_groups_say_what_is_wrong() -> None:
    users = np.ones((3, 2), dtype=np.float32)
    with pytest.raises(DataError, match="no user gave data"):
        user_groups(users, np.zeros(3, bool), count=2, min_size=1, seed=0)
    with pytest.raises(ScenarioError, match="min_size 0"):
        user_groups(users, np.ones(3, bool), count=2, min_size=0, seed=0)


def test_contiguous_item_groups() -> None:
    # 7 items in 3 groups: 3 + 2 + 2
    assert item_groups("contiguous", 7, count=3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_popularity_item_groups() -> None:
    popularity = np.array([5, 9, 1, 9, 0])
    # order of popularity: 1, 3 (tie, lower number first), 0, 2, 4; two runs of 3 and 2
    assert item_groups("popularity", 5, count=2, popularity=popularity).tolist() == [0, 0, 1, 0, 1]


def test_single_item_groups() -> None:
    assert item_groups("single", 4).tolist() == [0, 1, 2, 3]


def test_interest_popularity_item_groups() -> None:
    # items 0..3 point east, 4..7 north; popularity falls with the number within each interest
    east, north = np.tile([1.0, 0.0], (4, 1)), np.tile([0.0, 1.0], (4, 1))
    table = np.concatenate([east, north]).astype(np.float32) * np.arange(1, 9, dtype=np.float32)[:, None]
    popularity = np.array([8, 7, 6, 5, 4, 3, 2, 1])
    groups = item_groups("interest-popularity", 8, count=4, popularity=popularity, interests=Interests(table, 2))
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert groups[4] == groups[5] != groups[6] == groups[7]
    assert sorted(set(groups.tolist())) == [0, 1, 2, 3]


@examples(20)
@given(num_items=st.integers(1, 60), count=st.integers(1, 20), tiers=st.integers(1, 5), seed=st.integers(0, 99))
def test_item_group_numbers_are_dense(num_items: int, count: int, tiers: int, seed: int) -> None:
    rng = rng_for(seed, "items")
    popularity = rng.integers(0, 5, num_items)
    table = rng.standard_normal((num_items, 3)).astype(np.float32)
    for kind in ("contiguous", "popularity", "interest-popularity", "single"):
        groups = item_groups(
            kind,
            num_items,
            count=min(count, num_items),
            popularity=popularity,
            interests=Interests(table, tiers, seed),
        )
        assert groups.shape == (num_items,)
        assert np.array_equal(np.unique(groups), np.arange(groups.max() + 1))


def test_too_many_item_groups_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"blocks\.count: 9 is not in 1\.\.4"):
        item_groups("contiguous", 4, count=9)


def test_unit_rows_leave_zero_rows_alone() -> None:
    assert np.allclose(unit_rows(np.array([[3, 4], [0, 0]], np.float32)), [[0.6, 0.8], [0, 0]])


def test_fitted_user_solves_its_normal_equations() -> None:
    table = rng_for(3, "table").standard_normal((12, 3)).astype(np.float32)
    rows = rows_of([0, 4, 7], [], [1])
    fitted = fit_user_embeddings(table, rows, unobserved_weight=0.1, l2=0.5)
    # objective: sum over own items (1 - u.v)^2 + 0.1 sum over all items (u.v)^2 + 0.5 * 3 items * |u|^2
    own, user = table[[0, 4, 7]].astype(np.float64), fitted[0].astype(np.float64)
    gradient = -2 * own.T @ (1 - own @ user) + 0.2 * table.T @ (table @ user) + 2 * 0.5 * 3 * user
    assert np.allclose(gradient, 0.0, atol=1e-4)
    assert not fitted[1].any()


def test_fitted_user_does_not_depend_on_the_other_devices() -> None:
    table = rng_for(3, "table").standard_normal((12, 3)).astype(np.float32)
    together = fit_user_embeddings(table, rows_of([0, 4, 7], [2, 3], [1]))
    alone = fit_user_embeddings(table, rows_of([2, 3]))
    assert np.allclose(together[1], alone[0], rtol=0, atol=1e-7)


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
