"""Figures of a timeline: metrics of every way of serving, as sums, and what its report has of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.events import plain_name
from fl_peel.exchange.counters import RefreshCounts
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import MetricSums
from strategies.figures.per_device import MeasuredQuality, cell_recalls
from strategies.timeline.schema import ClassResult, LineResult, PeriodResult, ReadCosts, TimelineSummary

Cohort = Literal["start", "since", "first"]
"""Devices that were there when the first period began; that joined in a period since; that join in this one."""
COHORTS: tuple[Cohort, ...] = get_args(Cohort)


@dataclass(frozen=True)
class MetricTotals:
    """Totals over some devices: sums of their metrics, (1,), and the same sums under the weights of a bootstrap, (1,
    B).
    """

    sums: MetricSums
    replicates: Replicates

    @staticmethod
    def from_reply(reply: wire.EvaluateReply, place: int = 0) -> MetricTotals:
        """Make the totals of a reply under one of the budgets asked for, the one at ``place``."""
        some = slice(place, place + 1)
        drawn = reply.replicates
        return MetricTotals(reply.by_budget()[some], Replicates(drawn.recall[some], drawn.ndcg[some], drawn.devices))

    def __add__(self, other: MetricTotals) -> MetricTotals:
        """Add the totals of other devices, or of the same devices in another period: each device and period counts
        once.
        """
        return MetricTotals(self.sums + other.sums, self.replicates + other.replicates)

    def measured(self) -> MeasuredQuality:
        """Means, and those of the replicates."""
        recall, ndcg = self.sums.mean()
        recalls, ndcgs = self.replicates.means()
        return MeasuredQuality(float(recall[0]), float(ndcg[0]), recalls[0], ndcgs[0], int(self.sums.devices[0]))


@dataclass
class ServingMetrics:
    """The metrics by period, way of serving and kind of device."""

    totals: dict[tuple[int, str, Cohort], MetricTotals] = field(default_factory=dict)

    def put(self, period: int, line: str, cohort: Cohort, totals: MetricTotals) -> None:
        """Add what these devices find in this period to what is there."""
        key = period, line, cohort
        self.totals[key] = self.totals[key] + totals if key in self.totals else totals

    def names(self) -> list[str]:
        """Ways of serving, in the order in which they came."""
        return list(dict.fromkeys(line for _, line, _ in self.totals))

    def replicates(self, periods: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Return bootstrap replicates (B,) of the mean recall over these periods, by way of serving."""
        quality = {line: self.over(periods, line) for line in self.names()}
        return {line: one.recalls for line, one in quality.items() if one is not None}

    def over(self, periods: Iterable[int], line: str, cohorts: Iterable[Cohort] = COHORTS) -> MeasuredQuality | None:
        """Return the quality over these periods and kinds of devices; None where no device was asked."""
        keys = [(period, line, cohort) for period in periods for cohort in cohorts]
        totals = [self.totals[key] for key in keys if key in self.totals]
        if not totals:
            return None
        whole = reduce(add, totals).measured()
        return whole if whole.devices else None


def line_result(measured: MeasuredQuality) -> LineResult:
    """Return the result of some devices in some periods."""
    return LineResult(measured.quality().recall, measured.ndcg, measured.devices)


def by_kind(lines: ServingMetrics, periods: Sequence[int], line: str) -> dict[str, LineResult]:
    """A way of serving, by kind of device, all first."""
    totals = {"all": lines.over(periods, line)} | {cohort: lines.over(periods, line, [cohort]) for cohort in COHORTS}
    return {name: line_result(one) for name, one in totals.items() if one is not None}


def period_lines(lines: ServingMetrics, period: int) -> dict[str, dict[str, LineResult]]:
    """Return the results of all ways of serving in a period."""
    return {line: by_kind(lines, [period], line) for line in lines.names()}


def period_figures(period: PeriodResult) -> dict[str, float]:
    """Return the figures of a period, by their names in events."""
    sizes = ("devices", "joining", "items", "user_groups", "changed_rows")
    recalls = {line: kinds["all"].recall.value for line, kinds in period.lines.items() if "all" in kinds}
    return {f"timeline/{name}": float(getattr(period, name)) for name in sizes} | {
        f"timeline/recall_at_20/{plain_name(line)}": recall for line, recall in recalls.items()
    }


def summaries(lines: ServingMetrics, periods: Iterable[int]) -> dict[str, TimelineSummary]:
    """Return summaries of all ways of serving over some periods, and each over every other."""
    some = list(periods)
    whole = {line: lines.over(some, line) for line in lines.names()}
    measured = {line: one for line, one in whole.items() if one is not None}
    return {
        line: TimelineSummary(
            by_kind(lines, some, line),
            {
                other: ratio
                for other, base in measured.items()
                if other != line and (ratio := one.over(base)) is not None
            },
        )
        for line, one in measured.items()
    }


def reads_of(labels: Sequence[str], known: RefreshCounts, new: RefreshCounts) -> dict[str, ReadCosts]:
    """Return what devices read, (X, C) each, by budget."""
    reads = {}
    for place, label in enumerate(labels):
        there, joining = known[place].total(axis=0), new[place].total(axis=0)
        devices = max(int(there.devices), 1)
        reads[label] = ReadCosts(
            sent_mean=int(there.sent_bytes) / devices,
            held_mean=int(there.held_bytes) / devices,
            joining_mean=int(joining.sent_bytes) / max(int(joining.devices), 1),
            violations=int(there.violations) + int(joining.violations),
            moved=int(there.moved) / devices,
            moved_sent_mean=int(there.moved_bytes) / max(int(there.moved), 1),
        )
    return reads


def class_results(
    replies: Mapping[Cohort, wire.EvaluateReply], names: Sequence[str], place: int
) -> dict[str, ClassResult]:
    """Return the results of device classes under the devices' own budgets, which are at position ``place``."""
    sums = reduce(add, (reply.sums[place] for reply in replies.values())).total(axis=1)
    owned = reduce(add, (reply.owned[place] for reply in replies.values()))
    results = {}
    for number, (name, recall) in enumerate(zip(names, cell_recalls(sums), strict=True)):
        held = max(int(owned.devices[number]), 1)
        results[name] = ClassResult(
            recall=recall,
            devices=int(sums.devices[number]),
            budget_bytes_mean=int(owned.budget_bytes[number]) / held,
            held_bytes_mean=int(owned.stored_bytes[number]) / held,
        )
    return results
