"""`fl-peel profiles`: fleets of devices."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fl_peel.errors import ProfileError, ScenarioError
from fl_peel.file_kind import file_kind
from simulations.cli.console import AsJson, Wide, new_table, one_line, path_option, print_json, print_table

profiles_app = typer.Typer(help="Fleets of devices: memory, network and availability.", no_args_is_help=True)


Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")]


FleetName = Annotated[str, typer.Argument(metavar="FLEET", help="Name of a shipped fleet, or a YAML file.")]


@profiles_app.command("list")
def profiles_list(as_json: AsJson = False) -> None:
    """List the fleets that are shipped or registered by installed packages."""
    from clients.fleet.files import PROFILES, read_source, shipped_names

    table = new_table("fleet", "classes", "description")
    fleets: list[dict[str, object]] = []
    for name in sorted({*shipped_names(), *PROFILES.names()}):
        try:
            document, _ = read_source(name)
        except ProfileError as error:  # one package that is broken hides nobody else's fleets
            table.add_row(name, "", Text(one_line(error), style="red"))
            fleets.append({"fleet": name, "error": one_line(error)})
            continue
        classes, description = [profile.name for profile in document.profiles], " ".join(document.description.split())
        table.add_row(name, Text(", ".join(classes)), Text(description))
        fleets.append({"fleet": name, "classes": classes, "description": description})
    if as_json:
        print_json(fleets)
    else:
        print_table(table)


@profiles_app.command("show")
def profiles_show(fleet: FleetName, as_json: AsJson = False) -> None:
    """Print the classes of a fleet with their shares, and the text of its file."""
    from clients.fleet.files import SHIPPED_FOLDER, shipped_names
    from clients.fleet.fleet import load_fleet

    loaded = load_fleet(fleet)
    if as_json:
        classes = [
            {"class": profile.name, "share": share, "precision": profile.precision}
            for profile, share in zip(loaded.profiles, loaded.shares, strict=True)
        ]
        print_json({"fleet": fleet, "classes": classes})
        return
    table = new_table("class", "share of devices", "precision")
    for profile, share in zip(loaded.profiles, loaded.shares, strict=True):
        table.add_row(Text(profile.name), f"{share:.2%}", profile.precision or "the scenario's")
    print_table(table)
    path = SHIPPED_FOLDER / f"{fleet}.yaml" if fleet in shipped_names() else Path(os.path.expanduser(fleet))
    if file_kind(path) == "file":
        typer.echo(path.read_text(encoding="utf-8-sig").rstrip())


@profiles_app.command("validate")
def profiles_validate(
    fleets: Annotated[list[str], typer.Argument(metavar="FLEET...", help="YAML files of fleets.")],
    as_json: AsJson = False,
) -> None:
    """Check fleet files: one line each, exit code 2 at the first invalid one."""
    from clients.fleet.fleet import load_fleet

    checked_fleets: list[dict[str, object]] = []
    for fleet in fleets:
        loaded = load_fleet(fleet)
        checked_fleets.append({"fleet": fleet, "classes": loaded.names})
        text = f"{fleet}: {len(loaded.profiles)} device classes ({', '.join(loaded.names)})"
        typer.echo(text, err=as_json)
    if as_json:
        print_json(checked_fleets)


@profiles_app.command("sample")
def profiles_sample(
    fleet: FleetName,
    devices: Annotated[
        int, typer.Option("--devices", min=1, max=10_000_000, help="Number of devices to sample.")
    ] = 1000,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=10_000, help="Number of rounds over which budgets are followed.")
    ] = 48,
    seed: Seed = 0,
    full_table_bytes: Annotated[
        int,
        typer.Option(
            "--full-table-bytes", min=1, help="Size of the fp32 full item table, for budgets given as shares."
        ),
    ] = 10_000_000,
    out: Annotated[Path | None, path_option("--out", "SVG file for a plot of the budgets.")] = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Sample devices from a fleet; print their properties, and plot their budgets over time (to a file with --out)."""
    from clients.fleet.fleet import load_fleet
    from simulations.engine.inputs import check_out
    from simulations.fleet.fleet_view import fleet_figure, fleet_lines, fleet_table, in_json, sample_fleet
    from simulations.report.result_files import write_files

    if out is not None and (out.is_dir() or out.suffix.lower() != ".svg"):
        raise ScenarioError(f"{out}: not an SVG file; give --out a name that ends in .svg")
    if out is not None:
        check_out(out.parent)
    sample = sample_fleet(
        load_fleet(fleet), seed=seed, num_devices=devices, rounds=rounds, full_table_bytes=full_table_bytes
    )
    if as_json:
        print_json(in_json(sample))
    else:
        print_table(fleet_table(sample), wide=wide)
        print_table(fleet_lines(sample).to_rich())
    if out is not None:
        write_files(out.parent, {out.name: fleet_figure(sample).svg.encode()})
        typer.echo(out, err=as_json)


@profiles_app.command("from-meminfo")
def profiles_from_meminfo(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Recordings of /proc/meminfo, one per device.")
    ],
    out: Annotated[Path | None, path_option("--out", "CSV file for the trace; default: stdout.")] = None,
    recommender_share: Annotated[
        float,
        typer.Option(
            "--recommender-share", help="Share of the available memory for the recommender, above 0 and at most 1."
        ),
    ] = 1.0,
    every: Annotated[
        float | None,
        typer.Option(
            "--every", metavar="SECONDS", help="Seconds between snapshots, if the recording has no lines with the time."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert recordings of /proc/meminfo to a trace that fleets replay (docs/profiles.md explains how to record)."""
    from simulations.engine.inputs import check_file
    from simulations.fleet.meminfo import read_recordings, trace_bytes, trace_table
    from simulations.report.result_files import write_files

    if out is not None:
        check_file(out, "--out")
        if out.suffix.lower() != ".csv":
            raise ProfileError(f"{out}: not a CSV file; give --out a name that ends in .csv")
        if out.resolve() in {file.resolve() for file in files}:
            raise ProfileError(f"{out}: is one of the recordings; give --out another name")
    recordings = read_recordings(files, every)
    trace = trace_bytes(recordings, recommender_share)
    if out is None and not as_json:
        typer.echo(trace.decode(), nl=False)
        return
    if out is not None:
        write_files(out.absolute().parent, {out.name: trace})
    if as_json:
        rows = csv.DictReader(io.StringIO(trace.decode()))
        print_json([{**row, "time_s": float(row["time_s"]), "memory_bytes": int(row["memory_bytes"])} for row in rows])
    else:
        print_table(trace_table(recordings, recommender_share))
    if out is not None:
        typer.echo(out, err=as_json)


@profiles_app.command("schema")
def profiles_schema() -> None:
    """Print the JSON Schema of fleet files, with which editors complete keys and mark mistakes.

    Save it, and start a fleet file with `# yaml-language-server: $schema=FILE`.
    """
    from clients.fleet.reference import fleet_schema

    typer.echo(json.dumps(fleet_schema(), indent=2, ensure_ascii=False))
