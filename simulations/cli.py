"""The command line: `fl-peel run`, `compare`, `ablate`, `audit`, `scenarios`, `data`, `profiles`.

Exit codes: 0 done; 1 a bug of ours (with a traceback); 2 a mistake of the user's (one line on stderr); 130 Ctrl-C.
Heavy imports are inside the commands, so that `fl-peel --help` answers at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_peel import __version__
from fl_peel.errors import FlPeelError, ProfileError, ScenarioError
from simulations.cli_studies import add_studies

USER_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    help="Federated simulation of personalized elastic embeddings for on-device recommendation, on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Named data sets.", no_args_is_help=True)
profiles_app = typer.Typer(help="Fleets of devices: memory, links, availability.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(profiles_app, name="profiles")
add_studies(app)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder that holds data sets by name; default: $FL_PEEL_DATA, then the cache."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")]
FleetName = Annotated[str, typer.Argument(metavar="FLEET", help="A shipped fleet or a YAML file.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fl-peel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario or a YAML file.")] = "ml-100k",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a key, e.g. refinement.rounds=5; repeatable."),
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for report.html, report.json, ...")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the scenario's.")] = None,
    profiles: Annotated[str | None, typer.Option("--profiles", metavar="FLEET", help="Sets fleet.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Flower nodes; sets engine.nodes.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Pretrain anew, and do not keep the tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")] = False,
) -> None:
    """Run a scenario from the interactions file to the report."""
    from fl_peel.config import load_scenario
    from simulations.inputs import checked
    from simulations.progress import shown

    changes = list(overrides or [])
    if profiles is not None:
        changes.append(f"fleet={json.dumps(profiles)}")
    if nodes is not None:
        changes.append(f"engine.nodes={nodes}")
    loaded = checked(load_scenario(scenario, changes, seed=seed), out)  # before the heavy imports
    err = Console(stderr=True, highlight=False)
    if loaded.data.name is not None:
        _fetch(loaded.data.name, data_dir)

    from simulations import runner
    from simulations.report import summary_tables

    with shown(err, quiet=quiet) as on_event:
        result = runner.run(
            loaded,
            data_dir=data_dir,
            out=out,
            cache_dir=None if no_cache else runner.default_cache_dir(),
            on_event=on_event,
            command=_command(scenario, overrides or [], seed, profiles, nodes, data_dir),
        )
    if quiet:
        return
    for table in summary_tables(result):  # type: ignore[arg-type]
        _print(table)
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}")


def _command(
    scenario: str, overrides: list[str], seed: int | None, profiles: str | None, nodes: int | None, data: Path | None
) -> str:
    """What to type to get the same report again."""
    words = ["fl-peel", "run", scenario]
    for override in overrides:
        words += ["--set", override]
    options = {"--seed": seed, "--profiles": profiles, "--nodes": nodes, "--data-dir": data}
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)


def _fetch(name: str, data_dir: Path | None) -> None:
    """Download a named data set before the progress bars of a run begin, if it is not here."""
    from fl_peel.datasets import list_datasets, load_dataset

    here = [row.where for row in list_datasets(data_dir) if row.name == name]
    if not here or here[0] is None:
        load_dataset(name, data_dir=data_dir)


@app.command()
def bench(
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for bench.json.")] = None,
    device: Annotated[str, typer.Option("--device", help="Where cohorts train: cpu, cuda, cuda:N, torch-cpu.")] = "cpu",
    million: Annotated[
        bool, typer.Option("--million/--no-million", help="Also 10,000, 100,000 and a million synthetic devices.")
    ] = True,
    stock_devices: Annotated[int, typer.Option("--stock-devices", min=1, help="Nodes of the stock Flower app.")] = 1000,
    pfl_python: Annotated[
        Path | None, typer.Option("--pfl-python", help="Python that has pfl and torch installed: measure pfl, too.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure the engine on Gowalla against a plain Flower app, and up to a million devices; print bench.json."""
    from simulations.benchmarks import bench as measure
    from simulations.inputs import check_out
    from simulations.progress import shown
    from simulations.report_files import json_bytes

    if out is not None:
        check_out(out)
    folder = data_dir or os.environ.get("FL_PEEL_DATA", "")
    with shown(Console(stderr=True, highlight=False), quiet=quiet) as on_event:
        found = measure(
            folder and Path(folder).absolute(),
            out,
            device=device,
            million=million,
            stock_devices=stock_devices,
            pfl_python=pfl_python,
            on_event=on_event,
        )
    typer.echo(json_bytes(found))


@app.command()
def scenarios() -> None:
    """List the scenarios that ship, and what each asks."""
    from fl_peel.config import load_scenario, shipped_scenarios

    table = _table("scenario", "question")
    for name in shipped_scenarios():
        table.add_row(name, Text(load_scenario(name).question))
    _print(table)


