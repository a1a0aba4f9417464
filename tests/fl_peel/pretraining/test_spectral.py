"""What the server makes of noised sums: what noise alone explains is left out."""

import numpy as np
import pytest

from fl_peel.pretraining.spectral import (
    Axes,
    above_noise,
    cleaned,
    known,
    popular_directions,
    shrunk_items,
    symmetric,
    turned,
)
from fl_peel.steps.base import UNIT_SCALE, unit_vectors
from fl_peel.steps.user_groups import Moments


def test_items_that_drown_are_unknown_but_not_all():
    counts = (UNIT_SCALE * np.concatenate([np.full(240, 10.0), np.full(20, 3.0), [-3.0]])).astype(np.int64)
    assert (known(counts, 1.0) > 0).tolist() == [True] * 240 + [False] * 21
    assert (known(counts, 1.0, certain=2.0) > 0).tolist() == [True] * 260 + [False]
    assert (known(counts, 100.0) > 0).sum() == 240, "ties of the 200 largest stay"
    assert (known(counts, 0.0) > 0).sum() == 260


def test_directions_begin_with_popularity_and_popular_items():
    counts = np.array([5.0, 0.0, 9.0, 1.0, 4.0])
    directions = popular_directions(counts, 3, 0.5)
    assert np.allclose(directions.T @ directions, np.eye(3))
    assert np.allclose(np.abs(directions[:, 0]), np.sqrt(counts) / np.sqrt(counts.sum()))
    assert not directions[1].any()
    assert popular_directions(counts, 9, 0.5).shape == (5, 4)


def test_half_of_the_noise_of_a_symmetric_pass_is_left_out():
    rng = np.random.default_rng(4)
    counts = np.append(np.ones(200), 0.0)
    directions = np.eye(201)[:, :200]
    truth = np.zeros((201, 201))
    truth[:200, :200] = np.ones((200, 200))
    noise = rng.standard_normal((201, 200))
    result = symmetric(truth @ directions + noise, directions, counts)
    assert np.allclose(result[:200], result[:200].T)
    assert (result - truth[:, :200])[:200].var() == pytest.approx(0.5, rel=0.05)
    values = np.linalg.svd(symmetric(noise, directions, counts), compute_uv=False)
    assert not above_noise(values, counts, 1.0)[1:].any()
    assert above_noise(values, counts, 1.0)[0] > 0


def test_moments_without_what_noise_alone_would_say():
    rng = np.random.default_rng(5)
    vector = unit_vectors(rng.standard_normal((1, 20)).astype(np.float32))[0].astype(np.float64)
    noise = rng.standard_normal((20, 20)) * 2
    second = 100 * np.outer(vector, vector) + (noise + noise.T) / 2
    whole = Moments(
        int(-3 * UNIT_SCALE), np.zeros(20, np.int64), (second * UNIT_SCALE**2).astype(np.int64), np.arange(5)
    )
    result = cleaned(whole, np.ones(5), {"moment products": 2.0, "moment items": 1.0})
    values = np.linalg.eigvalsh(result.second / UNIT_SCALE**2)
    assert values[-1] == pytest.approx(100, abs=8)
    assert np.abs(values[:-1]).max() < 1e-3
    assert result.size == 1


def test_items_of_a_group_are_shrunk_to_those_of_everybody_by_the_noise():
    counts = np.array([40.0, 30.0, 20.0, 10.0] * 50)
    noise = np.random.default_rng(6).normal(0, 3, 200)
    assert np.abs(shrunk_items(counts / 4 + noise, counts, 3.0) - counts / 4).mean() < 0.3 * np.abs(noise).mean()
    other = counts[::-1].copy()
    assert np.corrcoef(shrunk_items(other + noise, counts, 3.0), other)[0, 1] > 0.95


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
