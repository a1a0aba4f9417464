"""K-means: Lloyd's algorithm from starting points that are spread out.

Of our own, as every run needs it, and importing scikit-learn's takes longer than all groups of a small data set.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fl_peel.randomness import rng_for

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
ROUNDS = 100
"""Rounds after which centroids stay as they are."""
SETTLED = 1e-4
"""Mean squared move of a centroid, relative to the points' variance, that ends the rounds."""
DRAWN = 4
"""Points that are drawn for each further starting centroid; the best of them is taken."""
CHUNK = 4096
"""Points whose distances to all centroids are held at once."""


def k_means(points: Floats, count: int, *, seed: int, weights: Doubles | None = None, starts: int = 1) -> Floats:
    """Return ``count`` centroids (count, d) of points (N, d), the best of so many starts. weights: (N,) of the points,
    None: 1 each. One thread, since sums of several arrive in any order.
    """
    shares = np.ones(len(points)) if weights is None else weights
    with threadpool_limits(limits=1):
        tries = [_settle(points, shares, count, rng_for(seed, "k-means", start)) for start in range(starts)]
    return min(tries, key=lambda one: one[1])[0]


def _settle(points: Floats, weights: Doubles, count: int, rng: np.random.Generator) -> tuple[Floats, float]:
    """Return centroids (count, d), and the weighted sum of the points' squared distances to them."""
    centroids = _spread_points(points, weights, count, rng)
    variance = float(points.var(axis=0, dtype=np.float64).mean())
    everyone = np.arange(len(points))
    for _ in range(ROUNDS):
        labels, distances = _nearest(points, centroids)
        members = sp.csr_matrix((weights, (labels, everyone)), shape=(count, len(points)))  # (count, N)
        sizes = np.bincount(labels, weights, count)
        moved = (members @ points) / np.maximum(sizes, np.finfo(np.float64).tiny)[:, None]
        empty = np.flatnonzero(sizes == 0)
        moved[empty] = points[np.argsort(-distances * weights, kind="stable")[: len(empty)]]  # go where most is amiss
        before, centroids = centroids, moved.astype(np.float32)
        if not (len(empty) and distances.any()) and np.square(centroids - before).sum() <= SETTLED * variance * count:
            break
    return centroids, float(weights @ _nearest(points, centroids)[1])


def _nearest(points: Floats, centroids: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return each point's nearest centroid (N,), ties to the lower number, and its squared distance to it (N,)."""
    labels, distances = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    for first in range(0, len(points), CHUNK):
        some = slice(first, first + CHUNK)
        apart = _squared_distances(points[some], centroids)
        labels[some] = apart.argmin(axis=1)
        distances[some] = apart.min(axis=1)
    return labels, distances


def _spread_points(points: Floats, weights: Doubles, count: int, rng: np.random.Generator) -> Floats:
    """Return starting centroids: points drawn by how far they are from those that are drawn already (Arthur and
    Vassilvitskii, "k-means++", SODA 2007), the best of a few each time.
    """
    chosen = [int(rng.choice(len(points), p=weights / weights.sum()))]
    left = _squared_distances(points[chosen], points)[0]
    while len(chosen) < count:
        ends = np.cumsum(left * weights)
        drawn = np.minimum(np.searchsorted(ends, rng.random(DRAWN) * ends[-1], side="right"), len(points) - 1)
        after = np.minimum(left, _squared_distances(points[drawn], points))
        best = int((after @ weights).argmin())
        chosen.append(int(drawn[best]))
        left = after[best]
    return points[chosen].copy()


def _squared_distances(one: Floats, other: Floats) -> Floats:
    """Return the squared distances (N, M) between rows of both, none below 0."""
    squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1) - 2 * (one @ other.T)
    distances: Floats = np.maximum(squares, 0)
    return distances