@data_app.command("list")
def data_list(data_dir: DataDir = None) -> None:
    """List the named data sets, and where they are."""
    from fl_peel.datasets import list_datasets

    table = _table("name", "users", "items", "interactions", "folder")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in list_datasets(data_dir):
        where = str(row.where) if row.where else "not here; fl-peel data fetch"
        table.add_row(row.name, f"{row.num_users:,}", f"{row.num_items:,}", f"{row.num_interactions:,}", where)
    _print(table)


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="See fl-peel data list.")], data_dir: DataDir = None) -> None:
    """Download a data set, unless it is here, and verify it."""
    from fl_peel.datasets import fetch_dataset

    typer.echo(fetch_dataset(name, data_dir=data_dir))


@profiles_app.command("list")
def profiles_list() -> None:
    """List the fleets that ship or that installed packages registered."""
    from clients.fleet_files import PROFILES, read_source
    from clients.profiles import shipped_names

    table = _table("fleet", "classes", "description")
    for name in sorted({*shipped_names(), *PROFILES.names()}):
        try:
            document, _ = read_source(name)
        except ProfileError as error:  # one package that is broken hides nobody else's fleets
            table.add_row(name, "", Text(_one_line(error), style="red"))
            continue
        classes = ", ".join(profile.name for profile in document.profiles)
        table.add_row(name, Text(classes), Text(" ".join(document.description.split())))
    _print(table)


@profiles_app.command("show")
def profiles_show(fleet: FleetName) -> None:
    """Print a fleet as it is understood: classes with their shares, and the file's own text."""
    from clients.fleet_files import SHIPPED_FOLDER
    from clients.profiles import load_fleet, shipped_names

    loaded = load_fleet(fleet)
    table = _table("class", "share of devices", "precision")
    for profile, share in zip(loaded.profiles, loaded.shares, strict=True):
        table.add_row(Text(profile.name), f"{share:.2%}", profile.precision or "the scenario's")
    _print(table)
    path = SHIPPED_FOLDER / f"{fleet}.yaml" if fleet in shipped_names() else Path(fleet).expanduser()
    if path.is_file():
        typer.echo(path.read_text(encoding="utf-8-sig").rstrip())


@profiles_app.command("validate")
def profiles_validate(fleets: Annotated[list[str], typer.Argument(metavar="FLEET...", help="YAML files.")]) -> None:
    """Check fleet files: one line each, exit code 2 at the first that makes no sense."""
    from clients.profiles import load_fleet

    for fleet in fleets:
        loaded = load_fleet(fleet)
        typer.echo(f"{fleet}: {len(loaded.profiles)} device classes ({', '.join(loaded.names)})")


@profiles_app.command("sample")
def profiles_sample(
    fleet: FleetName,
    devices: Annotated[int, typer.Option("--devices", min=1, max=10_000_000, help="Devices to draw.")] = 1000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Rounds to follow budgets for.")] = 48,
    seed: Seed = 0,
    full_table_bytes: Annotated[
        int, typer.Option("--full-table-bytes", min=1, help="Of the fp32 item table that shares refer to.")
    ] = 10_000_000,
    out: Annotated[Path | None, typer.Option("--out", help="An SVG file to draw budgets to.")] = None,
) -> None:
    """Draw devices from a fleet; print what they are like, and plot their budgets over time (to a file with --out)."""
    from clients.profiles import load_fleet
    from simulations.fleet_view import fleet_figure, fleet_lines, fleet_table, sample_fleet
    from simulations.report_files import write_files

    if out is not None and (out.is_dir() or out.suffix.lower() != ".svg"):
        raise ScenarioError(f"{out}: not an SVG file; give --out a name that ends in .svg")
    sample = sample_fleet(
        load_fleet(fleet), seed=seed, num_devices=devices, rounds=rounds, full_table_bytes=full_table_bytes
    )
    _print(fleet_table(sample).to_rich())
    _print(fleet_lines(sample).to_rich())
    if out is not None:
        write_files(out.parent, {out.name: fleet_figure(sample).svg.encode()})
        typer.echo(out)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a file or a pipe has no width of its own: one row, one line
    console.print(table)


def main() -> None:
    """Entry point of `fl-peel`: runs a command and turns what happens into an exit code."""
    try:
        app(prog_name="fl-peel")
    except FlPeelError as mistake:
        print(f"fl-peel: error: {_one_line(mistake)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except SystemExit as leaving:
        if leaving.code != INTERRUPTED:  # what typer makes of Ctrl-C
            raise
        print("fl-peel: interrupted", file=sys.stderr)
        _leave(INTERRUPTED)  # the engine's threads may still wait for their workers


def _one_line(mistake: FlPeelError) -> str:
    """The message without line breaks, and without what a terminal would obey: files quoted in it may hold anything."""
    text = " ".join(str(mistake).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
