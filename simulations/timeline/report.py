"""Files of a timeline: timeline.json, .csv, .parquet, .html and .svg; what its tables show."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from fl_peel.json_codec import to_plain as in_plain
from simulations.report.render import page, scenario_name
from simulations.report.result_files import result_contents, to_plain, write_results
from simulations.report.section import Chart, Section
from simulations.report.table_view import (
    ABSENT,
    TableView,
    format_bytes,
    format_estimate,
    format_kilobytes,
    format_metric,
    format_point,
    format_ratio,
)
from simulations.timeline.timeline_plots import KINDS, LABELS, classes_plot, kinds_plot, life_plot, recall_plot
from strategies.timeline.schema import PeriodResult, TimelineResult

BASES = ("cached-list", "retrained", "recent-popularity")
"""Ways of serving that others are compared with in tables."""


def write_timeline(result: TimelineResult, out_dir: Path, more: Mapping[str, bytes] | None = None) -> list[Path]:
    """Write the files, and more, into ``out_dir``, all or none, and return their paths.

    Raises:
        ReportError: the folder cannot be written.
    """
    plain, plot = to_plain(in_plain(result, top_n=20), "timeline"), recall_plot(result.periods)
    contents = result_contents("timeline", plain, result.figures, timeline_page(result), plot.svg)
    return write_results(out_dir, {**contents, **(more or {})})


def summary_view(result: TimelineResult, *, last: bool = True) -> TableView:
    """Return every way of serving over the last three periods, or all of them."""
    summaries = result.last if last else result.whole
    body = tuple(
        (
            LABELS.get(line, line),
            format_estimate(one.lines["all"].recall),
            *(format_point(one.lines[kind].recall) if kind in one.lines else ABSENT for kind in KINDS),
            *(ABSENT if line == base else format_ratio(one.over.get(base)) for base in BASES),
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


def recall_view(result: TimelineResult) -> TableView:
    """Recall of all devices, period by period."""
    lines = result.periods[0].lines
    body = tuple(
        (LABELS.get(line, line), *(format_point(period.lines[line]["all"].recall) for period in result.periods))
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
            format_point(one.recall),
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
    name, periods = scenario_name(result.scenario), result.periods
    last = result.last["federation"]
    cached = last.over.get("cached-list")
    return page(
        _sections(result),
        title=f"{name}: recall over time",
        lead="Interactions in order of time: in each period the model is updated, then tested on the next period.",
        facts=[
            ("periods", str(len(periods))),
            ("devices, first and last", f"{periods[0].devices:,}; {periods[-1].devices + periods[-1].joining:,}"),
            ("Recall@20, last three", format_point(last.lines["all"].recall)),
            ("relative to static list", ABSENT if cached is None else f"{cached.value:.2f}"),
        ],
        source=in_plain(result, top_n=20),
        command=f"fl-peel run {name}",
    )


def _sections(result: TimelineResult) -> list[Section]:
    periods = result.periods
    recall = "Solid: federated training. Dashed: other methods for the same devices. Bars: 95 % intervals over devices."
    kinds = (
        "Devices from before the first period, devices that joined in an earlier period, and devices that join in the "
        "period itself, which are evaluated from their second interaction on."
    )
    classes = "Devices under their own, current budgets. Bars: 95 % intervals over devices."
    life = (
        "From the top: recall; bytes per device, for downloads before a period at each budget and for stage 1; changed "
        "rows and groups; mean of the devices' own budgets and of their stored bytes, at every step of the clock; "
        "re-selections of blocks per device because of a changed budget."
    )
    tables = (summary_view(result), summary_view(result, last=False), recall_view(result))
    costs = (reads_view(result), periods_view(result), followed_view(result), classes_view(periods[-1]))
    return [
        Section("recall", "Recall over time", (Chart(lambda: recall_plot(periods), recall), *tables)),
        Section("kinds", "New and old devices", (Chart(lambda: kinds_plot(periods), kinds),)),
        Section("classes", "Device classes", (Chart(lambda: classes_plot(periods), classes),)),
        Section("life", "Costs and budgets", (Chart(lambda: life_plot(periods), life), *costs)),
    ]


__all__ = ["BASES", "timeline_page", "timeline_tables", "write_timeline"]
