"""Files of a timeline and what its tables show: `timeline.json`, `.csv`, `.parquet`, `.html` and `.svg`; of several
seeds `timeline-seeds.json` and `.html`, which say what part of its figures is the seed's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fl_peel.errors import ScenarioError
from fl_peel.figures import SETTING, Column, Estimate, Figures, SeedsEstimate
from fl_peel.json_codec import to_plain
from fl_peel.ranking.bootstrap import Sample
from simulations.report.render import page, scenario_name
from simulations.report.result_files import result_contents, write_results
from simulations.report.section import Chart, Section
from simulations.report.seeds import METHOD
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
from simulations.report.timeline_plots import (
    KINDS,
    LABELS,
    classes_plot,
    kinds_plot,
    life_plot,
    line_label,
    recall_plot,
)
from simulations.report.verdict import LEARNING_RATE, seen_data, significance
from strategies.figures.schema import OverTime
from strategies.timeline.timeline_figures import ClassResult, PeriodResult, TimelineResult

BASES = ("cached-list", "retrained", "recent-popularity")
"""Ways of serving that others are compared with in tables."""
REFERENCES = {
    "cached-list": "the static top-20 list",
    "start-table": "the static table with local user updates",
    "retrained": "central retraining",
}
"""Ways of serving that the verdict compares federated training with."""


def write_timeline(result: TimelineResult, out_dir: Path, more: Mapping[str, bytes | Path] | None = None) -> list[Path]:
    """Write the files, and more, into ``out_dir``, all or none, and return their paths.

    Raises:
        ReportError: the folder cannot be written.
    """
    plain, plot = to_plain(result, "timeline", top_n=20), recall_plot(result.periods)
    contents = result_contents("timeline", plain, result.figures, timeline_page(result), plot.svg)
    return write_results(out_dir, {**contents, **(more or {})})


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
    return TableView(f"The last {some} periods" if last else "All periods", columns, body, 1, note)


def recall_view(result: TimelineResult) -> TableView:
    """Recall of all devices, period by period."""
    lines = result.periods[0].lines
    body = tuple(
        (line_label(line), *(format_point(period.lines[line]["all"].recall) for period in result.periods))
        for line in lines
    )
    return TableView("Recall@20, all devices", ("served by", *map(str, range(1, len(result.periods) + 1))), body, 1)


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
        TableColumn("changed group", lambda row: f"{row[1].reads['federation'].moved:.1%}"),
        TableColumn("stage 1, down", lambda row: row[1].stage1_down, format_bytes),
        TableColumn("stage 1, up", lambda row: row[1].stage1_up, format_bytes),
        TableColumn("refinement rounds", lambda row: row[1].refinement_rounds),
        TableColumn("down", lambda row: row[1].refinement_down, format_bytes),
        TableColumn("up", lambda row: row[1].refinement_up, format_bytes),
    )
    note = (
        "Devices, items: those before the period; left: devices that no longer contribute, being inactive. Recency "
        "exponent: chosen by devices. Bytes: per device, mean, those that join included; those of refinement include "
        "the choice of rounds."
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
    return table_of("Downloads of devices", list(result.periods[0].reads), columns, note)


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
        TableColumn("Recall@20, rigid", lambda row: row[1].figures.rigid_recall, format_metric),
        TableColumn("budget violations", lambda row: row[1].figures.budget_violations),
    )
    note = (
        "From the evaluation until the next period's tables arrive, at every step of the fleet's clock: budgets "
        "change, and devices drop blocks without a message or download further blocks. A rigid device keeps its "
        "blocks while they fit, and stores nothing after that until its next download."
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


def _verdicts(result: TimelineResult) -> tuple[str, ...]:
    return timeline_verdicts(result.scenario, {line: one.over for line, one in result.last.items()})


def timeline_summary(result: TimelineResult) -> list[TableView | str]:
    """Return what the terminal shows: what the timeline comes to in words, and tables."""
    return [*_verdicts(result), summary_view(result), recall_view(result), reads_view(result)]


def timeline_page(result: TimelineResult) -> str:
    """The page."""
    name, periods = scenario_name(result.scenario), result.periods
    last = result.last["federation"]
    cached = last.over.get("cached-list")
    return page(
        _sections(result),
        title=f"{name}: recall over time",
        lead="\n".join(_verdicts(result)),
        facts=[
            ("periods", str(len(periods))),
            ("devices, first and last", f"{periods[0].devices:,}; {periods[-1].devices + periods[-1].joining:,}"),
            ("Recall@20, last three", format_point(last.lines["all"].recall)),
            ("relative to static list", ABSENT if cached is None else f"{cached.value:.2f}"),
        ],
        source={"command": f"fl-peel run {name}", **to_plain(result, top_n=20)},
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


# ---- Several seeds


NAME = "timeline-seeds"


@dataclass(frozen=True, kw_only=True)
class LineSeeds:
    """A way of serving over the last three periods: mean recall@20, and that over others'."""

    line: Annotated[str, Column("method")]
    recall: SeedsEstimate
    over: Annotated[dict[str, SeedsEstimate], Column("base")]


@dataclass(frozen=True, kw_only=True)
class TimelineSeeds:
    """The content of `timeline-seeds.json`. devices: that were asked, each once a period; the fewest of a seed."""

    scenario: dict[str, Any]
    seeds: Annotated[tuple[int, ...], SETTING]
    devices: int
    method: str
    lines: tuple[LineSeeds, ...]
    versions: dict[str, str]
    command: str | None = None

    @property
    def figures(self) -> Figures:
        """Return every number, as the rows of a tidy table."""
        return Figures.from_result(self, seeds=self.seeds)


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
    return TableView(f"Seeds {', '.join(map(str, result.seeds))}", columns, body, 1, note)


def timeline_seeds_verdicts(result: TimelineSeeds) -> tuple[str, ...]:
    """Say what :func:`simulations.report.timeline_report.timeline_verdicts` says, of means over seeds."""
    return timeline_verdicts(result.scenario, {one.line: one.over for one in result.lines})


def write_timeline_seeds(out: Path, result: TimelineSeeds) -> list[Path]:
    """Write `timeline-seeds.json`, its tables and `timeline-seeds.html` into ``out``, all or none."""
    content = page(
        [Section("tables", "", (timeline_seeds_view(result), result.method))],
        title=f"{scenario_name(result.scenario)}: {len(result.seeds)} seeds, recall over time",
        lead="\n".join(timeline_seeds_verdicts(result)),
        facts=[("devices", f"{result.devices:,}"), ("seeds", f"{len(result.seeds)}")],
        source=to_plain(result) | {"seed": None},
    )
    return write_results(out, result_contents(NAME, to_plain(result), result.figures, content))
