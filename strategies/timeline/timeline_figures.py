"""Figures of a timeline: metrics of every way of serving, as sums, and what its report has of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.events import plain_name
from fl_peel.exchange.counters import RefreshCounts
from fl_peel.figures import Beside, Column, Estimate, Figures
from fl_peel.json_codec import UNWRITTEN
from fl_peel.privacy.report import PrivacyReport
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import MetricSums
from strategies.figures.per_device import MeasuredQuality, cell_recalls
from strategies.figures.schema import OverTime


@dataclass(frozen=True)
class LineResult:
    """Mean recall@20, with its interval, and NDCG@20 of ``devices`` devices, which count once per period."""

    recall: Annotated[Estimate, Beside(float, "interval", null=True)]
    ndcg: float
    devices: int


@dataclass(frozen=True)
class ReadCosts:
    """Downloads of devices at the start of a period under one budget. sent_mean, held_mean: bytes sent to, and then
    stored by, devices that were there before, mean; joining_mean: bytes sent to joining devices, mean; violations:
    devices above the budget; moved: share of the devices that changed their user group; moved_sent_mean: bytes sent
    to these, mean.
    """

    sent_mean: float
    held_mean: float
    joining_mean: float
    violations: int
    moved: float
    moved_sent_mean: float


@dataclass(frozen=True)
class ClassResult:
    """Device class under its own budgets: recall@20, devices evaluated, mean bytes of budgets and stored."""

    recall: Annotated[Estimate | None, Beside(float | None, "margin", "margin", null=True)]
    devices: int
    budget_bytes_mean: float
    held_bytes_mean: float


@dataclass(frozen=True)
class PeriodResult:
    """One period. exponents: exponents of the filter, chosen by devices; begins, ends: seconds since 1970; devices:
    devices that were there before it; left: those of them that are inactive; joining: devices that join in it;
    items: items with a row in the tables; new_items: items new since the previous period; changed_rows: share of a
    table's rows that changed, new ones included; stage1_down, stage1_up, refinement_down, refinement_up: bytes per
    device, mean over those that were there and those that join; lines: quality by serving method and kind of device,
    "all" included; reads: downloads by budget; classes: by device class; followed: devices while their own budgets
    changed, until the next period's tables arrived.
    """

    exponents: Annotated[dict[str, float], Column("exponent")]
    begins: int
    ends: int
    devices: int
    left: int
    joining: int
    items: int
    new_items: int
    user_groups: int
    changed_rows: float
    refinement_rounds: int
    stage1_down: float
    stage1_up: float
    refinement_down: float
    refinement_up: float
    virtual_seconds: float
    lines: Annotated[dict[str, Annotated[dict[str, LineResult], Column("cohort")]], Column("method")]
    reads: Annotated[dict[str, ReadCosts], Column("method")]
    classes: Annotated[dict[str, ClassResult], Column("device_class")]
    followed: OverTime | None


@dataclass(frozen=True)
class TimelineSummary:
    """Serving method over several periods: quality of all and by kind, recall relative to other methods."""

    lines: Annotated[dict[str, LineResult], Column("cohort")]
    over: Annotated[dict[str, Estimate], Column("base")]


@dataclass(frozen=True)
class TimelineResult:
    """Content of timeline.json. full_table_bytes: size of the fp32 full table in the last period; last: summaries over
    the last three periods; whole: summaries over all periods; replicates: (B,) of mean recall over the last three
    periods, by serving method, for a summary over several seeds; privacy: what a mechanism spent over all periods."""

    scenario: dict[str, Any]
    seed: Annotated[int, Column("seed")]
    full_table_bytes: int
    periods: Annotated[tuple[PeriodResult, ...], Column("period")]
    last: Annotated[dict[str, TimelineSummary], Column("method")]
    whole: Annotated[dict[str, TimelineSummary], Column("method")]
    stages: Annotated[dict[str, float], Column("stage")]
    nodes: int
    privacy: PrivacyReport | None = None
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    peak_rss_bytes: int = 0
    replicates: dict[str, NDArray[np.float64]] = field(
        default_factory=dict, repr=False, compare=False, metadata=UNWRITTEN
    )

    @property
    def figures(self) -> Figures:
        """Return every number of the timeline, as the rows of a tidy table."""
        return Figures.from_result(self)


Cohort = Literal["start", "since", "first"]
"""Devices that were there when the first period began; that joined in a period since; that join in this one."""
COHORTS: tuple[Cohort, ...] = get_args(Cohort)


@dataclass(frozen=True)
class MetricTotals:
    """Totals over devices: metric sums, (1,), and the same under the weights of a bootstrap, (1, B)."""

    sums: MetricSums
    replicates: Replicates

    @staticmethod
    def from_reply(reply: wire.EvaluateReply, place: int = 0) -> MetricTotals:
        """Make the totals of a reply under one of the budgets asked for, the one at ``place``."""
        some = slice(place, place + 1)
        drawn = reply.replicates
        return MetricTotals(reply.by_budget()[some], Replicates(drawn.recall[some], drawn.ndcg[some], drawn.devices))

    def __add__(self, other: MetricTotals) -> MetricTotals:
        """Add totals of other devices or another period: each device and period counts once."""
        return MetricTotals(self.sums + other.sums, self.replicates + other.replicates)

    def measured(self) -> MeasuredQuality:
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


def by_kind(lines: ServingMetrics, periods: Sequence[int], line: str) -> dict[str, LineResult]:
    """A way of serving, by kind of device, all first."""
    totals = {"all": lines.over(periods, line)} | {cohort: lines.over(periods, line, [cohort]) for cohort in COHORTS}
    return {
        name: LineResult(one.quality().recall, one.ndcg, one.devices) for name, one in totals.items() if one is not None
    }


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
