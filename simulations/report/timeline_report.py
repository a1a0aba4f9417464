"""Files of a timeline and what its tables show: `timeline.json`, `.csv`, `.parquet`, `.html` and `.svg`; of several
seeds `timeline-seeds.json` and `.html`, which say what part of its figures is the seed's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from fl_peel.errors import ScenarioError
from fl_peel.figures import Column, Estimate, SeedsEstimate
from fl_peel.json_codec import from_plain
from fl_peel.ranking.bootstrap import Sample
from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.render import Chart, Page, ResultKind, Section, scenario_name
from simulations.report.run_files import LEARNING_RATE, seen_data, significance
from simulations.report.sections.costs import privacy_views
from simulations.report.seeds import METHOD, OverSeeds, over_seeds_page
from simulations.report.table_view import (
    ABSENT,
    TableColumn,
    TableView,
    format_bytes,
    format_count,
    format_decimals,
    format_estimate,
    format_kilobytes,
    format_metric,
    format_point,
    format_ratio,
    format_thousandths,
    table_of,
)
from strategies.figures.schema import OverTime
from strategies.timeline.timeline_figures import ClassResult, PeriodResult, TimelineResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "federation": "continual federated training",
    "federation, all rows": "continual federated training, all rows sent",
    "federation, own budgets": "continual federated training, own budgets",
    "retrained": "central retraining",
    "refreshed-list": "top-20 list, refreshed by the server",
    "start-table": "static table, local user update",
    "cached-list": "static top-20 list",
    "cached-list-fresh": "static top-20 list, recency-weighted",
    "popularity": "popularity, all periods so far",
    "recent-popularity": "recent popularity",
}
"""Names of the serving methods, for readers."""
KINDS = {"start": "before the first period", "since": "joined later", "first": "joining in the period"}
"""Names of the kinds of devices, for readers."""
LEAD = (
    "federation",
    "federation at 1%",
    "retrained",
    "start-table",
    "cached-list",
    "cached-list-fresh",
    "recent-popularity",
)
"""Lines of the lead figure; the tables have all of them."""


def line_label(line: str) -> str:
    """Return the name of a serving method for readers; of one under a budget, with the budget."""
    return LABELS.get(line) or line.replace("federation", LABELS["federation"])


Lines = list[tuple[drawing.Line, Mapping[str, Any]]]
"""Lines of a panel, each with its style."""


@drawing.in_both_forms
def recall_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of all devices over the periods, a line for each way of serving, with 95 % intervals."""
    names = [name for name in LEAD if name in periods[0].lines]
    figure, (axes,) = drawing.new_figure(4.2)
    _draw(axes, "Recall@20 on the interactions of the period", _recall_lines(periods, names))
    axes.set_xlabel("period")
    last = "; ".join(f"{line_label(name)} {periods[-1].lines[name]['all'].recall.value:.4f}" for name in names)
    return drawing.finish(
        figure, "timeline", "Recall over time", f"Line chart of Recall@20 by period. In the last: {last}."
    )


