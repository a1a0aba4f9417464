"""The commands about what there is: `fl-peel data`, `cache`, `scenarios` and `profiles`."""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fl_peel.errors import ProfileError, ReportError, ScenarioError, shortened
from fl_peel.files import file_kind
from simulations.cli.console import (
    AsJson,
    DataDir,
    Overrides,
    ScenarioName,
    Wide,
    new_table,
    one_line,
    path_option,
    print_json,
    print_table,
)

data_app = typer.Typer(help="Data sets: list and download.", no_args_is_help=True)


@data_app.command("list")
def data_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the data sets and their folders."""
    from fl_peel.data.datasets import list_datasets

    rows = list_datasets(data_dir)
    if as_json:
        print_json(rows)
        return
    table = new_table("name", "users", "items", "interactions", "folder")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        where = str(row.where) if row.where else "not downloaded; fl-peel data fetch"
        table.add_row(row.name, f"{row.num_users:,}", f"{row.num_items:,}", f"{row.num_interactions:,}", where)
    print_table(table)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="Name of the data set, see fl-peel data list.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Download a data set, unless it is there already, and verify it."""
    from fl_peel.data.datasets import fetch_dataset

    folder = fetch_dataset(name, data_dir=data_dir)
    if as_json:
        print_json({"name": name, "where": folder})
    else:
        typer.echo(folder)


MOST_SHOWN = 240
"""Characters of what made an entry, in a table."""
LONGEST_VALUE = 24
"""Characters of a value in it: digests are longer."""
UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def cache(
    folder: Annotated[
        Path | None,
        typer.Argument(help="An --out folder with unfinished work; default: the cache of pretrained tables."),
    ] = None,
    clear: Annotated[
        str | None, typer.Option("--clear", metavar="NAME", help="Remove the entry of this name, or all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what runs keep to go on from: what made each entry, its size and its age."""
    from fl_peel.store import Store
    from simulations.engine.inputs import default_cache_dir
    from simulations.resumable import CHECKPOINTS, NAME, owned_store

    places = [default_cache_dir()] if folder is None else [folder, folder / NAME, folder / CHECKPOINTS]
    entries = [entry for place in places for entry in Store(place).entries()]
    if clear is not None:
        if clear != "all" and clear not in {entry.folder.name for entry in entries}:
            raise ReportError(
                f"--clear: no entry {clear!r} in {places[0]}; give a name that fl-peel cache lists, or all"
            )
        with ExitStack() as stack:
            for place in sorted({entry.folder.parent for entry in entries}):
                stack.enter_context(owned_store(place)).remove("" if clear == "all" else clear)
        entries = [entry for place in places for entry in Store(place).entries()]
    rows = [
        {
            "name": entry.folder.name,
            "made_by": entry.key,
            "num_bytes": entry.num_bytes,
            "age_s": max(time.time() - entry.made, 0.0),
        }
        for entry in entries
    ]
    if as_json:
        print_json({"folder": str(places[0]), "entries": rows})
        return
    table = new_table("name", "size", "age", "made by")
    table.columns[1].justify = "right"
    for row in rows:
        size, made_by = f"{row['num_bytes'] / 1e6:,.1f} MB", ", ".join(_words(row["made_by"]))
        table.add_row(row["name"], size, _age(row["age_s"]), shortened(made_by, MOST_SHOWN))
    typer.echo(f"{places[0]}: {len(rows)} entries, {sum(row['num_bytes'] for row in rows) / 1e6:,.1f} MB")
    print_table(table)


def _words(node: Any, path: str = "") -> Iterator[str]:
    """Yield the short values of a key, each by its path."""
    if isinstance(node, Mapping):
        for name, part in node.items():
            yield from _words(part, f"{path}.{name}" if path else name)
    elif isinstance(node, list):
        for part in node:
            yield from _words(part, path)
    elif node is not None and len(str(node)) <= LONGEST_VALUE:
        yield f"{path}={node}"


def _age(seconds: float) -> str:
    unit, length = next((one for one in UNITS if seconds >= 2 * one[1]), UNITS[-1])
    return f"{seconds // length:.0f} {unit}"


INDENT = "    "

scenarios_app = typer.Typer(help="Scenarios: list, show, and describe their keys.")


@scenarios_app.callback(invoke_without_command=True)
def scenarios(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped scenarios and their questions."""
    if context.invoked_subcommand is not None:
        return
    from simulations.scenario_files import load_scenario, shipped_scenarios

    questions = {name: load_scenario(name).question for name in shipped_scenarios()}
    if as_json:
        print_json([{"scenario": name, "question": question} for name, question in questions.items()])
        return
    table = new_table("scenario", "question")
    for name, question in questions.items():
        table.add_row(name, Text(question))
    print_table(table)


@scenarios_app.command("show")
def scenarios_show(
    scenario: ScenarioName = "ml-100k",
    keys: Annotated[
        bool, typer.Option("--keys", help="Describe every key: type, unit, default, limits and meaning.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print a scenario with the value of every key, as YAML for `fl-peel run`."""
    from simulations.scenario_files import load_scenario

    loaded = load_scenario(scenario, overrides or [])
    content = loaded.model_dump(mode="json")
    if keys:
        _show_keys(content, as_json)
    elif as_json:
        print_json(content)
    else:
        typer.echo(loaded.to_yaml(), nl=False)


def _show_keys(content: dict[str, Any], as_json: bool) -> None:
    from fl_peel.scenario.reference import ScenarioKey, keys_of, scenario_schema, text_of

    def value_of(key: ScenarioKey) -> Any:
        """What the scenario has there; None below what it leaves out."""
        node: Any = content
        for part in key.path.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    keys = keys_of(scenario_schema())
    if as_json:
        print_json([{**vars(key), "value": value_of(key)} for key in keys])
        return
    console = Console()
    width = console.width if console.is_terminal else 400  # a file or a pipe has no width of its own
    for key in keys:
        facts = [key.type, key.unit, f"default {key.default}" if key.default else "", key.limits]
        typer.secho(f"{key.path}: {text_of(value_of(key))}", bold=True)
        for line in ("; ".join(fact for fact in facts if fact), key.description):
            typer.echo(textwrap.fill(line, width, initial_indent=INDENT, subsequent_indent=INDENT))


@scenarios_app.command("schema")
def scenarios_schema() -> None:
    """Print the JSON Schema of scenario files, with which editors complete keys and mark mistakes.

    Save it, and start a scenario file with `# yaml-language-server: $schema=FILE`.
    """
    from fl_peel.scenario.reference import scenario_schema

    typer.echo(json.dumps(scenario_schema(), indent=2, ensure_ascii=False))


profiles_app = typer.Typer(help="Fleets of devices: memory, network and availability.", no_args_is_help=True)


Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the sample.")]


FleetName = Annotated[str, typer.Argument(metavar="FLEET", help="Name of a shipped fleet, or a YAML file.")]


@profiles_app.command("list")
def profiles_list(as_json: AsJson = False) -> None:
    """List the fleets that are shipped or registered by installed packages."""
    from clients.fleet.fleet import PROFILES, read_source, shipped_names

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
    from clients.fleet.fleet import SHIPPED_FOLDER, load_fleet, shipped_names

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
    from simulations.report.fleet_view import fleet_figure, fleet_lines, fleet_table, in_json, sample_fleet
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
    from simulations.meminfo import read_recordings, trace_bytes, trace_table
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
    from clients.fleet.fleet import fleet_schema

    typer.echo(json.dumps(fleet_schema(), indent=2, ensure_ascii=False))
