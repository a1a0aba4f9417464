"""`fl-peel run`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fl_peel.callbacks import Callback
from fl_peel.errors import ScenarioError
from fl_peel.events import OnEvent
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import AsJson, DataDir, Overrides, ScenarioName, Track, path_option, show
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
        from simulations.cli.estimates import show_estimate

        show_estimate(loaded, data_dir, seeds or 1, as_json=as_json)
        return

    callbacks = trackers(track or [])

    from simulations import runner
    from simulations.cli.live import shown_at
    from simulations.engine.folders import default_cache_dir
    from simulations.report.files_of_run import summary_tables
    from strategies.figures.schema import to_json

    shown = partial(shown_at, port=live_port if live_port is not None or not live else LIVE_PORT, title=loaded.name)
    cache_dir = None if no_cache else default_cache_dir()
    words = {"--seed": seed, "--profiles": profiles, "--nodes": nodes, "--data-dir": data_dir, "--seeds": seeds}
    command = _command(scenario, overrides or [], words, per_device)
    if loaded.data.timeline is not None:
        told = shown(err, quiet=quiet)
        _timeline(loaded, data_dir, out, command, seeds, told, callbacks, fresh=fresh, quiet=quiet, as_json=as_json)
        return
    if seeds is not None:
        assert out is not None
        from simulations.differences.seeds import SEEDS_PAGE, seeds_view

        with shown(err, quiet=quiet) as on_event:
            together = runner.run_seeds(
                loaded,
                seeds=seeds,
                data_dir=data_dir,
                out=out,
                cache_dir=cache_dir,
                on_event=on_event,
                callbacks=callbacks,
                command=command,
                fresh=fresh,
            )
        show(lambda: together, lambda: [seeds_view(together).to_rich()], out / SEEDS_PAGE, quiet=quiet, as_json=as_json)
        return
    with shown(err, quiet=quiet) as on_event:
        result = runner.run(
            loaded,
            data_dir=data_dir,
            out=out,
            cache_dir=cache_dir,
            on_event=on_event,
            callbacks=callbacks,
            command=command,
            fresh=fresh,
        )
    page = None if out is None else out / "report.html"
    show(lambda: to_json(result), lambda: summary_tables(result), page, quiet=quiet, as_json=as_json)


def _timeline(
    scenario: Scenario,
    data_dir: Path | None,
    out: Path | None,
    command: str,
    seeds: int | None,
    shown: AbstractContextManager[OnEvent],
    callbacks: list[Callback],
    *,
    fresh: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Replay a timeline, with one seed or several, and show it."""
    from fl_peel.plain import to_plain
    from simulations.timeline.report import timeline_tables
    from simulations.timeline.run import run_timeline
    from simulations.timeline.seeds import NAME, run_timeline_seeds, timeline_seeds_view

    page = "timeline.html" if seeds is None else f"{NAME}.html"
    with shown as on_event:
        if seeds is None:
            result = run_timeline(
                scenario,
                data_dir=data_dir,
                out=out,
                on_event=on_event,
                callbacks=callbacks,
                command=command,
                fresh=fresh,
            )
            figures, tables = to_plain(result, top_n=20), timeline_tables(result)
        else:
            assert out is not None
            together = run_timeline_seeds(
                scenario,
                seeds=seeds,
                data_dir=data_dir,
                out=out,
                on_event=on_event,
                callbacks=callbacks,
                command=command,
                fresh=fresh,
            )
            figures, tables = to_plain(together), [timeline_seeds_view(together).to_rich()]
    show(lambda: figures, lambda: tables, None if out is None else out / page, quiet=quiet, as_json=as_json)


def _command(scenario: str, overrides: list[str], options: Mapping[str, object], per_device: bool) -> str:
    """What to type to get the same report again, but for the folder."""
    words = ["fl-peel", "run", scenario]
    for override in overrides:
        words += ["--set", override]
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words + ["--per-device"] * per_device)
