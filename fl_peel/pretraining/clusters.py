"""User groups: clusters of users, and the neighbourhood by which new ones join.

User groups: K-means on user embeddings that have length 1 (the angle says what a user likes, the length how
active the user is), as in PEEL (arXiv 2306.10532, "user group formation"), with a minimum size: a group's
table and block weights are learned from its members, and a small group is both noisy and less private.

Item groups: the release's contiguous ids, popularity tiers, interest crossed with popularity, or single
items.

A table of d columns for everybody has no room for who else went where. One that serves a hundred users has: the scores
that these users' neighbours give to items, regressed on the users' own embeddings, are a correction of d columns that
the group's table can carry. It is found in closed form from the collected interactions; users keep their embeddings.

The scores are the linear part of the graph filter of Shen et al., "How Powerful is Graph Convolution for
Recommendation?" (CIKM 2021, GF-CF): with R the interactions, D_u and D_i the degrees and
R~ = D_u^-1/2 R D_i^-1/2, the rows of R~ R~^T R~ D_i^1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fl_peel import kernels
from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError, ScenarioError
from fl_peel.randomness import seed_for
from fl_peel.scenario.settings import ItemGroupKind

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class UserGroups:
    """Groups 0..G-1.

    assignment: (U,) int32, -1 for users without data; centroids: (G, d) in the space of length-1 embeddings.
    For every user with data, ``assignment`` is what :func:`choose_group` answers for its embedding.
    """

    assignment: NDArray[np.int32]
    centroids: FloatArray

    @property
    def num_groups(self) -> int:
        """Number of groups, G."""
        return len(self.centroids)

    def sizes(self) -> NDArray[np.int64]:
        """Users per group, shape (G,)."""
        return np.bincount(self.assignment[self.assignment >= 0], minlength=self.num_groups)


def user_groups(
    user_embeddings: FloatArray, has_data: NDArray[np.bool_], *, count: int, min_size: int, seed: int
) -> UserGroups:
    """Cluster users (U, d) who gave data into at most ``count`` groups of at least ``min_size`` each.

    Rule for the minimum: K-means is asked for no more groups than could all have ``min_size`` members.
    Then, as long as some group is too small, the smallest is dissolved and each of its members goes to the
    nearest centroid that is left. With fewer than ``min_size`` users in all, they form one group.

    Raises:
        DataError: no user gave data.
        ScenarioError: ``count`` or ``min_size`` is below 1.
    """
    if count < 1 or min_size < 1:
        raise ScenarioError(f"user groups: count {count} and min_size {min_size} must be at least 1")
    members = np.flatnonzero(has_data)
    if len(members) == 0:
        raise DataError("user groups: no user gave data to the server; raise the collected share")
    points = unit_rows(user_embeddings[members])
    wanted = max(1, min(count, len(members) // min_size))
    centroids = _centroids(points, wanted, seed_for(seed, "user-groups"))
    while True:
        labels = choose_group(points, centroids)
        sizes = np.bincount(labels, minlength=len(centroids))
        if len(centroids) == 1 or sizes.min() >= min_size:
            break
        centroids = np.delete(centroids, sizes.argmin(), axis=0)
    assignment = np.full(len(user_embeddings), -1, dtype=np.int32)
    assignment[members] = labels
    return UserGroups(assignment, centroids)


def _centroids(points: FloatArray, count: int, seed: int) -> FloatArray:
    """Centroids (count, d), fewer where there are fewer different points."""
    distinct = len(np.unique(points, axis=0)) if len(points) <= 4096 else count
    return k_means(points, min(count, distinct), seed, starts=3)


def k_means(
    points: FloatArray, count: int, seed: int, *, weights: NDArray[np.float64] | None = None, starts: int = 1
) -> FloatArray:
    """Return centroids (count, d) of points (N, d), the best of so many starts. weights: (N,) of the points, None: 1
    each. One thread: sums of several threads arrive in any order.
    """
    from sklearn.cluster import KMeans  # a second that nodes do not need

    with threadpool_limits(limits=1):
        model = KMeans(count, n_init=starts, random_state=seed % 2**32).fit(points, sample_weight=weights)
    return np.asarray(model.cluster_centers_, dtype=np.float32)


def unit_rows(table: FloatArray) -> FloatArray:
    """Rows scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    unit: FloatArray = np.divide(table, lengths, out=np.zeros_like(table, dtype=np.float32), where=lengths > 0)
    return unit


