"""`fl-peel run` and `fl-peel deploy`, and what a run or a study will take, told before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fl_peel.errors import FlPeelError, ScenarioError
from fl_peel.events import Event
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import (
    AsJson,
    DataDir,
    NoCache,
    Overrides,
    Quiet,
    RunOut,
    ScenarioName,
    Seed,
    Track,
    Wide,
    print_json,
    print_table,
    show,
    shown_at,
    typed_command,
)
from simulations.trackers import tracker_kinds

if TYPE_CHECKING:
    from simulations.estimate import RunEstimate
    from simulations.report.table_view import TableView


def show_estimate(scenario: Scenario, data_dir: Path | None, seeds: int, *, as_json: bool) -> None:
    """Print what a run would take, as a table or as JSON."""
    from simulations.estimate import estimate

    figures = estimate(scenario, data_dir)
    if as_json:
        print_json(in_json(figures, seeds))
        return
    print_table(estimate_view(figures, seeds))


def print_estimate(study: str, scenario: Scenario, data_dir: Path | None, out: Path, seeds: int) -> None:
    """A line on stderr before a study: how long it may take. Of a mistake nothing is told here: the study tells it."""
    from simulations.engine.inputs import checked
    from simulations.estimate import STUDIES, WITHIN, estimate

    try:
        figures = estimate(checked(scenario, None), data_dir)
    except FlPeelError:
        return
    seconds = seeds * (figures.total_s + (STUDIES[study] - 1) * figures.study_s)
    text = f"estimate: {format_seconds(seconds)} and {_memory(figures)}, within a factor of {WITHIN:g}"
    kept = f"; rows in {out / 'checkpoints'} are not computed again" if (out / "checkpoints").is_dir() else ""
    typer.echo(text + kept, err=True)


def in_json(figures: RunEstimate, seeds: int) -> dict[str, Any]:
    """An estimate in numbers, with its sums and how far it may be off."""
    from simulations.estimate import WITHIN

    sums = {"bytes_per_device": figures.bytes_per_device, "total_bytes": figures.total_bytes}
    return {
        **asdict(figures),
        **sums,
        "seeds": seeds,
        "total_seconds": seeds * figures.total_s,
        "within_factor": WITHIN,
    }


def estimate_view(figures: RunEstimate, seeds: int) -> TableView:
    """An estimate as a table, and below it how far each part may be off."""
    from simulations.estimate import WITHIN
    from simulations.report.table_view import TableView, format_bytes

    parts = f"{figures.train:,} train, {figures.validation:,} validation, {figures.test:,} test interactions"
    asked = f"{figures.rounds}, with {figures.participants:,.0f} devices each"
    rows = [
        ("data", f"{figures.data}: {figures.devices:,} devices, {figures.items:,} items"),
        ("", parts),
        ("full table", f"{format_bytes(figures.full_table_bytes)}, {figures.blocks:,} blocks"),
        ("user groups", f"at most {figures.user_groups}"),
        ("rounds", asked),
        ("stage 1, per device", _moved(figures.stage1_download_bytes, figures.stage1_upload_bytes)),
        ("rounds, per device", _moved(figures.download_bytes, figures.upload_bytes)),
        ("all devices", format_bytes(figures.total_bytes)),
        ("memory", _memory(figures)),
        *((f"time: {name}", format_seconds(value)) for name, value in figures.seconds.items()),
        (f"time of {seeds} seeds" if seeds > 1 else "time", format_seconds(seeds * figures.total_s)),
    ]
    known = (
        f"Time and memory are right within a factor of {WITHIN:g}, bytes sent by devices in rounds within a factor of "
        "2; the rest follows from data, fleet and protocol"
    )
    note = "; ".join((known, *figures.notes))
    return TableView(f"Estimated cost of a run of {figures.scenario}", ("quantity", "estimate"), tuple(rows), 2, note)


def _moved(download_bytes: float, upload_bytes: float) -> str:
    from simulations.report.table_view import format_bytes

    return f"{format_bytes(download_bytes)} down, {format_bytes(upload_bytes)} up"


def _memory(figures: RunEstimate) -> str:
    return f"{figures.memory_bytes / 1e9:.1f} GB of memory"


def format_seconds(seconds: float) -> str:
    """Format an estimate in seconds, with no more digits than it has."""
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


LIVE_PORT = 8760
"""Where the growing run is served, unless another port is asked for."""


def run(
    scenario: ScenarioName = "ml-100k",
    overrides: Overrides = None,
    data_dir: DataDir = None,
    out: RunOut = None,
    seed: Seed = None,
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
    no_cache: NoCache = False,
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
    quiet: Quiet = False,
    as_json: AsJson = False,
    wide: Wide = False,
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
    given_trackers = tracker_kinds(track or [])
    loaded = checked(load_scenario(scenario, changes, seed=seed), out)  # before the heavy imports
    err = Console(stderr=True, highlight=False)
    if loaded.data.name is not None:
        require_dataset(loaded.data.name, data_dir)  # before the progress bars of a run begin
    if dry_run:
        show_estimate(loaded, data_dir, seeds or 1, as_json=as_json)
        return

    callbacks = [kind(place) for kind, place in given_trackers]
    from simulations.engine import engine

    port = live_port if live_port is not None or not live else LIVE_PORT
    # the nodes' processes import what they need while this one does
    with shown_at(err, port=port, title=loaded.name, quiet=quiet) as on_event, engine.starting(loaded):
        on_event(Event("start", 0, 1, loaded.name))
        from simulations import runner
        from simulations.engine.inputs import default_cache_dir
        from simulations.result_pages import result_kind
        from simulations.scenario_files import RunOptions

        options = RunOptions(
            out=out,
            data_dir=data_dir,
            cache_dir=None if no_cache else default_cache_dir(),
            on_event=on_event,
            callbacks=callbacks,
            command=typed_command(),
            fresh=fresh,
        )
        result = runner.run(loaded, options) if seeds is None else runner.run_seeds(loaded, seeds, options)
    one, several = ("report", "seeds") if loaded.data.timeline is None else ("timeline", "timeline-seeds")
    name = one if seeds is None else several
    page = None if out is None else out / f"{name}.html"
    show(lambda: runner.in_json(result), lambda: result_kind(name).page(result).terminal(), page)


# ---- `fl-peel deploy`: a scenario on Flower's deployment engine, on loopback


def deploy(
    scenario: ScenarioName = "ml-100k",
    overrides: Overrides = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=1, help="Number of SuperNodes, each with a share of the devices.")
    ] = 3,
    own: Annotated[
        list[Path] | None,
        typer.Option("--own", metavar="FILE", help="Interactions of one SuperNode; repeatable; needs data.catalogue."),
    ] = None,
    data_dir: DataDir = None,
    out: RunOut = None,
    seed: Seed = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Use neither TLS nor SuperNode authentication.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no output of the server.")] = False,
) -> None:
    """Run a scenario on a SuperLink and SuperNodes, as local processes that end with the command."""
    from simulations.engine.inputs import checked
    from simulations.scenario_files import load_scenario

    loaded = checked(load_scenario(scenario, overrides or [], seed=seed), out)

    from simulations.deployment.processes import node_configs, run_deployed
    from simulations.scenario_files import RunOptions

    configs = node_configs(loaded, nodes=nodes, own=own or [])
    run_deployed(
        loaded,
        configs,
        lambda _, line: None if quiet else typer.echo(line),
        RunOptions(data_dir=data_dir, out=out),
        secure=not insecure,
    )
    if out is not None and not quiet:
        typer.echo(f"report: {out / 'report.html'}")
