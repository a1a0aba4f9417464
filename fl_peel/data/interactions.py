"""Interactions, their splits, and one device's share of them.

Users and items are numbered 0..U-1 and 0..I-1. Implicit feedback: an interaction is a (user, item) pair, each
pair once, with the time of its first occurrence when the source has times.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import DataError
from fl_peel.mmap_arrays import drop_pages
from fl_peel.randomness import device_seeds, device_uniforms, mix64, rng_for
from fl_peel.scenario.settings import CollectedMode, SplitOrder

SELECTED = 1 << 18
"""Users whose items are looked up at a time."""
PARTS = ("train", "validation", "test")
CONTRIBUTED = "said"
"""The part that is there where it is not all of train."""
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class UserItems:
    """Items per user, ragged: user ``u`` has ``items[indptr[u]:indptr[u + 1]]``.

    indptr: (U + 1,) int64; items: (N,) int32, each row in the order it was given (time order where known).
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]

    @property
    def num_users(self) -> int:
        """Number of users, U."""
        return len(self.indptr) - 1

    @property
    def num_interactions(self) -> int:
        """Number of interactions, N."""
        return len(self.items)

    def row(self, user: int) -> NDArray[np.int32]:
        """Items of one user, shape (n_u,)."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def counts(self) -> NDArray[np.int64]:
        """Interactions per user, shape (U,)."""
        return np.diff(self.indptr)

    def users(self) -> NDArray[np.int64]:
        """User of every interaction, shape (N,)."""
        return np.repeat(np.arange(self.num_users), self.counts())

    def select(self, users: NDArray[np.integer]) -> UserItems:
        """Rows of these users in that order: (len(users) + 1,) and their items; read some users at a time."""
        users = np.asarray(users, np.int64)
        starts, indptr = self.indptr[users], np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(self.indptr[users + 1] - starts, out=indptr[1:])
        starts -= indptr[:-1]
        items = np.empty(indptr[-1], self.items.dtype)
        for first in range(0, len(users), SELECTED):
            stop = min(first + SELECTED, len(users))
            begin, end = indptr[first], indptr[stop]
            places = np.repeat(starts[first:stop], np.diff(indptr[first : stop + 1]))
            places += np.arange(begin, end)
            items[begin:end] = self.items[places]
        return UserItems(indptr, items)

    def keep(self, mask: NDArray[np.bool_]) -> UserItems:
        """Interactions where ``mask`` (N,) holds; every user stays, some with no item."""
        kept = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])  # (N + 1,) kept among the first n
        return UserItems(kept[self.indptr], self.items[mask])

    def below(self, num_items: int) -> UserItems:
        """Interactions with items that have numbers below ``num_items``."""
        return self if not len(self.items) or self.items.max() < num_items else self.keep(self.items < num_items)

    @cached_property
    def by_item(self) -> UserItems:
        """The same, each user's items ascending."""
        return UserItems(self.indptr, self.items[np.lexsort((self.items, self.users()))])

    def popularity(self, num_items: int) -> NDArray[np.int64]:
        """Interactions per item, shape (num_items,)."""
        return np.bincount(self.items, minlength=num_items).astype(np.int64)

    @staticmethod
    def from_pairs(users: NDArray[np.integer], items: NDArray[np.integer], num_users: int) -> UserItems:
        """Build from (N,) user and item numbers; each user's items keep the order of appearance."""
        order = np.argsort(users, kind="stable")
        indptr = np.zeros(num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=num_users), out=indptr[1:])
        return UserItems(indptr, items[order].astype(np.int32))

    def merged(self, other: UserItems) -> UserItems:
        """Each user's items of both, this one's first."""
        users = np.concatenate([self.users(), other.users()])
        return UserItems.from_pairs(users, np.concatenate([self.items, other.items]), self.num_users)


def check_collected(collected: UserItems) -> None:
    """Refuse to train on nothing.

    Raises:
        DataError: no interaction was collected.
    """
    if collected.num_interactions == 0:
        raise DataError("pretraining: no interactions were collected; raise pretraining.collected.share")


@dataclass(frozen=True)
class Interactions:
    """What a data set says, before it is split.

    pairs: every (user, item) pair once; timestamps: (N,) seconds aligned with ``pairs.items`` or None;
    given_test: pairs that the source itself sets aside for the test, or None;
    user_labels, item_labels: the source's own names, by number; empty where the numbers are the names.
    """

    name: str
    pairs: UserItems
    num_items: int
    timestamps: NDArray[np.int64] | None = None
    given_test: UserItems | None = None
    user_labels: tuple[str, ...] = ()
    item_labels: tuple[str, ...] = ()

    @property
    def num_users(self) -> int:
        """Number of users, U."""
        return self.pairs.num_users


