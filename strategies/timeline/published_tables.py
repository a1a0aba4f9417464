"""Published tables of a timeline: rows that changed much are published anew, the others stay as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.steps.units import Ints
from strategies.groups.state import FloatArray


@dataclass(frozen=True)
class PublishedTables:
    """The published tables. tables: (I, d) each, without freshness: the one that all user groups share, or every
    group's own; fresh: (I,) what scores are multiplied with besides; changed: (T, I) which rows are NEW, which
    RESCALED, as :mod:`fl_peel.wire` has these words.
    """

    tables: tuple[FloatArray, ...]
    fresh: NDArray[np.float64]
    changed: NDArray[np.uint8]

    @staticmethod
    def from_exact(
        exact: Sequence[FloatArray],
        fresh: NDArray[np.float64],
        before: PublishedTables | None,
        former: Ints,
        allowance: float,
    ) -> PublishedTables:
        """Publish the rows that changed most of exact tables (I, d), whose values include freshness. before: tables of
        the previous period; former: (G,) numbers that groups had before, -1 for new ones; allowance: share of a table's
        rows that may change.
        """
        tables, changes = [], []
        for number, table in enumerate(exact):
            last = None if before is None else before.table_of(int(former[number]))
            plain = np.asarray(table / fresh[:, None].astype(np.float32), np.float32)
            now, changed = published(last, plain, allowance)
            if before is not None and last is not None:
                more = len(fresh) - len(before.fresh)
                changed[(changed == 0) & (fresh != np.append(before.fresh, np.ones(more)))] = wire.RESCALED
            tables.append(now)
            changes.append(changed)
        return PublishedTables(tuple(tables), fresh, np.stack(changes))

    def table_of(self, group: int) -> FloatArray | None:
        """Return the table of a user group, without freshness; None for a group that did not exist."""
        if len(self.tables) == 1:
            return self.tables[0]
        return self.tables[group] if group >= 0 else None

    def scored(self, group: int) -> FloatArray:
        """A group's table (I, d) as devices rank with it."""
        table = self.tables[0 if len(self.tables) == 1 else group]
        scored: FloatArray = table * self.fresh[:, None].astype(np.float32)
        return scored


def published(before: FloatArray | None, table: FloatArray, allowance: float) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Return the table (I, d) that devices have from now on, and which rows changed (I,): new ones, and of the others
    those that moved most, ``allowance`` times I rows in all, as the rest stays as it was.
    """
    if before is None:
        return table, np.full(len(table), wire.NEW, np.uint8)
    known = len(before)
    moved = np.linalg.norm(table[:known] - before, axis=1)
    room = max(0, int(allowance * len(table)) - (len(table) - known))
    changed = np.zeros(len(table), np.uint8)
    changed[known:] = wire.NEW
    most = np.argsort(-moved, kind="stable")[:room]
    changed[most[moved[most] > 0]] = wire.NEW
    now = table.copy()
    kept = np.flatnonzero(changed == 0)
    now[kept] = before[kept]
    return now, changed
