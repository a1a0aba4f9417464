"""K-means: small cases by hand, and groups as tight as scikit-learn's."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from fl_peel.grouping.k_means import k_means
from fl_peel.randomness import rng_for


def distances(points, centroids):
    return np.square(points[:, None] - centroids).sum(axis=2)


def test_two_heaps_have_their_means_which_weights_pull():
    points = np.array([[0, 0], [0, 2], [10, 0], [10, 2]], np.float32)
    assert sorted(k_means(points, 2, seed=0).tolist()) == [[0, 1], [10, 1]]
    weights = np.array([3.0, 1, 1, 1])
    assert sorted(k_means(points, 2, seed=0, weights=weights).tolist()) == [[0, 0.5], [10, 1]]
    assert k_means(points, 1, seed=0).tolist() == [[5, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_as_tight_as_those_of_scikit_learn(seed):
    rng = rng_for(seed, "points")
    points = (rng.standard_normal((12, 8))[rng.integers(12, size=600)] + 0.4 * rng.standard_normal((600, 8))).astype(
        "f"
    )
    weights = rng.random(600) + 0.1
    centroids = k_means(points, 12, seed=seed, weights=weights, starts=3)
    other = KMeans(12, n_init=3, random_state=seed).fit(points, sample_weight=weights)
    assert weights @ distances(points, centroids).min(axis=1) <= 1.02 * other.inertia_
    labels = distances(points, centroids).argmin(axis=1)
    means = [np.average(points[labels == group], axis=0, weights=weights[labels == group]) for group in range(12)]
    assert np.allclose(means, centroids, atol=0.05)


def test_the_best_start_is_taken():
    points = rng_for(3, "points").standard_normal((300, 4)).astype(np.float32)
    once, often = (distances(points, k_means(points, 20, seed=1, starts=n)).min(axis=1).sum() for n in (1, 8))
    assert often < once


def test_more_groups_than_different_points_are_no_harm():
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    centroids = k_means(points, 5, seed=0)
    assert centroids.shape == (5, 3)
    assert not distances(points, centroids).min(axis=1).any()