def choose_group(user_embeddings: FloatArray, centroids: FloatArray) -> NDArray[np.int32]:
    """Nearest centroid per user (N, d) -> (N,), ties to the lower number; runs on the device."""
    points = unit_rows(np.atleast_2d(user_embeddings)).astype(np.float64)
    centers = centroids.astype(np.float64)
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, and |p|^2 is the same for all centroids
    distances = np.square(centers).sum(axis=1) - 2.0 * (points @ centers.T)  # (N, G)
    return np.asarray(distances.argmin(axis=1), dtype=np.int32)


def check_count(kind: ItemGroupKind, count: int, num_items: int) -> None:
    """Refuse more item groups than there are items.

    Raises:
        ScenarioError: ``count`` is below 1 or above the number of items.
    """
    if kind != "single" and not 1 <= count <= num_items:
        raise ScenarioError(f"blocks.count: {count} is not in 1..{num_items}, the number of items; change it")


@dataclass(frozen=True)
class Interests:
    """What groups of items by interest are made of: item_embeddings (I, d); num_tiers: item groups of each interest."""

    item_embeddings: FloatArray
    num_tiers: int = 4
    seed: int = 0


def item_groups(
    kind: ItemGroupKind,
    num_items: int,
    *,
    count: int = 0,
    popularity: NDArray[np.int64] | None = None,
    interests: Interests | None = None,
) -> NDArray[np.int32]:
    """Group number per item, shape (num_items,), dense 0..G-1.

    "contiguous": ``count`` runs of item ids of near-equal size, as in the authors' release.
    "popularity": ``count`` runs of near-equal size in order of popularity (num_items,), most popular first,
    ties to the lower item number.
    "interest-popularity": items clustered into count / num_tiers ``interests`` (K-means on rows of length 1), each cut
    into num_tiers near-equal runs by popularity.
    "single": every item is its own group; ``count`` is ignored.

    Raises:
        ScenarioError: ``count`` is below 1 or above the number of items.
    """
    if kind == "single":
        return np.arange(num_items, dtype=np.int32)
    check_count(kind, count, num_items)
    if kind == "contiguous":
        return _runs(num_items, count)
    if popularity is None:
        raise ValueError(f"{kind} item groups need the popularity of the items")
    by_popularity = np.argsort(-popularity, kind="stable")
    groups = np.empty(num_items, dtype=np.int32)
    if kind == "popularity":
        groups[by_popularity] = _runs(num_items, count)
        return groups
    if interests is None:
        raise ValueError("interest-popularity item groups need the item embeddings")
    num_tiers = interests.num_tiers
    num_interests = max(1, round(count / num_tiers))
    points = unit_rows(interests.item_embeddings)
    of_item = choose_group(points, _centroids(points, num_interests, seed_for(interests.seed, "item-groups")))
    for interest in range(num_interests):
        members = by_popularity[of_item[by_popularity] == interest]  # most popular first
        groups[members] = interest * num_tiers + _runs(len(members), min(num_tiers, max(1, len(members))))
    return np.unique(groups, return_inverse=True)[1].astype(np.int32)


