"""What a device says in a step of stage 1: as it is, or within bounds, so that noise can hide whether it was there.

Bounded contributions are vectors of parts, each of a norm that the device itself makes sure of, whatever the server
sent it: L2, or L1 where a mechanism asks for that.

================ ======================================================================== =========
part             what a device adds                                                        bound
================ ======================================================================== =========
counts           min(1, bound / sqrt(n)) for each of its n items (L1: bound / n)           a setting
pass             r^ (x) (r^ Q), with r^ = D^-b r at length 1 and y = r^ Q clipped at 1      1
choice           shares under each filter, less their mean, clipped                        CHOICE_BOUND
group sizes      1 in its user group                                                       1
group vectors    its vector's first columns at length 1, in its user group                 1
moment sizes     1 in its user group                                                       1
moment vectors   its vector p at length 1                                                  1
moment products  p (x) p                                                                   1
moment items     as counts                                                                 a setting
================ ======================================================================== =========

A pass of unit vectors is one over R^ with rows of length 1: the device, not the server, scales what comes back, and
``pretraining.user_exponent`` has no part in it. Everything is a whole number, rounded towards zero: bounds hold
exactly. Sums of devices are exact, and the same in the clear and masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import scipy.sparse as sp

from fl_peel.data.interactions import UserItems
from fl_peel.exchange.bounded_counts import BELOW, counts_within
from fl_peel.exchange.contributors import Bools
from fl_peel.pretraining.sketch import RowSketch
from fl_peel.pretraining.spectral_steps import (
    UNIT_SCALE,
    Doubles,
    FilterRequest,
    Floats,
    GroupSums,
    Ints,
    Moments,
    Units,
    count_items,
    group_moments,
    group_sums,
    nearest,
    pass_sums,
    unit_vectors,
)

CHOICE_BOUND = 0.25
"""Bound on a device's shares under all filters less their mean: they hardly differ by more."""
FACTOR_SCALE = 2.0**18
"""Units of either factor of a pass, whose products are in units of
:data:`fl_peel.pretraining.spectral_steps.PASS_SCALE`.
"""
CHUNK = 4096
"""Devices whose outer products are added up at once: exact in doubles."""


class Stage1Contribution(Protocol):
    """Contributions of devices (N rows) to each step, added up over them, as whole numbers."""

    @property
    def bounded(self) -> bool:
        """Return whether each device keeps to bounds."""

    def counts(self, rows: UserItems) -> Ints:
        """Return the item counts (I,)."""

    def passed(
        self,
        table: Floats,
        weights: Floats,
        columns: slice,
        rows: UserItems,
        sketch: RowSketch | None = None,
        opened: Bools | None = None,
    ) -> Ints:
        """A pass (I, k) of some columns of the table (I, K). weights: D^-b (I,) of a bounded one; else of no use.
        sketch: of the rows, of one that is not bounded; then (B, k). opened: rows (I,) that devices contribute to, of
        one that is not bounded; None for all.
        """

    def choice(self, request: FilterRequest, rows: UserItems, wanted: UserItems) -> tuple[Ints, int]:
        """Return the shares under each filter (C,), and how many devices answered; bounded contributions leave the
        latter out.
        """

    def groups(self, vectors: Floats, centroids: Floats, opened: Bools | None = None) -> GroupSums:
        """Return the sums of one round of Lloyd's algorithm. opened: as of a pass, of groups (G,)."""

    def moments(self, vectors: Floats, rows: UserItems) -> Moments:
        """Return the moments of the devices of one user group."""


@dataclass(frozen=True)
class OpenContribution:
    """Contributions without bounds: see :mod:`fl_peel.pretraining.spectral_steps`."""

    num_items: int
    user_exponent: float
    item_exponent: float
    units: Units = field(default_factory=Units)
    bounded: ClassVar[bool] = False

    def counts(self, rows: UserItems) -> Ints:
        """See :class:`Stage1Contribution`."""
        return count_items(rows, self.num_items)

    def passed(
        self,
        table: Floats,
        weights: Floats,
        columns: slice,
        rows: UserItems,
        sketch: RowSketch | None = None,
        opened: Bools | None = None,
    ) -> Ints:
        """See :class:`Stage1Contribution`."""
        return pass_sums(table[:, columns], rows, self.user_exponent, self.units.passes, sketch, opened)

    def choice(self, request: FilterRequest, rows: UserItems, wanted: UserItems) -> tuple[Ints, int]:
        """See :class:`Stage1Contribution`."""
        return request.answer(rows, wanted, self.item_exponent)

    def groups(self, vectors: Floats, centroids: Floats, opened: Bools | None = None) -> GroupSums:
        """See :class:`Stage1Contribution`."""
        return group_sums(vectors, centroids, self.units.groups, opened)

    def moments(self, vectors: Floats, rows: UserItems) -> Moments:
        """See :class:`Stage1Contribution`."""
        return group_moments(vectors, rows, self.num_items, self.units.moments)


