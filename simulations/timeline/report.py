"""Files of a timeline: timeline.json, timeline.csv, timeline.html and timeline.svg."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from fl_peel.json_codec import to_plain as in_plain
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import to_plain
from simulations.report.tables.table_view import (
    ABSENT,
    TableView,
    format_bytes,
    format_interval,
    format_kilobytes,
    format_metric,
)
from simulations.studies.study_files import write_study
from simulations.timeline.timeline_labels import BASES, KINDS, LABELS
from simulations.timeline.timeline_plots import classes_plot, kinds_plot, life_plot, recall_plot
from strategies.figures.schema import Ratio
from strategies.timeline.schema import LineResult, PeriodResult, TimelineResult, TimelineSummary


def write_timeline(result: TimelineResult, out_dir: Path, more: Mapping[str, bytes] | None = None) -> list[Path]:
    """Write the four files, and more, into ``out_dir``, all or none, and return their paths.

    Raises:
        ReportError: the folder cannot be written.
    """
    plain = to_plain(in_plain(result, top_n=20), "timeline")
    plot = recall_plot(result.periods)
    return write_study(out_dir, plain, csv_rows(result), timeline_page(result), plot, more=more)


def csv_rows(result: TimelineResult) -> list[dict[str, Any]]:
    """A row for each period, way of serving and kind of device."""
    return [
        {
            "period": number,
            "line": line,
            "devices": kind,
            "recall@20": one.recall,
            "ndcg@20": one.ndcg,
            "counted": one.devices,
            "low": one.interval.low if one.interval else "",
            "high": one.interval.high if one.interval else "",
        }
        for number, period in enumerate(result.periods, start=1)
        for line, kinds in period.lines.items()
        for kind, one in kinds.items()
    ]


def summary_view(result: TimelineResult, *, last: bool = True) -> TableView:
    """Return every way of serving over the last three periods, or all of them."""
    summaries = result.last if last else result.whole
    body = tuple(
        (
            LABELS.get(line, line),
            _figure(one.lines["all"]),
            *(format_metric(one.lines[kind].recall) if kind in one.lines else ABSENT for kind in KINDS),
            *(_over(one, base, line) for base in BASES),
        )
        for line, one in summaries.items()
    )
    columns = ("served by", "Recall@20", *KINDS.values(), *(f"relative to {LABELS[base]}" for base in BASES))
    some = min(3, len(result.periods))
    note = (
        "The model is updated, then tested on the interactions of the next period; a device counts once for each "
        "period in which it has interactions. In brackets: 95 % intervals over devices, paired for ratios."
    )
    return TableView(f"The last {some} periods" if last else "All periods", columns, body, 1, note)


def _figure(one: LineResult) -> str:
    ends = (one.interval.low, one.interval.high) if one.interval else (None, None)
    return format_interval(one.recall, *ends)


def _over(one: TimelineSummary, base: str, line: str) -> str:
    ratio: Ratio | None = one.over.get(base)
    return ABSENT if ratio is None or line == base else format_interval(ratio.value, ratio.low, ratio.high, 3)


def recall_view(result: TimelineResult) -> TableView:
    """Recall of all devices, period by period."""
    lines = result.periods[0].lines
    body = tuple(
        (LABELS.get(line, line), *(format_metric(period.lines[line]["all"].recall) for period in result.periods))
        for line in lines
    )
    return TableView("Recall@20, all devices", ("served by", *map(str, range(1, len(result.periods) + 1))), body, 1)


def periods_view(result: TimelineResult) -> TableView:
    """Return the view of what happens in each period."""
    body = tuple(
        (
            str(number),
            *(_day(moment) for moment in (period.begins, period.ends)),
            *(f"{count:,}" for count in (period.devices, period.left, period.joining, period.items, period.new_items)),
            f"{period.changed_rows:,.0f}",
            f"{period.exponents['fresh']:g}",
            f"{period.reads['federation'].moved:.1%}",
            *map(format_bytes, (period.stage1_down, period.stage1_up)),
            str(period.refinement_rounds),
            *map(format_bytes, (period.refinement_down, period.refinement_up)),
        )
        for number, period in enumerate(result.periods, start=1)
    )
    columns = (
        *(
            "period",
            "from",
            "to",
            "devices",
            "left",
            "joining",
            "items",
            "new items",
            "changed rows",
            "recency exponent",
        ),
        *("changed group", "stage 1, down", "stage 1, up", "refinement rounds", "down", "up"),
    )
    note = (
        "Devices, items: those before the period; left: devices that no longer contribute, being inactive. Recency "
        "exponent: chosen by devices. Bytes: per device, mean; those of refinement include the choice of rounds."
    )
    return TableView("Periods", columns, body, 3, note)


def reads_view(result: TimelineResult) -> TableView:
    """Return the view of what devices read and hold under each budget, over all periods but the first."""
    later = result.periods[1:] or result.periods
    body = []
    for name in result.periods[0].reads:
        reads = [period.reads[name] for period in later]
        count = len(reads)
        held = sum(read.held_mean for read in reads) / count
        sent = sum(read.sent_mean for read in reads) / count
        body.append(
            (
                LABELS.get(name, name),
                format_kilobytes(held),
                format_kilobytes(sent),
                f"{sent / held:.3f}" if held else ABSENT,
                format_kilobytes(sum(read.joining_mean for read in reads) / count),
                format_kilobytes(sum(read.moved_sent_mean for read in reads) / count),
                str(sum(period.reads[name].violations for period in result.periods)),
            )
        )
    columns = (
        "method",
        "KB stored",
        "KB sent per period",
        "share of stored",
        "KB sent on joining",
        "KB sent on changing group",
        "budget violations",
    )
    return TableView(
        "Downloads of devices", columns, tuple(body), 1, "Encoded blocks; per device, mean. 1 KB = 1000 bytes."
    )


def followed_view(result: TimelineResult) -> TableView:
    """Return the view of what became of devices while their own budgets moved, in each period."""
    body = []
    for number, period in enumerate(result.periods, start=1):
        if period.followed is None:
            continue
        figures, moments = period.followed.figures, period.followed.moments
        budgets = [moment.budget_bytes_mean for moment in moments]
        devices = max(figures.devices, 1)
        body.append(
            (
                str(number),
                f"{figures.devices:,}",
                f"{period.followed.hours:.1f}",
                *map(format_bytes, (min(budgets), max(budgets))),
                f"{figures.reselections / devices:.2f}",
                format_bytes(figures.growth_bytes / devices),
                *map(format_metric, (figures.recall, figures.rigid_recall)),
                str(figures.budget_violations),
            )
        )
    columns = (
        *("period", "devices", "hours", "lowest mean budget", "highest", "re-selections per device"),
        *("bytes sent for growth", "Recall@20", "Recall@20, rigid", "budget violations"),
    )
    note = (
        "From the evaluation until the next period's tables arrive, at every step of the fleet's clock: budgets "
        "change, and devices drop blocks without a message or download further blocks. A rigid device keeps its "
        "blocks while they fit, and stores nothing after that until its next download."
    )
    return TableView("Changing budgets between periods", columns, tuple(body), 1, note)


def classes_view(period: PeriodResult) -> TableView:
    """Device classes under their own budgets in the last period."""
    body = tuple(
        (
            name,
            f"{one.devices:,}",
            format_metric(one.recall),
            format_bytes(one.budget_bytes_mean),
            format_bytes(one.held_bytes_mean),
        )
        for name, one in period.classes.items()
    )
    return TableView("Device classes, last period", ("class", "devices", "Recall@20", "budget", "stored"), body, 1)


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def timeline_tables(result: TimelineResult) -> list[Table]:
    """Return the tables that the terminal shows."""
    return [view.to_rich() for view in (summary_view(result), recall_view(result), reads_view(result))]


def timeline_page(result: TimelineResult) -> str:
    """The page."""
    name = scenario_name(result.scenario)
    last = result.last["federation"]
    plain = in_plain(result, top_n=20)
    cached, periods = last.over.get("cached-list"), result.periods
    return render(
        "timeline.html",
        title=f"{name}: recall over time",
        lead="Interactions in order of time: in each period the model is updated, then tested on the next period.",
        facts=[
            ("periods", str(len(periods))),
            ("devices, first and last", f"{periods[0].devices:,}; {periods[-1].devices + periods[-1].joining:,}"),
            ("Recall@20, last three", format_metric(last.lines["all"].recall)),
            ("relative to static list", ABSENT if cached is None else f"{cached.value:.2f}"),
        ],
        recall=recall_plot(periods),
        kinds=kinds_plot(periods),
        classes=classes_plot(periods),
        life=life_plot(periods),
        tables=[summary_view(result), summary_view(result, last=False), recall_view(result)],
        costs=[reads_view(result), periods_view(result), followed_view(result), classes_view(periods[-1])],
        **provenance(plain, f"fl-peel run {name}"),
    )


__all__ = ["timeline_page", "timeline_tables", "write_timeline"]