def _runs(length: int, count: int) -> NDArray[np.int32]:
    """0, .., 0, 1, .., 1, ..: ``count`` runs whose lengths differ by at most one, shape (length,)."""
    return (np.arange(length) * count // max(length, 1)).astype(np.int32)


def fit_user_embeddings(
    item_table: FloatArray, rows: UserItems, *, unobserved_weight: float = 0.02, l2: float = 0.02
) -> FloatArray:
    """User embeddings (N, d) of devices whose data was not collected, from the frozen item table (I, d)
    alone.

    Weighted least squares in closed form, as implicit-feedback matrix factorization folds in a new user
    (Hu, Koren and Volinsky, ICDM 2008): the device's items should score 1, all items 0 with
    ``unobserved_weight``; ``l2`` is per item of the device. A device's result depends on its own items
    only. Devices without items get zeros.
    """
    table = item_table.astype(np.float64)
    dim = table.shape[1]
    everything = unobserved_weight * (table.T @ table)  # (d, d), the same on every device
    fitted = np.zeros((rows.num_users, dim), dtype=np.float32)
    for start in range(0, rows.num_users, 1024):
        users = range(start, min(start + 1024, rows.num_users))
        matrices = np.empty((len(users), dim, dim))
        targets = np.empty((len(users), dim))
        for place, user in enumerate(users):
            own = table[rows.row(user)]  # (n_u, d)
            matrices[place] = everything + own.T @ own + l2 * max(len(own), 1) * np.eye(dim)
            targets[place] = own.sum(axis=0)
        fitted[start : start + len(users)] = np.linalg.solve(matrices, targets[:, :, None])[:, :, 0]
    return fitted


CHUNK_USERS = 256
"""Users whose scores of all items are held at a time."""
CHUNK_ROWS, CHUNK_ITEMS = 8, 256
"""Rows of scores, and items, that are computed with in double precision at a time: they stay in a processor's cache."""


@dataclass(frozen=True)
class Neighbourhood:
    """The collected interactions of all users, to be walked from users to items and back."""

    given: UserItems
    num_items: int

    @cached_property
    def _by_item(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Where each item's users start (I + 1,), and the users, ascending."""
        users = np.repeat(np.arange(self.given.num_users, dtype=np.int32), self.given.counts())
        order = np.argsort(self.given.items, kind="stable")
        indptr = np.zeros(self.num_items + 1, np.int64)
        np.cumsum(np.bincount(self.given.items, minlength=self.num_items), out=indptr[1:])
        return indptr, users[order]

    def scores(self, users: NDArray[np.int64]) -> FloatArray:
        """Scores of all items by the neighbours of ``users`` (M,), (M, I); 0 for users without interactions."""
        scores = np.zeros((len(users), self.num_items), np.float32)
        kernels.neighbour_scores(users, self.given.indptr, self.given.items, *self._by_item, scores)
        return scores

    def group_table(
        self,
        table: FloatArray,
        covariance: NDArray[np.float64],
        embeddings: FloatArray,
        users: NDArray[np.int64],
        *,
        weight: float,
        ridge: float,
    ) -> FloatArray:
        """The item table (I, d) of a user group: ``table`` plus the ridge regression of its users' scores.

        With U (M, d) the ``embeddings`` of ``users`` (M,) and X (M, I) their scores, each row scaled to ``weight``
        times the standard deviation of the row of U ``table``^T, this is
        table + ((U^T U + ridge tr(U^T U) / d I)^-1 U^T X)^T. covariance: :func:`item_covariance` of ``table``.
        """
        dim = table.shape[1]
        moment, gram = np.zeros((dim, self.num_items)), np.zeros((dim, dim))
        for start in range(0, len(users), CHUNK_USERS):
            part = embeddings[start : start + CHUNK_USERS].astype(np.float64)
            scores = self.scores(users[start : start + CHUNK_USERS])
            rows = range(0, len(scores), CHUNK_ROWS)
            spread = np.concatenate([scores[row : row + CHUNK_ROWS].std(axis=1, dtype=np.float64) for row in rows])
            # the variance of u . v over items v is u^T C u with C the items' covariance
            own = np.sqrt(np.maximum(np.einsum("ud,ud->u", part @ covariance, part), 0.0))
            scale = np.divide(weight * own, spread, out=np.zeros_like(spread), where=spread > 0)
            moment += (part * scale[:, None]).astype(np.float32).T @ scores
            gram += part.T @ part
        trace = np.trace(gram)
        if trace == 0:
            return table.copy()
        # well conditioned by the ridge; a solver would copy the moment of all items twice, column by column
        inverse = np.linalg.inv(gram + ridge * trace / dim * np.eye(dim))
        change, changed = inverse @ moment, np.empty(table.shape, np.float32)
        for first in range(0, self.num_items, CHUNK_ITEMS):
            some = slice(first, first + CHUNK_ITEMS)
            changed[some] = table[some] + change[:, some].T
        return changed


def item_covariance(table: FloatArray) -> NDArray[np.float64]:
    """Covariance of the columns of an item table (I, d), (d, d)."""
    centred = table - table.mean(axis=0, dtype=np.float64)
    covariance: NDArray[np.float64] = centred.T @ centred / len(table)
    return covariance
