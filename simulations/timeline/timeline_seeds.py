"""Timelines under several seeds: which part of their figures is the seed's, as `timeline-seeds.json` and `.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.callbacks import Callback
from fl_peel.errors import ScenarioError
from fl_peel.events import Event, OnEvent, silent, with_seed
from fl_peel.figures import SETTING, Column, Figures, SeedsEstimate
from fl_peel.json_codec import to_plain
from fl_peel.object_codec import from_nodes, to_nodes
from fl_peel.ranking.bootstrap import Sample
from fl_peel.scenario.scenario import Scenario
from simulations.differences.seeds import METHOD
from simulations.engine.inputs import require_folders
from simulations.report.render import page, scenario_name
from simulations.report.result_files import result_contents, write_results
from simulations.report.section import Section
from simulations.report.table_view import TableView, format_estimate, format_ratio
from simulations.resumable import CHECKPOINTS, SEED, about_seed, mark_finished, owned_store, read_finished
from simulations.timeline.report import BASES
from simulations.timeline.run_timeline import run_with_replicates
from simulations.timeline.timeline_plots import LABELS
from strategies.timeline.schema import TimelineResult

Doubles = NDArray[np.float64]
NAME, REPLICATES = "timeline-seeds", "replicates"


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


def run_timeline_seeds(
    scenario: Scenario,
    *,
    seeds: int,
    out: Path,
    data_dir: str | Path | None = None,
    on_event: OnEvent = silent,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    fresh: bool = False,
) -> TimelineSeeds:
    """Replay a checked scenario's timeline with so many seeds, from its own on: each into ``out/seed-K``, and what they
    show together into ``out``. Stopped and called again, it goes on: seeds that are done are read; fresh: it starts
    anew.

    Raises:
        FlPeelError: as :func:`simulations.timeline.run_timeline.run_timeline`.
    """
    out = require_folders(out, scenario, seeds)
    results, drawn = [], []
    with owned_store(out / CHECKPOINTS) as store:
        for number in range(scenario.seed, scenario.seed + seeds):
            one = scenario.model_copy(update={"seed": number})
            place, on_seed_event = out / f"{SEED}{number}", with_seed(number, on_event)
            about = about_seed(one, data_dir)
            kept = None if fresh else read_finished(store, place, about)
            if kept is not None:
                on_seed_event(Event("report", 1, 1, "resumed from a checkpoint"))
                result, replicates = from_nodes(kept.value["value"], kept.arrays(REPLICATES))
            else:
                result, replicates = run_with_replicates(
                    one,
                    data_dir=data_dir,
                    out=place,
                    on_event=on_seed_event,
                    callbacks=callbacks,
                    command=command,
                    fresh=fresh,
                )
                value, arrays = to_nodes((result, replicates))
                mark_finished(store, place, about, value, {REPLICATES: arrays})
            results.append(result)
            drawn.append(replicates)
        together = timeline_seeds(results, drawn, command)
        write_timeline_seeds(out, together)
        store.remove(SEED)
    return together


def timeline_seeds(
    results: list[TimelineResult], drawn: list[dict[str, Doubles]], command: str | None = None
) -> TimelineSeeds:
    """Return what several seeds show together. drawn: by seed and way of serving, (B,) replicates of its mean recall
    over the last three periods, of the same draws of devices in every seed.
    """
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
            LABELS.get(one.line, one.line),
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


def write_timeline_seeds(out: Path, result: TimelineSeeds) -> list[Path]:
    """Write `timeline-seeds.json`, its tables and `timeline-seeds.html` into ``out``, all or none."""
    content = page(
        [Section("tables", "", (timeline_seeds_view(result), result.method))],
        title=f"{scenario_name(result.scenario)}: {len(result.seeds)} seeds, recall over time",
        lead="The same timeline with several seeds: means and their variation over seeds.",
        facts=[("devices", f"{result.devices:,}"), ("seeds", f"{len(result.seeds)}")],
        source=to_plain(result) | {"seed": None},
    )
    return write_results(out, result_contents(NAME, to_plain(result), result.figures, content))


__all__ = ["NAME", "LineSeeds", "TimelineSeeds", "run_timeline_seeds", "timeline_seeds", "timeline_seeds_view"]
