"""Timelines under several seeds: which part of their figures is the seed's, as `timeline-seeds.json` and `.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from fl_peel.errors import ScenarioError
from fl_peel.figures import SETTING, Column, Figures, SeedsEstimate
from fl_peel.json_codec import to_plain
from fl_peel.ranking.bootstrap import Sample
from simulations.differences.seeds import METHOD
from simulations.report.render import page, scenario_name
from simulations.report.result_files import result_contents, write_results
from simulations.report.section import Section
from simulations.report.table_view import TableView, format_estimate, format_ratio
from simulations.timeline.report import BASES, timeline_verdicts
from simulations.timeline.timeline_plots import LABELS, line_label
from strategies.timeline.timeline_figures import TimelineResult

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
    """Say what :func:`simulations.timeline.report.timeline_verdicts` says, of means over seeds."""
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
