"""The commands about what lies on the disk: `fl-peel data` and `fl-peel cache`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_peel.errors import ReportError, shortened
from simulations.cli.console import AsJson, DataDir, new_table, print_json, print_table

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
    from simulations.engine.folders import default_cache_dir
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
