"""Item counts, and passes: multiplications by R~^T R~, of which every device adds its own row's part.

A device takes the rows of its items, adds them up, and returns the result for the rows of its items. It returns one
number a column, and the numbers of the device's rows: what it adds to each of them is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.sparse as sp

from fl_peel.array_specs import ArraySpec
from fl_peel.data.interactions import UserItems
from fl_peel.exchange.counters import BELOW
from fl_peel.kernels import add_passed_rows
from fl_peel.scenario.settings import SpectralConfig
from fl_peel.steps.base import (
    ID_BYTES,
    NUMBER_BYTES,
    PASS_SCALE,
    ROW_BYTES,
    WORD_BYTES,
    Arrays,
    Bools,
    ContributionBounds,
    Floats,
    HeldItems,
    Ints,
    NoisedPart,
    Part,
    Size,
    Step,
    StepChannel,
    StepCost,
    StepDevices,
    StepTerms,
    SumField,
    answer_to,
    cost_by_columns,
    inverse_power,
    rows_bytes,
    within,
)


@dataclass(frozen=True)
class CountsStep(Step):
    """Item counts. Within bounds a device adds min(1, bound / sqrt(n)) for each of its n items (L1: bound / n)."""

    name: ClassVar[str] = "counts"
    noised: ClassVar[tuple[NoisedPart, ...]] = (NoisedPart("counts", "items", 0.05, None),)
    counts_alone: ClassVar[str] = "items"

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        return (SumField("items", (terms.num_items,), counts=True),)

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        return {"items": terms.count_items(devices.contributed)}

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        """See :class:`Step`; the ids of a device's items, and nothing to keep."""
        nothing = np.zeros_like(budgets)
        return StepCost(nothing, ID_BYTES * items.contributed, nothing, nothing, nothing + 1)

    @staticmethod
    def ask(channel: StepChannel) -> Ints:
        """Return how many devices have each item, (I,)."""
        counts: Ints = answer_to(channel, CountsStep(), {})["items"]
        return counts


FACTOR_SCALE = 2.0**18
"""Units of either factor of a bounded pass, whose products are in units of
:data:`fl_peel.steps.base.PASS_SCALE`.
"""


