"""Ways of serving that a federation which goes on is compared with; all but the first two know every interaction.

``start-table``: tables as they were at the start, of which each device makes its vector with what it has done by then.
``cached-list``: the 20 best items of these, as a list that each device got at the start; whoever was not there, the 20
most popular items of that time.
``retrained``: whoever collects everything makes the tables anew before each period, with as many passes as the first
time, and every device ranks with them. ``refreshed-list``: a list of their 20 best, before each period; who joins in it
gets what is popular.
``popularity``: items by how many have used them until now; ``recent-popularity``: in the period before, or by recent
uses, of which later ones count more: whichever would have found more in the period before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, ranked_as_numbered
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.data.timeline import QUARTERS, Timeline
from fl_peel.pretraining.incremental import SpectralModel
from fl_peel.ranking.top import evaluate, top_rows
from fl_peel.steps.base import Doubles, Floats, add_rows, unit_vectors
from fl_peel.steps.choice import recent_uses
from strategies.rivals import base
from strategies.timeline.timeline_figures import Cohort, MetricTotals

TOP_N = 20


@dataclass(frozen=True)
class PeriodDevices:
    """Devices of a period: what they have, what they are asked for, their kind; devices: (N,) their numbers."""

    devices: NDArray[np.int64]
    rows: UserItems
    wanted: UserItems
    cohort: Cohort

    @staticmethod
    def from_splits(learn: Splits, join: Splits, at_start: int) -> list[PeriodDevices]:
        """Return all devices of a period that are asked. at_start: how many there were when the first began."""
        asked = []
        kinds: list[tuple[Splits, Cohort, int, int]] = [
            (learn, "start", 0, at_start),
            (learn, "since", at_start, learn.num_users),
            (join, "first", learn.num_users, join.num_users),
        ]
        for splits, cohort, first, last in kinds:
            some = np.arange(first, last)[splits.test.counts()[first:last] > 0]
            asked.append(PeriodDevices(some, splits.train.select(some), splits.test.select(some), cohort))
        return asked


@dataclass(frozen=True)
class ScoredTables:
    """Tables (I, d) of items, and rows (I, d) of which a device makes its vector; middle: (d,) of who has none; fading:
    as devices have it; mean_weight: with which devices add ``middle`` to their vector.
    """

    table: Floats
    own: Floats
    middle: Floats
    fading: float | None = None
    mean_weight: float = 0.0

    @staticmethod
    def from_model(model: SpectralModel, fading: float | None) -> ScoredTables:
        table = model.scored * model.fresh[:, None].astype(np.float32)
        return ScoredTables(table, model.own, model.middle, fading, model.mean_weight)

    @staticmethod
    def from_popularity(popularity: NDArray[np.integer]) -> ScoredTables:
        """Score items by a number: the vector of every device is 1."""
        column = popularity.astype(np.float32)[:, None]
        return ScoredTables(column, np.zeros_like(column), np.ones(1, np.float32))

    def users(self, rows: UserItems) -> Floats:
        """Vectors (N, d) of devices with these items."""
        vectors = unit_vectors(add_rows(self.own, rows.below(len(self.own)), self.fading))
        vectors[~vectors.any(axis=1)] = self.middle
        return vectors + np.float32(self.mean_weight) * self.middle

    @cached_property
    def ranked(self) -> RankedBlocks:
        layout = BlockLayout(np.arange(len(self.table), dtype=np.int32), self.table.shape[1], 1)
        return ranked_as_numbered(layout, self.table)

    def metrics(self, asked: PeriodDevices) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and NDCG (N,) of devices that rank with it."""
        ranked = self.ranked
        whole = np.full(len(asked.devices), len(ranked.blocks), np.int64)
        hidden = asked.rows.below(len(self.table))
        return evaluate(ranked, whole, self.users(asked.rows), hidden, asked.wanted, TOP_N)

    def lists(self, rows: UserItems, hidden: UserItems) -> NDArray[np.int32]:
        """The 20 best items (N, 20) of devices with these rows, ``hidden`` ones left out; -1 where there are fewer."""
        ranked = self.ranked
        whole = np.full(rows.num_users, len(ranked.blocks), np.int64)
        best = top_rows(ranked, whole, self.users(rows), hidden.below(len(self.table)), TOP_N)
        return np.where(best >= 0, ranked.items[best], np.int32(-1)).astype(np.int32)


