"""What the server makes of noised sums: what noise alone explains is left out."""

import numpy as np
import pytest

from fl_peel.pretraining.spectral import above_noise, cleaned, known, popular_directions, shrunk_items, symmetric
from fl_peel.steps.units import UNIT_SCALE, unit_vectors
from fl_peel.steps.user_groups import Moments


def test_items_that_drown_are_unknown_but_not_all():
    counts = (UNIT_SCALE * np.concatenate([np.full(80, 10.0), np.full(20, 1.0), [-3.0]])).astype(np.int64)
    assert (known(counts, 1.0) > 0).tolist() == [True] * 80 + [False] * 21
    assert (known(counts, 100.0) > 0).sum() == 80, "ties of the 64 largest stay"
    assert (known(counts, 0.0) > 0).sum() == 100


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
