"""Run a scenario, once or with several seeds: beneath the command line, Python, `flwr run` and sweeps.

A user waits for what is imported before the nodes answer. So what the server's side needs is imported while they start,
torch when something trains with it, and what draws pages when one is drawn.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from fl_peel.data.interactions import Splits
from fl_peel.data.timeline import Timeline
from fl_peel.errors import ReportError
from fl_peel.events import Event, OnEvent, stages_under
from fl_peel.json_codec import to_plain
from fl_peel.model.model import load
from fl_peel.ranking.bootstrap import REPLICATES
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import from_nodes, to_nodes
from simulations.engine.embedded_engine import helpers_ahead, prepare_drawing
from simulations.engine.engine import PeakMemory, on_remaining_machines, simulated
from simulations.engine.inputs import (
    ARTIFACTS,
    DEMO,
    MODEL,
    checked,
    data_folder,
    data_to_run,
    given_folder,
    require_folders,
    run_folder,
)
from simulations.engine.passing_grid import is_simulated
from simulations.report.result_files import write_results
from simulations.result_pages import result_kind
from simulations.resumable import (
    CHECKPOINTS,
    SEED,
    about_seed,
    mark_finished,
    owned_store,
    read_finished,
    resumable_folder,
    versions,
)
from simulations.scenario_files import RunOptions
from simulations.trackers import figures_on_test, watched
from strategies.figures.per_device import FILE, PerDevice
from strategies.figures.schema import RunResult, to_json
from strategies.run.run_paths import RunPaths
from strategies.timeline.timeline_figures import TimelineResult

if TYPE_CHECKING:
    from simulations.report.seeds import SeedsResult
    from simulations.report.timeline_report import TimelineSeeds
    from strategies.run.run import Run

RESULT = "result"
"""Name of the arrays that are kept of the result of a seed."""


def run(scenario: Scenario, options: RunOptions | None = None) -> RunResult | TimelineResult:
    """Run a scenario, or replay its timeline, and return what was measured; with ``out``, also write the files there.
    What is done is kept there until all is: the same run, stopped at any moment and called again, goes on to the same
    figures.

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    options = options or RunOptions()
    if options.callbacks:
        return watched(
            lambda on_event: run(scenario, replace(options, on_event=on_event, callbacks=None)),
            scenario,
            options.callbacks,
            options.on_event,
            in_json,
            lambda result: figures_on_test(result) if isinstance(result, RunResult) else {},
        )
    if options.out is None:
        return _run(scenario, options)
    return on_remaining_machines(lambda first: _run(scenario, replace(options, fresh=options.fresh and first)))


def _run(scenario: Scenario, options: RunOptions) -> RunResult | TimelineResult:
    """Check, read the data, run on the scenario's engine or on the nodes of the options, and write the results."""
    out, grid = given_folder(options.out), options.grid
    scenario = checked(scenario, out)
    deployed = grid is not None and not is_simulated(grid)  # devices have disks of their own, which nobody copies
    with run_folder() as run_dir:
        paths = RunPaths(data_folder(options.data_dir), str(run_dir), str(options.cache_dir or ""))
        # nodes that have their own data say how many devices there are
        connected = None if grid is None else _connected(grid, scenario, paths, options.on_event)
        start = time.perf_counter()
        data = data_to_run(scenario, paths.data_dir, paths.run_dir, deployed=deployed)
        reading_s = time.perf_counter() - start
        with resumable_folder(None if deployed else out, scenario, data, fresh=options.fresh) as checkpoint_dir:
            model_dir = os.path.join(checkpoint_dir or run_dir, MODEL) if out is not None else ""
            paths = replace(paths, checkpoint_dir=checkpoint_dir, model_dir=model_dir)
            with PeakMemory() as memory:
                if connected is None:
                    result = simulated(scenario, paths, options.on_event, server=_serve)
                else:
                    result = _server_side(scenario)(replace(connected, paths=paths))
            if isinstance(result, RunResult):
                result = finished(result, scenario, memory.peak_bytes, options.command)
                result = replace(result, stages=result.stages | {"data": result.stages["data"] + reading_s})
                if deployed:
                    assert result.environment is not None, "serve tells how large the run was"
                    result = replace(result, environment=replace(result.environment, engine="deployment"))
            else:
                result = replace(result, versions=versions(), peak_rss_bytes=memory.peak_bytes, command=options.command)
            if out is not None:
                from simulations.report.drawing import drawn_by

                with helpers_ahead(2) as helpers, drawn_by(helpers):
                    save(result, scenario, out, paths, None if deployed else data)
    return result


def in_json(result: object) -> dict[str, Any]:
    """Return a result of one or several seeds as its file has it."""
    plain: dict[str, Any] = to_json(result) if isinstance(result, RunResult) else to_plain(result, top_n=20)
    return plain


