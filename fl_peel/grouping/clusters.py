"""Which users share a table, and which items are kept or dropped together?

User groups: K-means on user embeddings that have length 1 (the angle says what a user likes, the length how
active the user is), as in PEEL (arXiv 2306.10532, "user group formation"), with a minimum size: a group's
table and block weights are learned from its members, and a small group is both noisy and less private.

Item groups: the release's contiguous ids, popularity tiers, interest crossed with popularity, or single
items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.settings import ItemGroupKind
from fl_peel.data.interactions import UserItems
from fl_peel.errors import DataError, ScenarioError
from fl_peel.grouping.k_means import k_means
from fl_peel.randomness import seed_for

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
    return k_means(points, min(count, distinct), seed=seed, starts=3)


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