@drawing.in_both_forms
def kinds_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of the federation by when devices joined."""
    figure, panels = drawing.new_figure(3.2, 1, 3, sharey=True)
    for axes, (kind, words) in zip(panels, KINDS.items(), strict=True):
        for index, name in enumerate(("federation", "start-table", "cached-list")):
            known = {
                number: one.lines[name][kind].recall for number, one in _numbered(periods) if kind in one.lines[name]
            }
            style = drawing.line_kwargs(index, strong=index == 0, dashed=index > 0) | {"label": line_label(name)}
            if known:
                drawing.draw_line(axes, drawing.Line(name, list(known), list(known.values())), style)
        axes.set_title(words)
        axes.set_xlabel("period")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("Recall@20")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if drawing.is_narrow() else 3, frameon=False)
    return drawing.finish(
        figure, "kinds", "New and old devices", "Three line charts of Recall@20 by when devices joined."
    )


@drawing.in_both_forms
def life_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Over the periods: recall, bytes, what changed, own budgets at every moment, and re-selections."""
    from matplotlib.ticker import NullFormatter

    figure, (recall, moved, changed, budgets, selected) = drawing.new_figure(10.0, 5, 1, sharex=True)
    lines = _recall_lines(periods, ("federation", "federation, own budgets", "cached-list"))
    _draw(recall, "Recall@20", lines, [one.high or one.value for line, _ in lines for one in line.figures])
    moved.set_yscale("log")
    _draw(moved, "KB sent per device", _moved_bytes(periods), None)
    moved.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    moved.yaxis.set_minor_formatter(NullFormatter())
    later = periods[1:]  # in the first everything is new
    shares = {
        "devices that changed group": [100 * period.reads["federation"].moved for period in later],
        "share of rows changed": [100 * period.changed_rows / max(period.items, 1) for period in later],
    }
    lines = [
        (_line(words, range(2, len(periods) + 1), values), drawing.line_kwargs(index))
        for index, (words, values) in enumerate(shares.items())
        if later
    ]
    _draw(changed, "per cent", lines, [value for values in shares.values() for value in values])
    lines = _own_budgets(periods)
    _draw(budgets, "KB, mean over devices", lines, [float(one) for line, _ in lines[:1] for one in line.figures])
    followed = [period.followed for period in periods]
    often = [one.figures.reselections / max(one.figures.devices, 1) if one else 0.0 for one in followed]
    selected.plot(range(1, len(periods) + 1), often, **drawing.line_kwargs(0))
    _draw(selected, "re-selections per device", [], often)
    selected.set_xlabel("period")
    return drawing.finish(
        figure,
        "life",
        "Costs and budgets",
        "Line charts by period: recall, bytes sent to a device, what changed, mean budgets, re-selections.",
    )


def _draw(axes: Axes, name: str, lines: Lines, values: Sequence[float] | None = ()) -> None:
    """Draw lines, each with its label, on an axis of this name: from nought to a little above the largest of
    ``values``, however flat the line is, or where there are none to what is drawn; None: not from nought.
    """
    labels = [drawing.draw_line(axes, line, style) for line, style in lines]
    if values is not None:
        axes.set_ylim(0, 1.12 * max([*values, 1e-9]) if values else None)
    axes.set_ylabel(name)
    drawing.label_ends(axes, labels)


def _numbered(periods: Sequence[PeriodResult]) -> Iterator[tuple[int, PeriodResult]]:
    return enumerate(periods, start=1)


def _recall_lines(periods: Sequence[PeriodResult], names: Sequence[str]) -> Lines:
    """Return the recall of all devices under some ways of serving."""
    lines: Lines = []
    for index, name in enumerate(names):
        style = drawing.line_kwargs(index, strong=name == "federation", dashed=not name.startswith("federation"))
        recalls = [period.lines[name]["all"].recall for period in periods]
        line = _line(line_label(name), range(1, len(periods) + 1), recalls)
        lines.append((replace(line, bold=name == "federation"), style))
    return lines


def _moved_bytes(periods: Sequence[PeriodResult]) -> Lines:
    names = [name for name in periods[0].reads if name != "federation"] + ["federation"]
    sent = {line_label(name): [period.reads[name].sent_mean for period in periods] for name in names}
    sent["stage 1, both ways"] = [period.stage1_down + period.stage1_up for period in periods]
    if any(period.refinement_down for period in periods):
        sent["refinement, both ways"] = [period.refinement_down + period.refinement_up for period in periods]
    return [
        (
            _line(words, range(1, len(periods) + 1), [max(one, 1.0) / 1000 for one in values]),
            drawing.line_kwargs(index, strong=index == len(names) - 1, dashed=index >= len(names)),
        )
        for index, (words, values) in enumerate(sent.items())
    ]


def _own_budgets(periods: Sequence[PeriodResult]) -> Lines:
    """Means over devices, at every step of the clock, from when they are asked in a period until the next one."""
    known = [(number, one.followed.moments) for number, one in _numbered(periods) if one.followed is not None]
    x = [number + step / len(moments) for number, moments in known for step in range(len(moments))]
    lines = {
        "own budget": [moment.budget_bytes_mean / 1000 for _, moments in known for moment in moments],
        "stored": [moment.stored_bytes_mean / 1000 for _, moments in known for moment in moments],
    }
    return [
        (replace(_line(words, x, values), words=()), drawing.line_kwargs(index) | {"marker": ""})
        for index, (words, values) in enumerate(lines.items())
        if x
    ]