def _connected(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent) -> Run:
    """:meth:`strategies.run.run.Run.connect`, imported when there are nodes."""
    from strategies.run.run import Run

    return Run.connect(grid, scenario, paths, on_event)


def _serve(grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent) -> RunResult | TimelineResult:
    """The server's side of a run or a timeline, imported while the nodes' processes start."""
    serve = _server_side(scenario)
    run = _connected(grid, scenario, paths, on_event)
    if paths.model_dir:  # there will be a page
        prepare_drawing()
    return serve(run)


def _server_side(scenario: Scenario) -> Callable[[Run], RunResult | TimelineResult]:
    if scenario.data.timeline is not None:
        from strategies.timeline.period import replay

        return replay
    from strategies.server_app import serve_run

    return serve_run


def run_seeds(scenario: Scenario, seeds: int, options: RunOptions) -> SeedsResult | TimelineSeeds:
    """Run a scenario with so many seeds, from its own on: each into ``out/seed-K``, with what every device gets, and
    what they show together into ``out`` (docs/statistics.md). Stopped and called again, it goes on: seeds that are done
    are read.

    Raises:
        FlPeelError: as :func:`run`.
    """
    assert options.out is not None, "several seeds have a folder"
    out = require_folders(options.out, scenario, seeds)
    scenario = checked(scenario, out)
    if scenario.data.timeline is None:
        evaluation = scenario.evaluation.model_copy(update={"per_device": True})
        scenario = scenario.model_copy(update={"evaluation": evaluation})
    results: dict[int, Any] = {}
    with owned_store(out / CHECKPOINTS) as store:
        for number in range(scenario.seed, scenario.seed + seeds):
            one, place = scenario.model_copy(update={"seed": number}), out / f"{SEED}{number}"
            on_seed_event = stages_under(f"seed {number}", options.on_event)
            about = about_seed(one, options.data_dir)
            kept = None if options.fresh else read_finished(store, place, about)
            if kept is not None:
                on_seed_event(Event("report", 1, 1, "resumed from a checkpoint"))
                results[number] = from_nodes(kept.value["value"], kept.arrays(RESULT))
            else:
                results[number] = run(one, replace(options, out=place, on_event=on_seed_event))
                value, arrays = to_nodes(results[number])
                mark_finished(store, place, about, value, {RESULT: arrays})
        together = _over_seeds(out, results, options.command)
        store.remove(SEED)
    return together


def _over_seeds(out: Path, results: dict[int, Any], command: str | None) -> SeedsResult | TimelineSeeds:
    """Put the results of all seeds together, and write what they show."""
    first = next(iter(results.values()))
    if isinstance(first, TimelineResult):
        from simulations.report.timeline_report import timeline_seeds

        over_time = timeline_seeds(list(results.values()), command)
        write_results(out, result_kind("timeline-seeds").contents(over_time))
        return over_time
    from simulations.report.seeds import SeedRuns, seeds_result

    devices = tuple(PerDevice.read(out / f"{SEED}{number}" / FILE) for number in results)
    runs = SeedRuns.from_reports(str(out), tuple(results.values()), devices)
    together = seeds_result(runs, first.versions, command, first.scenario["evaluation"]["bootstrap"] or REPLICATES)
    write_results(out, result_kind("seeds").contents(together))
    return together


def save(
    result: RunResult | TimelineResult,
    scenario: Scenario,
    out: Path,
    paths: RunPaths,
    data: Splits | Timeline | None = None,
) -> None:
    """Write a run's files: report.json, metrics.csv and .parquet, report.html, scenario.yaml, artifacts/, model/,
    demo.html where there is something to play with and, where it was asked for, per-device.parquet; of a timeline, its
    own. Of an earlier run's, nothing is left. data: of the devices, by which the page to play with tells recall.

    Raises:
        ReportError: the folder cannot be written, or the result is not a report.
    """
    content: dict[str, bytes | Path] = {"scenario.yaml": scenario.to_yaml().encode()}
    if isinstance(result, TimelineResult):
        write_results(out, result_kind("timeline").contents(in_json(result)) | content)
        return
    assert not isinstance(data, Timeline), "this is a run without one"
    run_dir = Path(paths.run_dir)
    model_dir = Path(paths.model_dir or run_dir / MODEL)
    kept = run_dir / ARTIFACTS
    files = sorted(path for path in kept.rglob("*") if path.is_file()) if kept.is_dir() else []
    model = sorted(model_dir.iterdir()) if model_dir.is_dir() else []
    demo = _demo(result, scenario, run_dir, model_dir, data)
    write_results(
        out,
        {
            **result_kind("report").contents(in_json(result), next(iter(demo), None)),
            **demo,
            **content,
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


def finished(result: RunResult, scenario: Scenario, peak_bytes: int, command: str | None) -> RunResult:
    """Add what identifies the run: versions, machine, fleet, command."""
    from simulations.report.fleet_view import fleet_summary

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
        command=command,
    )
