"""Run a scenario in this process, on the engine that it asks for.

A user waits for what is imported before the nodes answer. So what the server's side needs is imported while they start,
torch when something trains with it, and what draws pages when one is drawn.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.serverapp import Grid

from fl_peel.callbacks import Callback
from fl_peel.data.interactions import Splits
from fl_peel.errors import ReportError, ScenarioError
from fl_peel.events import Event, OnEvent, silent, with_seed
from fl_peel.model.model import load
from fl_peel.ranking.bootstrap import REPLICATES
from fl_peel.scenario.scenario import Scenario
from simulations.engine.engine import simulated
from simulations.engine.folders import data_folder, run_folder
from simulations.engine.inputs import ARTIFACTS, DEMO, MODEL, checked, given_folder, require_folders, splits_to_run
from simulations.engine.memory import PeakMemory
from simulations.engine.versions import versions
from simulations.report.result_files import write_results
from simulations.resumable import (
    CHECKPOINTS,
    SEED,
    about_seed,
    mark_finished,
    owned_store,
    read_finished,
    resumable_folder,
)
from simulations.scenario_files import load_scenario
from simulations.trackers.registry import figures_on_test, watched
from strategies.figures.per_device import FILE, PerDevice
from strategies.figures.schema import RunResult, to_json
from strategies.run.run_paths import RunPaths

if TYPE_CHECKING:
    from simulations.differences.seeds import SeedsResult


def run(
    scenario: str | Path | Scenario = "ml-100k",
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    cache_dir: str | Path | None = None,
    on_event: OnEvent = silent,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Run a scenario and return what it measured; with ``out``, also write the report files there.

    scenario: a shipped name, a YAML file or a Scenario; overrides: ``path=value``; cache_dir: where pretrained tables
    are kept by content (None keeps none); callbacks: get the events, and never stop the run. With ``out``, what is
    done is kept there until all is: the same run, stopped at any moment and called again, goes on to the same figures;
    fresh: it starts anew.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides, seed=seed)
    if callbacks:
        alone = partial(run, scenario, data_dir=data_dir, out=out, cache_dir=cache_dir, command=command, fresh=fresh)
        return watched(
            lambda on_watched_event: alone(on_event=on_watched_event),
            scenario,
            callbacks,
            on_event,
            to_json,
            figures_on_test,
        )
    out = given_folder(out)
    scenario = checked(scenario, out, working_dir=Path.cwd())
    with run_folder() as run_dir:
        paths = RunPaths(data_folder(data_dir), str(run_dir), str(cache_dir or ""))
        start = time.perf_counter()
        splits = splits_to_run(scenario, paths.data_dir, paths.run_dir)
        reading_s = time.perf_counter() - start
        with resumable_folder(out, scenario, splits, fresh=fresh) as checkpoint_dir:
            with PeakMemory() as memory:
                result = simulated(scenario, with_checkpoints(paths, checkpoint_dir), on_event, server=served)
            stages = result.stages | {"data": result.stages["data"] + reading_s}
            result = replace(result, stages=stages)
            result = finished(result, scenario, memory.peak_bytes, command)
            if out is not None:
                save(result, scenario, run_dir, out, Path(checkpoint_dir) / MODEL, splits)
        return result


def with_checkpoints(paths: RunPaths, checkpoint_dir: str) -> RunPaths:
    """A place where a run keeps what is done, and leaves its model: on the disk of its results, "" for none of it."""
    return replace(
        paths, checkpoint_dir=checkpoint_dir, model_dir=os.path.join(checkpoint_dir, MODEL) if checkpoint_dir else ""
    )


def run_seeds(
    scenario: str | Path | Scenario = "ml-100k",
    *,
    seeds: int,
    out: str | Path,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    on_event: OnEvent = silent,
    callbacks: Sequence[Callback] = (),
    command: str | None = None,
    fresh: bool = False,
) -> SeedsResult:
    """Run a scenario with so many seeds, from its own on: each into ``out/seed-K``, with what every device gets, and
    what they show together into ``out`` (docs/statistics.md). Stopped and called again, it goes on: seeds that are done
    are read; fresh: it starts anew.

    Raises:
        FlPeelError: as :func:`run`.
    """
    from simulations.differences.seeds import SeedRuns, seeds_result, write_seeds
    from simulations.report.run_files import read_report

    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides, seed=seed)
    if scenario.data.timeline is not None:
        raise ScenarioError(
            "data.timeline: is replayed with several seeds by simulations.timeline.timeline_seeds.run_timeline_seeds"
        )
    out = require_folders(out, scenario, seeds)
    scenario = checked(scenario, out, working_dir=Path.cwd())
    evaluation = scenario.evaluation.model_copy(update={"per_device": True})
    with owned_store(out / CHECKPOINTS) as store:
        by_seed = []
        for number in range(scenario.seed, scenario.seed + seeds):
            one = scenario.model_copy(update={"seed": number, "evaluation": evaluation})
            place = out / f"{SEED}{number}"
            on_seed_event = with_seed(number, on_event)
            about = about_seed(one, data_dir)
            if not fresh and read_finished(store, place, about):
                on_seed_event(Event("report", 1, 1, "resumed from a checkpoint"))
                result = read_report(place)
            else:
                result = run(
                    one,
                    data_dir=data_dir,
                    out=place,
                    cache_dir=cache_dir,
                    on_event=on_seed_event,
                    callbacks=callbacks,
                    command=command,
                    fresh=fresh,
                )
                mark_finished(store, place, about)
            by_seed.append((result, PerDevice.read(place / FILE)))
        results, devices = zip(*by_seed, strict=True)
        runs = SeedRuns.from_reports(str(out), results, devices)
        together = seeds_result(runs, results[0].versions, command, scenario.evaluation.bootstrap or REPLICATES)
        write_seeds(out, together)
        store.remove(SEED)
    return together


def save(
    result: RunResult, scenario: Scenario, run_dir: Path, out: Path, model_dir: Path, splits: Splits | None = None
) -> None:
    """Write a run's files: report.json, metrics.csv and .parquet, report.html, scenario.yaml, artifacts/, model/,
    demo.html where there is something to play with and, where it was asked for, per-device.parquet. Of an earlier
    run's, nothing is left. splits: of the devices, by which the page to play with tells recall.

    Raises:
        ReportError: the folder cannot be written, or the result is not a report.
    """
    from simulations.report.run_files import report_contents

    kept = run_dir / ARTIFACTS
    files = sorted(path for path in kept.rglob("*") if path.is_file()) if kept.is_dir() else []
    model = sorted(model_dir.iterdir()) if model_dir.is_dir() else []
    demo = _demo(result, scenario, run_dir, model_dir, splits)
    write_results(
        out,
        {
            **report_contents(result, next(iter(demo), None)),
            **demo,
            "scenario.yaml": scenario.to_yaml().encode(),
            **({FILE: run_dir / FILE} if (run_dir / FILE).is_file() else {}),
            **{path.relative_to(run_dir).as_posix(): path for path in files},
            **{f"{MODEL}/{path.name}": path for path in model},
        },
        out_of_date=lambda name: name in (FILE, DEMO) or name.startswith((f"{ARTIFACTS}/", f"{MODEL}/")),
    )


def _demo(
    result: RunResult, scenario: Scenario, run_dir: Path, model_dir: Path, splits: Splits | None
) -> dict[str, bytes]:
    """The page to play with, by name; none where no device left anything, or the reader is not installed."""
    from simulations.demo import items_of, largest_artefacts, page_of

    artefacts = largest_artefacts(run_dir)
    if not artefacts or not model_dir.is_dir():
        return {}
    items = items_of(load(model_dir))
    try:
        page = page_of(result, scenario, artefacts, items, splits, f"fl-peel demo OUT/{MODEL} --out {DEMO}")
    except ReportError:
        return {}
    return {DEMO: page.encode()}


def served(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent) -> RunResult:
    """:func:`strategies.server_app.serve`, imported while the nodes' processes start."""
    from strategies.server_app import serve

    return serve(grid, scenario, paths, on_event)


def finished(result: RunResult, scenario: Scenario, peak_bytes: int, command: str | None) -> RunResult:
    """Add what identifies the run: versions, machine, fleet, command."""
    from simulations.fleet.fleet_view import fleet_summary

    environment = result.environment
    assert environment is not None, "serve tells how large the run was"
    return replace(
        result,
        versions=versions(),
        peak_rss_bytes=peak_bytes,
        environment=replace(
            environment, cpus=os.cpu_count() or 1, machine=platform.machine(), system=platform.system()
        ),
        fleet=fleet_summary(scenario, num_devices=environment.devices, full_table_bytes=result.full_table.bytes),
        command=command or None,
    )


__all__ = ["MODEL", "finished", "run", "run_seeds", "save", "with_checkpoints"]