@drawing.in_both_forms
def classes_plot(periods: Sequence[PeriodResult]) -> Plot:
    """Recall of each device class under its own budgets, over the periods, with 95 % intervals."""
    figure, (axes,) = drawing.new_figure(3.4)
    lines: Lines = []
    for index, name in enumerate(periods[0].classes):
        recalls = {number: one.classes[name].recall for number, one in _numbered(periods)}
        known = {number: recall for number, recall in recalls.items() if recall is not None}
        if known:
            lines.append((_line(name, list(known), list(known.values())), drawing.line_kwargs(index)))
    _draw(axes, "Recall@20, own budgets", lines)
    axes.set_xlabel("period")
    return drawing.finish(figure, "classes", "Device classes", "Line chart of Recall@20 by period and device class.")


def _line(words: str, x: Sequence[float], figures: Sequence[Estimate | float]) -> drawing.Line:
    known = [figure if isinstance(figure, Estimate) else Estimate(figure) for figure in figures]
    tips = [f"{words}, period {at:g}: {one.value:.4g}" for at, one in zip(x, known, strict=True)]
    return drawing.Line(words, x, known, tips)


BASES = ("cached-list", "retrained", "recent-popularity")
"""Ways of serving that others are compared with in tables."""
REFERENCES = {
    "cached-list": "the static top-20 list",
    "start-table": "the static table with local user updates",
    "retrained": "central retraining",
}
"""Ways of serving that the verdict compares federated training with."""


