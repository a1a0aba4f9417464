"""The decoder of passes: from the sums of stage 1 alone, which items the owners of an item have.

A pass returns for every item the sum of its owners' y = c_u sum of the rows of u's items, with c_u = d_u^-2a. The
server knows the rows, for it sent them. With W (M, I) the rows of all passes side by side and s (M,) what came back for
one item, it solves W x = s by least squares: x_j is the sum of c_u over the owners that have item j as well. Of an item
with a single owner x is that device's whole history, and of one with several it is the union of theirs.

And differences of two sums of vectors over user groups, as two rounds of K-means would open: a device has the same
vector in both of them, and adds it to its user group. In a group that grew or shrank by one device the sums differ by
that vector, if no other device came or went; that it has length 1 says so. It is a sum of rows that the server sent as
well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fl_peel.data.interactions import UserItems
from fl_peel.steps.units import PASS_SCALE, UNIT_SCALE, Floats, add_rows, unit_vectors

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

PRESENT = 0.5
"""An item counts as present where its share is above this part of the smallest that one owner can add."""


@dataclass(frozen=True)
class PassView:
    """One pass as the server knows it: the table (I, k) that it sent, the sums (I, k) that were opened, in units."""

    table: NDArray[np.float32]
    sums: Ints


@dataclass(frozen=True)
class Reconstruction:
    """How much of devices' histories a decoder finds, over the owners of the items that it was tried on.

    single_owners: devices that alone have some item; exact: how many of their histories are found without a mistake;
    items: opened rows that the decoder was tried on besides, those with the fewest owners; f1: mean over these items
    and their owners of the F1 of what is found, against the owner's history; popularity_f1: the same of guessing as
    many of the most popular items.
    """

    single_owners: int
    exact: int
    items: int
    f1: float
    popularity_f1: float


def decoded_items(passes: Sequence[PassView], items: Ints, user_exponent: float, scale: float = PASS_SCALE) -> Bools:
    """Return for each of some items (R,) which items (R, I) its owners have, as far as the sums of the passes say.

    Rows that were never opened give nothing. scale: units of the sums in one.
    """
    num_items = len(passes[0].table)
    rows = np.concatenate([one.table.T.astype(np.float64) for one in passes])  # (M, I)
    returned: Doubles = np.concatenate([one.sums[items].T for one in passes]) / scale  # (M, R)
    shares = np.linalg.lstsq(rows, returned, rcond=None)[0].T  # (R, I), nothing for rows of zeros
    least = PRESENT * float(num_items) ** (-2 * user_exponent)
    # an owner of so many items adds that much to each of them: the fewest that explain a row bound it from below
    floor = PRESENT * np.maximum((shares > least).sum(axis=1), 1.0) ** (-2 * user_exponent)
    opened = np.asarray(returned.any(axis=0))
    decoded: Bools = (shares > floor[:, None]) & opened[:, None]
    return decoded


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
    owners = has[:, alone].argmax(axis=0)
    opened = np.flatnonzero(np.any([one.sums.any(axis=1) for one in passes], axis=0) & (counts > 0))
    tried = opened[np.argsort(counts[opened], kind="stable")[:MOST_TRIED]]
    # all rows at once: they share the factorization of what was sent
    decoded = decoded_items(passes, np.concatenate([alone, tried]), user_exponent, scale)
    exact = (decoded[: len(alone)] == has[owners]).all(axis=1)
    popular = np.argsort(-counts, kind="stable")
    figures = []
    for item, guess in zip(tried.tolist(), decoded[len(alone) :], strict=True):
        for history in has[has[:, item]]:
            usual = np.zeros(num_items, np.bool_)
            usual[popular[: int(history.sum())]] = True
            figures.append((_f1(guess, history), _f1(usual, history)))
    f1, popularity_f1 = np.mean(figures, axis=0) if figures else (0.0, 0.0)
    decoded = np.unique(owners[exact])
    return Reconstruction(len(np.unique(owners)), len(decoded), len(tried), float(f1), float(popularity_f1))


LENGTH_ERROR = 1e-4
"""How far from 1 a difference may be that is called the vector of one device: rounding, of up to 1,000 columns."""


@dataclass(frozen=True)
class GroupSums:
    """Sums over the devices of each user group: how many (G,); their vectors of length 1 added up (G, c), in units."""

    sizes: Ints
    sums: Ints


@dataclass(frozen=True)
class Differencing:
    """How many devices' vectors are differences of two sums over user groups, and what they tell: f1, mean over these
    devices of the F1 of as many items as they have against their histories; popularity_f1: the same of guessing the
    most popular items.
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
    popular = rows.popularity(len(own)).astype(np.float64)
    figures = []
    for owner, vector in zip(owners.tolist(), vectors, strict=True):
        share = nnls(known, vector)[0]  # no device has less than nothing of an item: few numbers tell many items
        history = np.zeros(len(own), np.bool_)
        history[rows.items[slice(*rows.indptr[owner : owner + 2])]] = True
        figures.append([_f1(_largest(scores, int(history.sum())), history) for scores in (share, popular)])
    f1, popularity_f1 = np.mean(figures, axis=0).tolist()
    return Differencing(len(vectors), f1, popularity_f1)


def _largest(scores: Doubles, count: int) -> Bools:
    chosen = np.zeros(len(scores), np.bool_)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def _f1(guess: Bools, truth: Bools) -> float:
    return float(2 * (guess & truth).sum() / max(int(guess.sum() + truth.sum()), 1))