@dataclass(frozen=True)
class Splits:
    """Train, validation and test items of every user: three disjoint parts of the interactions. contributed: the train
    items that users speak of in sums, where these are not all of them.
    """

    train: UserItems
    validation: UserItems
    test: UserItems
    num_items: int
    contributed: UserItems | None = None

    @property
    def num_users(self) -> int:
        """Number of users, U."""
        return self.train.num_users

    def parts(self) -> list[tuple[str, UserItems]]:
        """Each part by its name: ``PARTS`` and, where it is there, ``SAID``."""
        contributed = [] if self.contributed is None else [(CONTRIBUTED, self.contributed)]
        return [*zip(PARTS, (self.train, self.validation, self.test), strict=True), *contributed]

    def drop_pages(self) -> None:
        """Nothing of it is needed for a while; see :func:`fl_peel.mmap_arrays.drop_pages`."""
        for _, part in self.parts():
            drop_pages(part.indptr, part.items)

    def select(self, users: NDArray[np.integer]) -> Splits:
        """The share of some users, renumbered 0..len(users)-1 in the order given."""
        contributed = None if self.contributed is None else self.contributed.select(users)
        parts = self.train.select(users), self.validation.select(users), self.test.select(users)
        return Splits(*parts, self.num_items, contributed)

    @property
    def contributed_items(self) -> UserItems:
        return self.train if self.contributed is None else self.contributed


def split(
    interactions: Interactions,
    *,
    seed: int,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    order: SplitOrder = "auto",
    first: int = 0,
) -> Splits:
    """Split each user's interactions into train, validation and test. Deterministic in (data, seed). first: the number
    of the first of these users, where they are some of many.

    Each user's items are put in order: oldest first where there are timestamps (``order`` "time" or "auto"),
    else a random order that depends on the seed, the user and the items alone. The newest ``test_share`` is
    the test part (unless the source gives one) and the newest ``validation_share`` of what is left is the
    validation part. Shares round to the nearest whole number (halves to the even one), but for the validation part in
    random order, which rounds up or down by chance so that it is right on average: to the nearest, a small share would
    take its items from the busiest users alone, and what is chosen on them would suit nobody else. A user who has any
    item keeps at least one for training.

    Raises:
        DataError: "time" was asked for and the data has no timestamps.
    """
    if order == "time" and interactions.timestamps is None:
        raise DataError(f"{interactions.name}: has no timestamps to split by; set data.split_order=random")
    pairs = interactions.pairs
    by_time = interactions.timestamps is not None and order in ("auto", "time")
    users = pairs.users()
    if by_time:
        assert interactions.timestamps is not None
        # ties in time are broken by item number, not by the order of lines in the file
        rank = np.lexsort((pairs.items, interactions.timestamps, users))
    else:
        # every pair draws its own key, so that no other pair and no order of lines can move it
        keys = mix64(device_seeds(seed, "split", devices=users + first) ^ mix64(pairs.items.astype(np.uint64)))
        rank = np.lexsort((pairs.items, keys, users))
    items = pairs.items[rank]
    counts = pairs.counts()
    position = np.arange(len(items)) - np.repeat(pairs.indptr[:-1], counts)  # place within the user, oldest 0
    if interactions.given_test is None:
        num_test = np.minimum(np.rint(counts * test_share).astype(np.int64), np.maximum(counts - 1, 0))
    else:
        num_test = np.zeros_like(counts)
    left = counts - num_test
    if by_time:
        wanted = np.rint(left * validation_share)
    else:
        chance = device_uniforms(seed, "validation-share", devices=np.arange(len(left)) + first)
        wanted = np.floor(left * validation_share + chance)
    num_validation = np.minimum(wanted.astype(np.int64), np.maximum(left - 1, 0))
    is_test = position >= np.repeat(left, counts)
    is_validation = ~is_test & (position >= np.repeat(left - num_validation, counts))
    ordered = UserItems(pairs.indptr, items)
    test = ordered.keep(is_test) if interactions.given_test is None else interactions.given_test
    train = ordered.keep(~is_test & ~is_validation)
    return Splits(train, ordered.keep(is_validation), test, interactions.num_items)


def collected(train: UserItems, *, seed: int, share: float, mode: CollectedMode) -> tuple[UserItems, NDArray[np.bool_]]:
    """The train interactions the server may see, and which users gave any: (U,) bool.

    mode "users": a share of the users consents, chosen at random, each with all of its train interactions.
    mode "oldest": every user gives the oldest share of its train interactions, rounded up.
    Users who gave nothing have an empty row.
    """
    counts = train.counts()
    if mode == "users":
        num_consenting = round(share * train.num_users)
        chosen = rng_for(seed, "collected").permutation(train.num_users)[:num_consenting]
        consents = np.zeros(train.num_users, dtype=np.bool_)
        consents[chosen] = True
        kept = train.keep(np.repeat(consents, counts))
    else:
        position = np.arange(train.num_interactions) - np.repeat(train.indptr[:-1], counts)
        quota = np.ceil(counts * share - 1e-9).astype(np.int64)  # 100 * 0.07 is 7.000000000000001
        kept = train.keep(position < np.repeat(quota, counts))
    return kept, kept.counts() > 0