def summary_view(result: TimelineResult, *, last: bool = True) -> TableView:
    """Return every way of serving over the last three periods, or all of them."""
    summaries = result.last if last else result.whole
    body = tuple(
        (
            line_label(line),
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
    return TableView(f"The last {some} periods" if last else "All periods", columns, body, 1, note, terminal=last)


def recall_view(result: TimelineResult) -> TableView:
    """Recall of all devices, period by period."""
    lines = result.periods[0].lines
    body = tuple(
        (line_label(line), *(format_point(period.lines[line]["all"].recall) for period in result.periods))
        for line in lines
    )
    columns = ("served by", *map(str, range(1, len(result.periods) + 1)))
    return TableView("Recall@20, all devices", columns, body, 1, terminal=True)


def periods_view(result: TimelineResult) -> TableView:
    """Return the view of what happens in each period."""
    columns: tuple[TableColumn[tuple[int, PeriodResult]], ...] = (
        TableColumn("period", lambda row: row[0]),
        TableColumn("from", lambda row: _day(row[1].begins)),
        TableColumn("to", lambda row: _day(row[1].ends)),
        TableColumn("devices", lambda row: row[1].devices, format_count),
        TableColumn("left", lambda row: row[1].left, format_count),
        TableColumn("joining", lambda row: row[1].joining, format_count),
        TableColumn("items", lambda row: row[1].items, format_count),
        TableColumn("new items", lambda row: row[1].new_items, format_count),
        TableColumn("changed rows", lambda row: f"{row[1].changed_rows:,.0f}"),
        TableColumn("recency exponent", lambda row: f"{row[1].exponents['fresh']:g}"),
        TableColumn("popularity weight", lambda row: f"{row[1].exponents['mean']:g}"),
        TableColumn("changed group", lambda row: f"{row[1].reads['federation'].moved:.1%}"),
        TableColumn("stage 1, down", lambda row: row[1].stage1_down, format_bytes),
        TableColumn("stage 1, up", lambda row: row[1].stage1_up, format_bytes),
        TableColumn("refinement rounds", lambda row: row[1].refinement_rounds),
        TableColumn("down", lambda row: row[1].refinement_down, format_bytes),
        TableColumn("up", lambda row: row[1].refinement_up, format_bytes),
    )
    note = (
        "Devices, items: those before the period; left: devices that no longer contribute, being inactive. Recency "
        "exponent, popularity weight: chosen by devices. Bytes: per device, mean, those that join included; those of "
        "refinement include the choice of rounds."
    )
    return table_of("Periods", list(enumerate(result.periods, start=1)), columns, note, 3)


def reads_view(result: TimelineResult) -> TableView:
    """Return the view of what devices read and hold under each budget, over all periods but the first."""
    later = result.periods[1:] or result.periods

    def mean(name: str, figure: str) -> float:
        return float(sum(getattr(period.reads[name], figure) for period in later) / len(later))

    def share(name: str) -> float | None:
        held = mean(name, "held_mean")
        return mean(name, "sent_mean") / held if held else None

    columns: tuple[TableColumn[str], ...] = (
        TableColumn("method", lambda name: line_label(name)),
        TableColumn("KB stored", lambda name: mean(name, "held_mean"), format_kilobytes),
        TableColumn("KB sent per period", lambda name: mean(name, "sent_mean"), format_kilobytes),
        TableColumn("share of stored", share, format_thousandths),
        TableColumn("KB sent on joining", lambda name: mean(name, "joining_mean"), format_kilobytes),
        TableColumn("KB sent on changing group", lambda name: mean(name, "moved_sent_mean"), format_kilobytes),
        TableColumn("budget violations", lambda name: sum(one.reads[name].violations for one in result.periods)),
    )
    note = "Encoded blocks; per device, mean. 1 KB = 1000 bytes."
    return table_of("Downloads of devices", list(result.periods[0].reads), columns, note, terminal=True)


def followed_view(result: TimelineResult) -> TableView:
    """Return the view of what became of devices while their own budgets moved, in each period."""
    columns: tuple[TableColumn[tuple[int, OverTime]], ...] = (
        TableColumn("period", lambda row: row[0]),
        TableColumn("devices", lambda row: row[1].figures.devices, format_count),
        TableColumn("hours", lambda row: f"{row[1].hours:.1f}"),
        TableColumn("lowest mean budget", lambda row: min(_budgets(row[1])), format_bytes),
        TableColumn("highest", lambda row: max(_budgets(row[1])), format_bytes),
        TableColumn("re-selections per device", lambda row: _per_device(row[1], "reselections"), format_decimals),
        TableColumn("bytes sent for growth", lambda row: _per_device(row[1], "growth_bytes"), format_bytes),
        TableColumn("Recall@20", lambda row: row[1].figures.recall, format_metric),
        TableColumn("Recall@20, floor", lambda row: row[1].figures.floor_recall, format_metric),
        TableColumn("relative to the floor", lambda row: row[1].to_floor, format_ratio),
        TableColumn("budget violations", lambda row: row[1].figures.budget_violations),
    )
    note = (
        "From the evaluation until the next period's tables arrive, at every step of the fleet's clock: budgets "
        "change, and devices drop blocks without a message or download further blocks. Floor: devices always hold "
        "what their smallest budget holds, and nothing is sent for growth."
    )
    periods = enumerate(result.periods, start=1)
    rows = [(number, one.followed) for number, one in periods if one.followed is not None]
    return table_of("Changing budgets between periods", rows, columns, note)


def _budgets(followed: OverTime) -> list[float]:
    return [moment.budget_bytes_mean for moment in followed.moments]


def _per_device(followed: OverTime, figure: str) -> float:
    return float(getattr(followed.figures, figure) / max(followed.figures.devices, 1))


def classes_view(period: PeriodResult) -> TableView:
    """Device classes under their own budgets in the last period."""
    columns: tuple[TableColumn[tuple[str, ClassResult]], ...] = (
        TableColumn("class", lambda row: row[0]),
        TableColumn("devices", lambda row: row[1].devices, format_count),
        TableColumn("Recall@20", lambda row: row[1].recall, format_point),
        TableColumn("budget", lambda row: row[1].budget_bytes_mean, format_bytes),
        TableColumn("stored", lambda row: row[1].held_bytes_mean, format_bytes),
    )
    return table_of("Device classes, last period", list(period.classes.items()), columns)


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def timeline_verdicts(scenario: Mapping[str, Any], over: Mapping[str, Mapping[str, Estimate]]) -> tuple[str, ...]:
    """Say who has seen which interactions, what federated training over time has of the recall of other ways of
    serving, and what the smallest budget has of it. over: paired ratios of recall in the last periods, by way of
    serving and by that it is relative to.
    """
    trained = over["federation"]
    known = [
        f"{format_ratio(ratio)} times that of {words}{significance(ratio)}"
        for base, words in REFERENCES.items()
        if (ratio := trained.get(base)) is not None
    ]
    static = trained.get("start-table") or trained.get("cached-list")
    remedy = f" {LEARNING_RATE.capitalize()}." if static is not None and (static.low or static.value) <= 1 else ""
    sentences = [seen_data(scenario)]
    if known:
        sentences.append(f"In the last periods the Recall@20 of {LABELS['federation']} is {'; '.join(known)}.{remedy}")
    smallest = next((name for name in over if name.startswith("federation at ")), None)
    ratio = over[smallest].get("federation") if smallest is not None else None
    if smallest is not None and ratio is not None:
        share = smallest.removeprefix("federation at ")
        sentences.append(
            f"At {share} of the bytes it has {format_ratio(ratio)} times the recall of its full tables"
            f"{significance(ratio)}."
        )
    return tuple(sentences)


def timeline_page(result: TimelineResult) -> Page:
    """Return the page of a timeline."""
    name, periods = scenario_name(result.scenario), result.periods
    last = result.last["federation"]
    cached = last.over.get("cached-list")
    return Page(
        f"{name}: recall over time",
        _sections(result),
        timeline_verdicts(result.scenario, {line: one.over for line, one in result.last.items()}),
        [
            ("periods", str(len(periods))),
            ("devices, first and last", f"{periods[0].devices:,}; {periods[-1].devices + periods[-1].joining:,}"),
            ("Recall@20, last three", format_point(last.lines["all"].recall)),
            ("relative to static list", ABSENT if cached is None else f"{cached.value:.2f}"),
        ],
        f"fl-peel run {name}",
    )


TIMELINE = ResultKind("timeline", partial(from_plain, TimelineResult, top_n=20), timeline_page)


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
        Section("privacy", "", privacy_views(result.privacy)),
    ]


# ---- Several seeds


@dataclass(frozen=True, kw_only=True)
class LineSeeds:
    """A way of serving over the last three periods: mean recall@20, and that over others'."""

    line: Annotated[str, Column("method")]
    recall: SeedsEstimate
    over: Annotated[dict[str, SeedsEstimate], Column("base")]


@dataclass(frozen=True, kw_only=True)
class TimelineSeeds(OverSeeds):
    """The content of `timeline-seeds.json`. devices: that were asked, each once a period; the fewest of a seed."""

    method: str
    lines: tuple[LineSeeds, ...]


def timeline_seeds(results: Sequence[TimelineResult], command: str | None = None) -> TimelineSeeds:
    """Return what several seeds show together; their replicates are of the same draws of devices."""
    drawn = [result.replicates for result in results]
    if not all(one.keys() == drawn[0].keys() for one in drawn):
        raise ScenarioError("evaluation: the seeds did not evaluate the same devices; raise data.timeline.share")
    devices = min(result.last["federation"].lines["all"].devices for result in results)
    samples = {}
    for line in drawn[0]:
        recalls = tuple(result.last[line].lines["all"].recall.value for result in results)
        replicates = np.mean([one[line] for one in drawn], axis=0)
        samples[line] = Sample(float(np.mean(recalls)), replicates, devices, recalls)
    lines = tuple(
        LineSeeds(
            line=line,
            recall=sample.estimate(),
            over={
                base: ratio
                for base in BASES
                if base != line and base in samples and (ratio := sample.over(samples[base])) is not None
            },
        )
        for line, sample in samples.items()
    )
    return TimelineSeeds(
        scenario=results[0].scenario,
        seeds=tuple(result.seed for result in results),
        devices=devices,
        method=METHOD,
        lines=lines,
        versions=results[0].versions,
        command=command,
    )


def timeline_seeds_view(result: TimelineSeeds) -> TableView:
    """Return every way of serving: mean over seeds with its interval, by seed, and over others."""
    body = tuple(
        (
            line_label(one.line),
            format_estimate(one.recall),
            ", ".join(f"{value:.4f}".lstrip("0") for value in one.recall.by_seed),
            *(format_ratio(one.over.get(base)) for base in BASES),
        )
        for one in result.lines
    )
    columns = ("served by", "Recall@20", "by seed", *(f"relative to {LABELS[base]}" for base in BASES))
    note = (
        f"Means over {len(result.seeds)} seeds of the last three periods. In brackets: 95 % intervals over devices and "
        "seeds, paired for ratios."
    )
    return TableView(f"Seeds {', '.join(map(str, result.seeds))}", columns, body, 1, note, terminal=True)


def timeline_seeds_page(result: TimelineSeeds) -> Page:
    """Return the page of a timeline with several seeds."""
    verdicts = timeline_verdicts(result.scenario, {one.line: one.over for one in result.lines})
    return over_seeds_page(result, timeline_seeds_view(result), verdicts, ", recall over time")


TIMELINE_SEEDS = ResultKind("timeline-seeds", partial(from_plain, TimelineSeeds), timeline_seeds_page)
