"""Run a scenario that has a timeline, on Flower's simulation engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.callbacks import Callback
from fl_peel.device_storage import device_splits, device_timeline
from fl_peel.events import OnEvent, silent
from fl_peel.json_codec import to_plain
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import simulated
from simulations.engine.folders import data_folder, run_folder
from simulations.engine.inputs import check_devices, check_items, check_out, given_folder, run_results
from simulations.engine.memory import PeakMemory
from simulations.engine.versions import versions
from simulations.resumable import resumable_folder
from simulations.timeline.report import write_timeline
from simulations.trackers.registry import watched
from strategies.run.run_paths import RunPaths
from strategies.timeline.schema import TimelineResult
from strategies.timeline.serve import REPLICATES, check_timeline, serve_timeline


def run_timeline(
    scenario: Scenario,
    *,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    on_event: OnEvent = silent,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    fresh: bool = False,
) -> TimelineResult:
    """Replay a checked scenario's timeline; with ``out``, write timeline.json, .csv, .html and .svg there, and the
    scenario. Stopped at any moment and called again, it goes on after the last period that was done; fresh: it starts
    anew.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    return run_with_replicates(
        scenario, data_dir=data_dir, out=out, on_event=on_event, callbacks=callbacks, command=command, fresh=fresh
    )[0]


def run_with_replicates(
    scenario: Scenario,
    *,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    on_event: OnEvent = silent,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    fresh: bool = False,
) -> tuple[TimelineResult, dict[str, NDArray[np.float64]]]:
    """Run a timeline as :func:`run_timeline` does; return also, by way of serving, (B,) replicates of recall over the
    last three periods.
    """
    if callbacks:
        alone = partial(run_with_replicates, scenario, data_dir=data_dir, out=out, command=command, fresh=fresh)
        return watched(
            lambda on_watched_event: alone(on_event=on_watched_event),
            scenario,
            callbacks,
            on_event,
            lambda outcome: to_plain(outcome[0]),
            lambda outcome: {},
        )
    check_timeline(scenario)
    out = given_folder(out)
    if out is not None:
        check_out(out, writes=run_results(scenario))
    with run_folder() as run_dir:
        paths = RunPaths(data_folder(data_dir), str(run_dir))
        splits = device_splits(scenario, paths.data_dir, paths.run_dir)
        check_items(scenario, splits.num_items)
        check_devices(scenario, splits)
        timeline = device_timeline(scenario, paths.data_dir, paths.run_dir)
        with resumable_folder(out, scenario, timeline, fresh=fresh) as checkpoint_dir:
            with PeakMemory() as memory:
                result = simulated(
                    scenario, replace(paths, checkpoint_dir=checkpoint_dir), on_event, server=serve_timeline
                )
            with np.load(run_dir / REPLICATES) as kept:
                replicates = dict(zip(kept["lines"].tolist(), kept["recalls"], strict=True))
            result = replace(result, versions=versions(), command=command, peak_rss_bytes=memory.peak_bytes)
            if out is not None:
                save_timeline(result, scenario, out)
    return result, replicates


def save_timeline(result: TimelineResult, scenario: Scenario, out: Path) -> None:
    """Write a timeline's files, and the scenario."""
    write_timeline(result, out, {"scenario.yaml": scenario.to_yaml().encode()})


__all__ = ["run_timeline", "run_with_replicates", "save_timeline"]
