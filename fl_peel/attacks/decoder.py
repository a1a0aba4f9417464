"""The decoder of passes: from the sums of stage 1 alone, which items the owners of an item have.

A pass returns for every item the sum of its owners' y = c_u sum of the rows of u's items, with c_u = d_u^-2a. The
server knows the rows, for it sent them. With W (M, I) the rows of all passes side by side and s (M,) what came back for
one item, it solves W x = s by least squares: x_j is the sum of c_u over the owners that have item j as well. Of an item
with a single owner x is that device's whole history, and of one with several it is the union of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.steps.units import PASS_SCALE

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


def _f1(guess: Bools, truth: Bools) -> float:
    return float(2 * (guess & truth).sum() / max(int(guess.sum() + truth.sum()), 1))
