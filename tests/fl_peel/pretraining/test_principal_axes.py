"""Principal axes: no score changes, columns come in the order of what they add, and a case computed by hand."""

import numpy as np
import pytest

from fl_peel.pretraining.spectral import Axes, turned


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(6, 6))
    users = (rng.normal(size=(50, 6)) * (1, 2, 1, 5, 1, 1) @ mixed).astype(np.float32)
    items = (rng.normal(size=(40, 6)) @ mixed).astype(np.float32)
    groups = np.arange(50) % 3 - 1  # -1: of no group
    return users, items, groups


def test_scores_stay_as_they_are(tables):
    users, items, groups = tables
    axes = Axes.from_embeddings(users, groups, 2, items)
    for group in range(2):
        everybody = turned(users, np.full(50, group), axes.users)  # whoever comes to the group later, too
        scores = everybody.astype(np.float64) @ (items.astype(np.float64) @ axes.rows[group]).T
        np.testing.assert_allclose(scores, users.astype(np.float64) @ items.T, atol=1e-4 * np.abs(scores).max())


def test_the_first_columns_are_the_best_of_any(tables):
    users, items, groups = tables
    axes = Axes.from_embeddings(users, groups, 2, items)
    for group in range(2):
        mine = users[groups == group]
        scores = mine.astype(np.float64) @ items.T
        values = np.linalg.svd(scores, compute_uv=False)
        embeddings, rows = turned(mine, np.full(len(mine), group), axes.users), items @ axes.rows[group]
        for columns in range(1, 6):
            left = scores - embeddings[:, :columns].astype(np.float64) @ rows[:, :columns].T
            assert (left**2).sum() == pytest.approx((values[columns:] ** 2).sum(), rel=1e-3), "Eckart and Young"


def test_users_and_rows_have_half_of_the_energy_and_users_their_length(tables):
    users, items, groups = tables
    axes = Axes.from_embeddings(users, groups, 2, items)
    mine = users[groups == 0]
    embeddings = turned(mine, np.zeros(len(mine), np.int64), axes.users)
    of_users, of_rows = (embeddings**2).mean(axis=0), ((items @ axes.rows[0]) ** 2).mean(axis=0)
    some = slice(4)  # where there is energy
    np.testing.assert_allclose(of_users[some] / of_users[0], of_rows[some] / of_rows[0], rtol=1e-3)
    assert (embeddings**2).sum() == pytest.approx((mine**2).sum(), rel=0.02)


def test_two_columns_by_hand():
    """Rows along the axes, users of length 1 and 3 along these: the second column adds nine times as much as the first,
    comes first, and users' two variances 1 and 9 (mean 5 each way) become those of the square root of energy, 1 : 3.
    """
    items = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)  # M = I / 2
    users = np.array([[1, 0], [-1, 0], [0, 3], [0, -3]], np.float32)
    axes = Axes.from_embeddings(users, np.zeros(4, np.int64), 1, items)
    embeddings = turned(users, np.zeros(4, np.int64), axes.users)
    assert max(abs(embeddings[0, 0]), abs(embeddings[2, 1])) < 1e-6, "the second column comes first"
    assert (embeddings**2).mean(axis=0) == pytest.approx([5 * 3 / 4, 5 * 1 / 4], rel=1e-5)


def test_a_group_smaller_than_its_columns_and_one_without_energy_keep_their_scores():
    rng = np.random.default_rng(1)
    items, users = (rng.normal(size=(n, 8)).astype(np.float32) for n in (20, 3))
    users[2] = 0
    axes = Axes.from_embeddings(users, np.array([0, 0, 1]), 2, items)
    others = rng.normal(size=(5, 8)).astype(np.float32)
    for group in range(2):
        scores = turned(others, np.full(5, group), axes.users) @ (items @ axes.rows[group]).T
        np.testing.assert_allclose(scores, others @ items.T, atol=1e-3)


def test_no_devices_embedding_depends_on_who_else_is_there(tables):
    users, items, groups = tables
    axes = Axes.from_embeddings(users, groups, 2, items)
    some = groups >= 0
    whole = turned(users[some], groups[some], axes.users)
    alone = [turned(users[i : i + 1], groups[i : i + 1], axes.users)[0] for i in np.flatnonzero(some)]
    assert whole.tobytes() == np.stack(alone).tobytes()