@dataclass(frozen=True)
class RecentUses:
    """What is popular of late, when a period begins. number: of the period; last: (I,) uses in the period behind it;
    faded: (I,) recent uses, as :func:`fl_peel.steps.choice.recent_uses` counts them; before: the same for the period
    behind, None where nothing is before it.
    """

    number: int
    last: NDArray[np.int64]
    faded: Doubles
    before: RecentUses | None

    @staticmethod
    def from_timeline(timeline: Timeline, number: int, half_life: float) -> RecentUses:
        """Count the uses of everybody until a period, -1 or later, begins."""
        before = RecentUses.from_timeline(timeline, number - 1, half_life) if number >= 0 else None
        _, items, num_items = timeline.quarters(number - 1)
        counts = np.bincount(items, minlength=num_items)
        faded = recent_uses(counts, half_life, None if before is None else before.faded)
        return RecentUses(number, counts.reshape(QUARTERS, -1).sum(axis=0), faded, before)

    def lines(self, timeline: Timeline) -> list[ScoredTables]:
        """Score items by each of both; what is equal by uses until then."""
        items = timeline.items[: timeline.begin_of(self.number)]
        popularity = np.bincount(items, minlength=len(self.last))
        scored = []
        for recent in (self.last, self.faded):
            ranks = np.empty(len(recent), np.int64)
            ranks[np.lexsort((popularity, recent))] = np.arange(len(recent))
            scored.append(ScoredTables.from_popularity(ranks))
        return scored

    def better(self, timeline: Timeline, choose: Splits) -> ScoredTables:
        """The line that found more of what was done in the period behind, by what was known when that began."""
        assert self.before is not None
        some = np.flatnonzero(choose.validation.counts())
        asked = PeriodDevices(some, choose.train.select(some), choose.validation.select(some), "start")
        recalls = [line.metrics(asked)[0].sum() for line in self.before.lines(timeline)]
        return self.lines(timeline)[int(np.argmax(recalls))]


def metric_totals(
    asked: PeriodDevices, metrics: tuple[NDArray[np.float64], NDArray[np.float64]], replicates: int
) -> MetricTotals:
    """Return the sums of these devices' metrics."""
    each = base.DeviceQuality(asked.devices, *metrics, np.ones(len(asked.devices), np.bool_))
    return MetricTotals(each.sums(), each.drawn(replicates))


@dataclass(frozen=True)
class StaticLists:
    """The lists (U, 20) of the devices that were there when they were made, and one (20,) for all others."""

    lists: NDArray[np.int32]
    common: NDArray[np.int32]

    @staticmethod
    def from_scored(scored: ScoredTables, popularity: NDArray[np.int64], train: UserItems) -> StaticLists:
        """Rank items for every device that is there, without the items that it has."""
        nobody = UserItems(np.zeros(2, np.int64), np.zeros(0, np.int32))
        common = ScoredTables.from_popularity(popularity).lists(nobody, nobody)[0]
        return StaticLists(scored.lists(train, train), common)

    def metrics(self, asked: PeriodDevices, num_items: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and NDCG (N,): items that a device has used since are passed over."""
        lists = np.tile(self.common, (len(asked.devices), 1))
        known = asked.devices < len(self.lists)
        lists[known] = self.lists[asked.devices[known]]
        used = set(zip(asked.rows.users().tolist(), asked.rows.items.tolist(), strict=True))
        for device, row in enumerate(lists):
            left = [item for item in row.tolist() if item >= 0 and (device, item) not in used]
            row[:] = np.array([*left, *[-1] * (TOP_N - len(left))], np.int32)
        return base.list_metrics(lists, asked.wanted, num_items)
