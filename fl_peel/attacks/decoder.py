"""The decoder of passes: from the sums of stage 1 alone, which items the owners of an item have.

A pass returns for every item the sum of its owners' y = c_u sum of the rows of u's items, with c_u = d_u^-2a. The
server knows the rows, for it sent them. With W (M, I) the rows of all passes side by side and s (M,) what came back for
one item, it solves W x = s by least squares: x_j is the sum of c_u over the owners that have item j as well. That tells
owners apart, too: what one of them alone has is at x = c_u, what two share at the sum of both. The smallest x is the
c_u of one owner, the smallest that is no sum of those found is the next one's, until all owners, whose number was
opened, add up to x of the item itself, which all of them have. Where this fails, as it does where all add alike
(``pretraining.user_exponent: 0``) or fewer numbers came back than there are items, what the owners have in common is
left: the guess is that each of them has the items of the largest x.

Fewer numbers than items do not fix x. Of all x that they allow the one nearest to what counts alone let expect is
taken: owners of an item have other items as often as all devices have them.

And differences of two sums of vectors over user groups, as two rounds of K-means would open: a device has the same
vector in both of them, and adds it to its user group. In a group that grew or shrank by one device the sums differ by
that vector, if no other device came or went; that it has length 1 says so. It is a sum of rows that the server sent as
well.

And the difference of two counts of items, of everybody and of all user groups together, of owners in two rounds, or of
two periods: it is the items of those that are in one of the two counts alone, less those of who is in the other one
alone. Masked sums say whose they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fl_peel.data.interactions import UserItems
from fl_peel.steps.base import PASS_SCALE, UNIT_SCALE, Floats, add_rows, unit_vectors

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

PRESENT = 0.5
"""An item counts as present where its share is above this part of the smallest that one owner can add."""
LEAST_VARIANCE = 1e-4
"""Variance of whether a device has an item, at least: also of items that stayed closed, whose counts nobody knows."""
MOST_SPLIT = 12
"""Owners of an item up to which they are told apart: there are 2^owners sums of them."""
SAME = (1e-6, 1e-5, 1e-4)
"""How near sums are that are called the same, the finest first: as exact as what was opened allows."""


@dataclass(frozen=True)
class PassView:
    """One pass as the server knows it: the table (I, k) that it sent, the sums (I, k) that were opened, in units."""

    table: NDArray[np.float32]
    sums: Ints


@dataclass(frozen=True)
class Reconstruction:
    """How much of devices' histories a decoder finds, over the owners of the items that it was tried on.

    single_owners: devices that alone have some item; exact: how many of their histories are found without a mistake;
    items: opened rows that the decoder was tried on besides, those with the fewest owners; devices: their owners;
    exact_devices: how many of these histories are found without a mistake, among items whose rows were opened; f1: mean
    over these items and their owners of the F1 of what is found, against the owner's whole history; popularity_f1: the
    same of guessing as many of the most popular items.
    """

    single_owners: int
    exact: int
    items: int
    devices: int
    exact_devices: int
    f1: float
    popularity_f1: float


def solved_shares(passes: Sequence[PassView], items: Ints, counts: Ints, scale: float = PASS_SCALE) -> Doubles:
    """Return for each of some items (R,) the sum (R, I) of c_u over its owners that have each item; zeros of rows that
    were never opened. counts: (I,) owners of items, as they were opened; scale: units of the sums in one.
    """
    rows = np.concatenate([one.table.T.astype(np.float64) for one in passes])  # (M, I)
    returned: Doubles = np.concatenate([one.sums[items].T for one in passes]) / scale  # (M, R)
    share = counts / max(int(counts.max(initial=0)), 1)
    usual = rows @ share  # (M,)
    # as much of what is usual as fits what came back: nothing where nothing did
    expected = np.outer(share, usual @ returned / max(float(usual @ usual), 1e-300))  # (I, R)
    # what is uncertain is corrected first: a device has an item or not, and of that the deviation is known
    deviation = np.sqrt(np.maximum(share * (1 - share), LEAST_VARIANCE))
    # all rows at once: they share the factorization of what was sent
    missing = np.linalg.lstsq(rows * deviation, returned - rows @ expected, rcond=None)[0]
    shares: Doubles = (expected + deviation[:, None] * missing).T
    return shares


def owners_items(shares: Doubles, item: int, lengths: Ints, user_exponent: float) -> Bools:
    """Return the items (owners, I) of each owner of an item, in the order of their ``lengths`` (owners,), ascending.
    Where they cannot be told apart it is as many of the items with the largest shares. shares: (I,) of
    :func:`solved_shares`.
    """
    owners, least = len(lengths), PRESENT * float(len(shares)) ** (-2 * user_exponent)
    for same in SAME if user_exponent and 1 < owners <= MOST_SPLIT else ():
        levels, parts, rest = np.zeros(1), np.zeros((1, 0), np.bool_), np.sort(shares[shares > least])
        for _ in range(owners):
            rest = rest[np.abs(rest - levels[_nearest(levels, rest)]) > same]
            if not len(rest):
                break
            without = np.pad(parts, ((0, 0), (0, 1)))
            parts = np.concatenate([without, without | (np.arange(parts.shape[1] + 1) == parts.shape[1])])
            levels = np.concatenate([levels, levels + rest[0]])
        if parts.shape[1] == owners and abs(levels[-1] - shares[item]) < owners * same:
            apart: Bools = parts[_nearest(levels, shares)].T
            return apart[::-1]
    return np.stack([_largest(shares, int(length)) & (shares > 0) for length in lengths])


def _nearest(levels: Doubles, values: Doubles) -> Ints:
    """Return which of levels (L,), in any order, is nearest to each of the values (N,)."""
    order = np.argsort(levels, kind="stable")
    middles = (levels[order][1:] + levels[order][:-1]) / 2
    nearest: Ints = order[np.searchsorted(middles, values)]
    return nearest


MOST_TRIED = 200
"""Opened items that the decoder is tried on."""


def reconstruct(
    passes: Sequence[PassView], rows: UserItems, user_exponent: float, *, scale: float = PASS_SCALE
) -> Reconstruction:
    """Try the decoder on items of a single owner, and on those with the fewest. rows: of devices, the truth."""
    num_items = len(passes[0].table)
    counts = rows.popularity(num_items)
    has = np.zeros((rows.num_users, num_items), np.bool_)
    has[rows.users(), rows.items] = True
    alone = np.flatnonzero(counts == 1)
    opened = np.any([one.sums.any(axis=1) for one in passes], axis=0) & (counts > 0)
    tried = np.flatnonzero(opened)[np.argsort(counts[opened], kind="stable")[:MOST_TRIED]]
    shares = solved_shares(passes, np.concatenate([alone, tried]), np.where(opened, counts, 0), scale)

    def guesses(item: int, of_item: Doubles) -> Iterator[tuple[int, Bools]]:
        owners = np.flatnonzero(has[:, item])
        # whoever has the fewest items adds most: the larger a share, the shorter the history
        lengths = has[owners].sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        return zip(owners[order].tolist(), owners_items(of_item, item, lengths[order], user_exponent), strict=True)

    of_alone = [one for item, row in zip(alone.tolist(), shares, strict=False) for one in guesses(item, row)]
    of_tried = [
        one for item, row in zip(tried.tolist(), shares[len(alone) :], strict=True) for one in guesses(item, row)
    ]
    f1, popularity_f1 = _mean_f1([(guess, has[owner]) for owner, guess in of_tried], counts)
    return Reconstruction(
        single_owners=len({owner for owner, _ in of_alone}),
        exact=len({owner for owner, guess in of_alone if np.array_equal(guess, has[owner])}),
        items=len(tried),
        devices=len({owner for owner, _ in of_tried}),
        exact_devices=len({owner for owner, guess in of_tried if np.array_equal(guess & opened, has[owner] & opened)}),
        f1=f1,
        popularity_f1=popularity_f1,
    )


LENGTH_ERROR = 1e-4
"""How far from 1 a difference may be that is called the vector of one device: rounding, of up to 1,000 columns."""


@dataclass(frozen=True)
class GroupSums:
    """Sums over the devices of each user group: how many (G,); their vectors of length 1 added up (G, c), in units."""

    sizes: Ints
    sums: Ints


@dataclass(frozen=True)
class Differencing:
    """How many devices' contributions are in a difference of two sums, and what it tells: f1, mean over these devices
    of the F1 of as many items as they have against their histories; popularity_f1: the same of guessing the most
    popular items.
    """

    devices: int
    f1: float
    popularity_f1: float


def lone_vectors(rounds: Sequence[GroupSums], unit: float = UNIT_SCALE) -> Doubles:
    """Return the vectors (M, c) of devices that alone came to a user group, or left it, between two sums. unit: units
    in one.
    """
    steps = [np.zeros((0, rounds[0].sums.shape[1]), np.int64)]
    for before, after in pairwise(rounds):
        if before.sums.shape != after.sums.shape:  # groups were dissolved
            continue
        change, moved = after.sizes - before.sizes, after.sums - before.sums
        lengths = np.linalg.norm(moved / unit, axis=1)
        lone = (np.abs(change) == 1) & (np.abs(lengths - 1) < LENGTH_ERROR)
        steps.append(change[lone, None] * moved[lone])
    # who leaves one group for another shows in both
    return np.unique(np.concatenate(steps), axis=0) / unit


def difference(rounds: Sequence[GroupSums], own: Floats, rows: UserItems, unit: float = UNIT_SCALE) -> Differencing:
    """Take sums over user groups apart. own: (I, K) rows that vectors are sums of; rows: of devices, the truth."""
    vectors, leading = lone_vectors(rounds, unit), own[:, : rounds[0].sums.shape[1]]
    if not len(vectors):
        return Differencing(0, 0.0, 0.0)
    owners = (vectors @ unit_vectors(add_rows(leading, rows)).T).argmax(axis=1)
    known = leading.T.astype(np.float64)
    guesses = []
    for owner, vector in zip(owners.tolist(), vectors, strict=True):
        share = nnls(known, vector)[0]  # no device has less than nothing of an item: few numbers tell many items
        history = _history(rows, owner, len(own))
        guesses.append((_largest(share, int(history.sum())), history))
    return Differencing(len(vectors), *_mean_f1(guesses, rows.popularity(len(own))))


@dataclass(frozen=True)
class ItemCounts:
    """How many devices have each item (I,), of those in the count, (N,). rows: of all devices then, the truth."""

    devices: Ints
    items: Ints
    rows: UserItems


def absences(pairs: Iterable[tuple[ItemCounts, ItemCounts]]) -> Differencing | None:
    """Take for the items of each device that is in one of two counts alone those that make the largest difference; None
    where there is no such device. pairs: of counts, of which the second one may have more items.
    """
    figures = [(Differencing(len(guesses), *_mean_f1(guesses, counts))) for guesses, counts in map(_absent, pairs)]
    devices = np.array([one.devices for one in figures])
    if not devices.any():
        return None
    f1 = (np.average([getattr(one, name) for one in figures], weights=devices) for name in ("f1", "popularity_f1"))
    return Differencing(int(devices.sum()), *map(float, f1))


def _absent(pair: tuple[ItemCounts, ItemCounts]) -> tuple[list[tuple[Bools, Bools]], Ints]:
    """Return guesses (I,) and histories (I,) of devices that are in one of two counts alone, and popularity (I,)."""
    num_items = len(pair[1].items)
    counts = [np.append(one.items, np.zeros(num_items - len(one.items), np.int64)) for one in pair]
    guesses = []
    for one, other, sign in ((*pair, 1), (*pair[::-1], -1)):
        more = np.maximum(sign * (counts[0] - counts[1]), 0).astype(np.float64)
        for device in np.setdiff1d(one.devices, other.devices).tolist():
            history = _history(one.rows, device, num_items)
            guesses.append((_largest(more, int(history.sum())) & (more > 0), history))
    return guesses, pair[1].rows.popularity(num_items)


def _history(rows: UserItems, device: int, num_items: int) -> Bools:
    """Return which items (I,) a device has."""
    history = np.zeros(num_items, np.bool_)
    history[rows.row(device)] = True
    return history


def _mean_f1(guesses: Sequence[tuple[Bools, Bools]], counts: Ints) -> tuple[float, float]:
    """Return the mean F1 of guesses (I,) at histories (I,), and of as many of the most popular items. counts: (I,)."""
    popular = counts.astype(np.float64)
    figures = [(_f1(guess, history), _f1(_largest(popular, int(history.sum())), history)) for guess, history in guesses]
    f1, popularity_f1 = np.mean(figures, axis=0).tolist() if figures else (0.0, 0.0)
    return f1, popularity_f1


def _largest(scores: Doubles, count: int) -> Bools:
    chosen = np.zeros(len(scores), np.bool_)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def _f1(guess: Bools, truth: Bools) -> float:
    return float(2 * (guess & truth).sum() / max(int(guess.sum() + truth.sum()), 1))
