"""Figures of a timeline's report, from sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add

from fl_peel import wire
from fl_peel.events import plain_name
from fl_peel.exchange.counters import RefreshCounts
from strategies.figures.intervals import MeasuredQuality, cell_recalls
from strategies.timeline.schema import ClassResult, LineResult, PeriodResult, ReadCosts, TimelineSummary
from strategies.timeline.serving_metrics import COHORTS, Cohort, ServingMetrics


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
