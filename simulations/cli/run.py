"""`fl-peel run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fl_peel.errors import ScenarioError
from fl_peel.events import Event
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import AsJson, DataDir, Overrides, ScenarioName, Track, command_line, path_option, show
from simulations.trackers.registry import trackers

LIVE_PORT = 8760
"""Where the growing run is served, unless another port is asked for."""


def run(
    scenario: ScenarioName = "ml-100k",
    overrides: Overrides = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, path_option("--out", "Output folder for report.html, report.json, ...")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed, in place of the scenario's.")] = None,
    profiles: Annotated[
        str | None, typer.Option("--profiles", metavar="FLEET", help="Use this fleet (key fleet).")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="Number of Flower nodes (key engine.nodes).")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Number of seeds to run; needs --out.")] = None,
    per_device: Annotated[
        bool, typer.Option("--per-device", help="Also write per-device.parquet (key evaluation.per_device).")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Pretrain again, without reading or writing the cache.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start from scratch, even if --out holds a stopped run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate bytes, memory and time of the run; write nothing.")
    ] = False,
    track: Track = None,
    live: Annotated[
        bool, typer.Option("--live", help=f"Show the progress of the run on a local web page, at port {LIVE_PORT}.")
    ] = False,
    live_port: Annotated[
        int | None, typer.Option("--live-port", min=0, max=65535, help="Port of the local web page; 0: any free port.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no tables.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a scenario, from the interactions to the report."""
    from simulations.engine.inputs import checked, require_dataset
    from simulations.scenario_files import load_scenario

    changes = list(overrides or [])
    if profiles is not None:
        changes.append(f"fleet={json.dumps(profiles)}")
    if nodes is not None:
        changes.append(f"engine.nodes={nodes}")
    if per_device:
        changes.append("evaluation.per_device=true")
    if (per_device or seeds is not None) and out is None:
        asked = "--per-device" if per_device else f"--seeds {seeds}"
        raise ScenarioError(f"{asked}: needs an output folder; give --out")
    loaded = checked(load_scenario(scenario, changes, seed=seed), out)  # before the heavy imports
    err = Console(stderr=True, highlight=False)
    if loaded.data.name is not None:
        require_dataset(loaded.data.name, data_dir)  # before the progress bars of a run begin
    if dry_run:
        from simulations.cli.run_estimate import show_estimate

        show_estimate(loaded, data_dir, seeds or 1, as_json=as_json)
        return

    callbacks = trackers(track or [])
    words = {
        "--set": overrides,
        "--seed": seed,
        "--profiles": profiles,
        "--nodes": nodes,
        "--data-dir": data_dir,
        "--seeds": seeds,
    }
    given: dict[str, Any] = {
        "data_dir": data_dir,
        "out": out,
        "callbacks": callbacks,
        "command": command_line(["run", scenario], words) + " --per-device" * per_device,
        "fresh": fresh,
    }

    from simulations.cli.live import shown_at
    from simulations.engine import engine

    port = live_port if live_port is not None or not live else LIVE_PORT
    # the nodes' processes import what they need while this one does
    with shown_at(err, port=port, title=loaded.name, quiet=quiet) as on_event, engine.starting(loaded):
        on_event(Event("start", 0, 1, loaded.name))
        given["on_event"] = on_event
        if loaded.data.timeline is not None:
            shown = _run_timeline(loaded, seeds, given)
        else:
            from simulations.engine.folders import default_cache_dir

            shown = _run(loaded, seeds, given | {"cache_dir": None if no_cache else default_cache_dir()})
    show(shown.figures, shown.tables, shown.page, quiet=quiet, as_json=as_json)


@dataclass(frozen=True)
class _Shown:
    """What a run comes to: its figures and tables, made when they are printed, and its page, if it has one."""

    figures: Callable[[], Any]
    tables: Callable[[], Iterable[Table]]
    page: Path | None


def _run(scenario: Scenario, seeds: int | None, given: Mapping[str, Any]) -> _Shown:
    """Run a scenario with one seed or several. given: what else the runner is told."""
    from simulations import runner

    out: Path | None = given["out"]
    if seeds is not None:
        from simulations.differences.seeds import SEEDS_PAGE, seeds_view

        assert out is not None
        together = runner.run_seeds(scenario, seeds=seeds, **given)
        return _Shown(lambda: together, lambda: [seeds_view(together).to_rich()], out / SEEDS_PAGE)
    result = runner.run(scenario, **given)
    from simulations.report.run_files import summary_tables  # with what draws figures: not before the run
    from strategies.figures.schema import to_json

    page = None if out is None else out / "report.html"
    return _Shown(lambda: to_json(result), lambda: summary_tables(result), page)


def _run_timeline(scenario: Scenario, seeds: int | None, given: Mapping[str, Any]) -> _Shown:
    """Replay a timeline with one seed or several."""
    from fl_peel.json_codec import to_plain
    from simulations.timeline.report import timeline_tables
    from simulations.timeline.run_timeline import run_timeline
    from simulations.timeline.timeline_seeds import NAME, run_timeline_seeds, timeline_seeds_view

    out: Path | None = given["out"]
    page = None if out is None else out / ("timeline.html" if seeds is None else f"{NAME}.html")
    if seeds is None:
        result = run_timeline(scenario, **given)
        return _Shown(lambda: to_plain(result, top_n=20), lambda: timeline_tables(result), page)
    together = run_timeline_seeds(scenario, seeds=seeds, **given)
    return _Shown(lambda: to_plain(together), lambda: [timeline_seeds_view(together).to_rich()], page)