@dataclass(frozen=True)
class BoundedContribution:
    """Contributions within the bounds of the module's table. count_bound: of a device's item counts; l1: whether bounds
    are in the L1 norm.
    """

    num_items: int
    item_exponent: float
    count_bound: float
    l1: bool = False
    bounded: ClassVar[bool] = True

    def counts(self, rows: UserItems) -> Ints:
        """See :class:`Stage1Contribution`; in units of 1 / ``UNIT_SCALE``."""
        bound, items = self.count_bound, self.num_items
        return counts_within(rows.users(), rows.items, items, bound, UNIT_SCALE, l1=self.l1)

    def passed(
        self,
        table: Floats,
        weights: Floats,
        columns: slice,
        rows: UserItems,
        sketch: RowSketch | None = None,
        opened: Bools | None = None,
    ) -> Ints:
        """See :class:`Stage1Contribution`; in units of 1 / ``PASS_SCALE``."""
        assert sketch is None, "a bucket's rows have no bound together"
        assert opened is None, "noise hides who contributes, and how many would say it without noise"
        ordered = rows.by_item()
        shape = (rows.num_users, self.num_items)
        mine = np.nan_to_num(weights[ordered.items].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        squares = sp.csr_matrix((mine * mine, ordered.items, ordered.indptr), shape)
        lengths = np.sqrt(np.asarray(squares.sum(axis=1)).reshape(-1))
        owners = ordered.users()
        units = mine / np.where(lengths > 0, lengths, np.inf)[owners]
        whole = np.trunc(units * BELOW * FACTOR_SCALE)  # r^, of length 1 at most
        unit = sp.csr_matrix((whole, ordered.items, ordered.indptr), shape)
        wide = (unit @ table.astype(np.float64)) / FACTOR_SCALE
        most = np.ones(rows.num_users)
        if self.l1:  # norms of the factors multiply
            norms = np.asarray(unit.sum(axis=1)).reshape(-1) / FACTOR_SCALE
            most /= np.where(norms > 0, norms, 1.0)  # whose row is nothing says nothing
        y = within(wide, most, FACTOR_SCALE, l1=self.l1)[:, columns]
        sums: Ints = unit.astype(np.int64).T @ np.ascontiguousarray(y)
        return sums

    def choice(self, request: FilterRequest, rows: UserItems, wanted: UserItems) -> tuple[Ints, int]:
        """See :class:`Stage1Contribution`; only differences between filters matter, so that their mean is not said."""
        shares, _ = request.shares(rows, wanted, self.item_exponent)
        centred = shares - shares.mean(axis=1, keepdims=True)
        return within(centred, CHOICE_BOUND, UNIT_SCALE, l1=self.l1).sum(axis=0), 0

    def groups(self, vectors: Floats, centroids: Floats, opened: Bools | None = None) -> GroupSums:
        """See :class:`Stage1Contribution`; both in units of 1 / ``UNIT_SCALE``."""
        assert opened is None, "noise hides who contributes, and how many would say it without noise"
        count, columns = centroids.shape
        known = np.flatnonzero(vectors.any(axis=1))
        groups = nearest(vectors[known], centroids)
        sums = np.zeros((count, columns), np.int64)
        points = within(unit_vectors(vectors[known, :columns]), 1.0, UNIT_SCALE, l1=self.l1)
        np.add.at(sums, groups, points)
        return GroupSums(int(UNIT_SCALE) * np.bincount(groups, minlength=count), sums)

    def moments(self, vectors: Floats, rows: UserItems) -> Moments:
        """See :class:`Stage1Contribution`; size and items in units of 1 / ``UNIT_SCALE``, too."""
        columns = vectors.shape[1]
        first, second = np.zeros(columns, np.int64), np.zeros((columns, columns), np.int64)
        for start in range(0, len(vectors), CHUNK):
            points = within(vectors[start : start + CHUNK], 1.0, UNIT_SCALE, l1=self.l1).astype(np.float64)
            first += points.sum(axis=0).astype(np.int64)
            second += (points.T @ points).astype(np.int64)
        return Moments(int(UNIT_SCALE) * len(vectors), first, second, self.counts(rows))


def within(values: Floats | Doubles, bound: float | Doubles, unit: float, *, l1: bool) -> Ints:
    """Rows (N, k) shortened to a norm of ``bound`` (each, or (N,)) where they are longer, in units of 1 / ``unit``,
    rounded towards zero. What is not a number says nothing.
    """
    wide = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.abs(wide).sum(axis=1) if l1 else np.sqrt((wide * wide).sum(axis=1))
    shorter = np.minimum(1.0, bound * BELOW / np.maximum(norms, 1e-300))
    whole: Ints = np.trunc(wide * shorter[:, None] * unit).astype(np.int64)
    return whole


__all__ = ["CHOICE_BOUND", "BoundedContribution", "OpenContribution", "Stage1Contribution", "within"]