@dataclass(frozen=True)
class PassStep(Step):
    """A pass of K columns.

    Sent is table, (I, K) = D^-b Q. Within bounds it is all columns of Q with weights, D^-b (I,): a device adds
    r^ (x) y, with r^ = D^-b r and y = r^ Q, both at length 1. That is a pass over rows R^ that the device, not the
    server, scales, and ``pretraining.user_exponent`` has no part in it. With directions of an earlier pass for Q it is
    half a step of alternating least squares, of vectors of one length (as those of private ALS: Chien et al., "Private
    alternating least squares", ICML 2021).
    """

    columns: Size

    name: ClassVar[str] = "pass"
    noised: ClassVar[tuple[NoisedPart, ...]] = (NoisedPart("pass", "columns", 0.69, unit=PASS_SCALE),)

    @property
    def num_pieces(self) -> int:
        """See :class:`Step`: columns."""
        return self.columns

    def sent_arrays(self, terms: StepTerms, part: Part) -> Mapping[str, ArraySpec]:
        columns = self.columns if terms.bounded else part[1] - part[0]
        arrays = {"table": ArraySpec((terms.table_rows, columns), dtypes=("float32",))}
        if terms.bounded:
            arrays["weights"] = ArraySpec((terms.num_items,), dtypes=("float32",))
        return arrays

    def cut(self, sent: Arrays, part: Part, terms: StepTerms) -> Arrays:
        """See :class:`Step`; for bounds a device needs all columns to answer any."""
        if terms.bounded:
            return sent
        return sent | {"table": np.ascontiguousarray(sent["table"][:, slice(*part)])}

    def sums(self, terms: StepTerms) -> tuple[SumField, ...]:
        return (SumField("columns", (terms.num_items, self.columns), axis=1),)

    def contribute(
        self, devices: StepDevices, sent: Arrays, part: Part, terms: StepTerms, opened: Bools | None
    ) -> Arrays:
        table, rows = sent["table"], devices.contributed
        if terms.bounds is not None:
            assert opened is None, "noise hides who contributes, and how many would reveal it without noise"
            return {"columns": bounded_pass_sums(table, sent["weights"], slice(*part), rows, terms.bounds)}
        return {"columns": pass_sums(table, rows, terms.user_exponent, terms.units.passes, opened)}

    def num_rows(self, terms: StepTerms) -> int:
        """See :class:`Step`: items."""
        return terms.num_items

    def contributors(self, devices: StepDevices, sent: Arrays, terms: StepTerms) -> Ints:
        return terms.count_items(devices.contributed)

    def counting_bytes(self, terms: StepTerms, items: HeldItems) -> tuple[Ints | int, Ints | int]:
        """See :class:`Step`; ids go with the count alone, and which rows are opened is a bit for each."""
        return -(-(terms.num_items if terms.all_rows else items.contributed) // 8), 0

    def cost(self, terms: StepTerms, items: HeldItems, budgets: Ints) -> StepCost:
        rows, all_rows = items.contributed, terms.num_items if terms.all_rows else 0
        down = rows_bytes(self.columns, rows, all_rows)
        down = down + (NUMBER_BYTES * (all_rows or rows) if terms.bounded else 0)
        up = terms.word_bytes * self.columns + ID_BYTES * rows
        return cost_by_columns(
            self.columns, rows, budgets, moved=(down, up), column_bytes=ROW_BYTES * rows + WORD_BYTES
        )

    @staticmethod
    def times(config: SpectralConfig, num_groups: int) -> int:
        return config.passes

    @staticmethod
    def ask(channel: StepChannel, table: Floats, weights: Floats) -> Ints:
        """Return the sums of a pass, (I, K). table: (I, K), within bounds Q; weights: D^-b (I,), for bounds."""
        sent: Arrays = {"table": table}
        if channel.terms.bounded:
            sent["weights"] = weights
        columns: Ints = answer_to(channel, PassStep(table.shape[1]), sent)["columns"]
        return columns


def pass_sums(
    table: Floats,
    rows: UserItems,
    user_exponent: float,
    scale: float = PASS_SCALE,
    opened: Bools | None = None,
) -> Ints:
    """Return the devices' contributions to a pass, added up, (I, k) in units of 1 / ``scale``.

    table: (I, k) = D^-b Q as the server sent it, some columns of it. A device's y = d_u^-2a sum of the rows of its
    items; it is returned for each of them, so the sum is R^T D_u^-2a R ``table``. opened: rows (I,) that devices
    contribute to, None for all of them; the others are zero.
    """
    factors = scale * inverse_power(rows.counts(), 2 * user_exponent)
    ordered, sums = rows.by_item, np.zeros(table.shape, np.int64)
    everything = np.ones(len(table), np.bool_) if opened is None else opened
    add_passed_rows(ordered.indptr, ordered.items, factors, table, everything, sums)
    return sums


def bounded_pass_sums(
    table: Floats, weights: Floats, columns: slice, rows: UserItems, bounds: ContributionBounds
) -> Ints:
    """Return columns (I, k) of bounded contributions to a pass of a table (I, K), in units of 1 / ``PASS_SCALE``."""
    ordered = rows.by_item
    shape = (rows.num_users, len(weights))
    mine = np.nan_to_num(weights[ordered.items].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    squares = sp.csr_matrix((mine * mine, ordered.items, ordered.indptr), shape)
    lengths = np.sqrt(np.asarray(squares.sum(axis=1)).reshape(-1))
    owners = ordered.users()
    units = mine / np.where(lengths > 0, lengths, np.inf)[owners]
    whole = np.trunc(units * BELOW * FACTOR_SCALE)  # r^, of length 1 at most
    unit = sp.csr_matrix((whole, ordered.items, ordered.indptr), shape)
    wide = np.nan_to_num(unit @ table.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) / FACTOR_SCALE
    most, lengths = np.ones(rows.num_users), np.sqrt((wide * wide).sum(axis=1))
    if bounds.l1:  # norms of the factors multiply
        norms = np.asarray(unit.sum(axis=1)).reshape(-1) / FACTOR_SCALE
        most /= np.where(norms > 0, norms, 1.0)  # whose row is nothing contributes nothing
        lengths = np.abs(wide).sum(axis=1)
    wide *= (most / np.where(lengths > 0, lengths, 1.0))[:, None]
    y = within(wide, most, FACTOR_SCALE, l1=bounds.l1)[:, columns]
    sums: Ints = unit.astype(np.int64).T @ np.ascontiguousarray(y)
    return sums
