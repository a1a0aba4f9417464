"""What commands share: tables on the terminal, errors as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fl_peel.errors import FlPeelError, ReportError

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder that holds data sets by name; default: $FL_PEEL_DATA, then the cache."),
]

Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME=PLACE", help="Tell a tracker: tensorboard=DIR, mlflow=DIR; repeatable."),
]


def path_option(name: str, text: str, metavar: str = "PATH") -> Any:
    """An option that is a path; an empty one, which would mean the current folder, is refused."""

    def read(given: str) -> Path:
        if not str(given).strip():
            raise ReportError(f"{name}: is empty; give a path, or . for the current folder")
        return Path(given)

    return typer.Option(name, parser=read, metavar=metavar, help=text)


def new_table(*columns: str) -> Table:
    """An empty table without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Write a table to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a file or a pipe has no width of its own: one row, one line
    console.print(table)


def one_line(mistake: FlPeelError) -> str:
    """The message without line breaks, and without what a terminal would obey: files quoted in it may hold anything."""
    text = " ".join(str(mistake).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
