"""`fl-peel data`: named data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.cli.console import DataDir, new_table, print_table

data_app = typer.Typer(help="Named data sets.", no_args_is_help=True)


@data_app.command("list")
def data_list(data_dir: DataDir = None) -> None:
    """List the named data sets, and where they are."""
    from fl_peel.data.datasets import list_datasets

    table = new_table("name", "users", "items", "interactions", "folder")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in list_datasets(data_dir):
        where = str(row.where) if row.where else "not here; fl-peel data fetch"
        table.add_row(row.name, f"{row.num_users:,}", f"{row.num_items:,}", f"{row.num_interactions:,}", where)
    print_table(table)


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="See fl-peel data list.")], data_dir: DataDir = None) -> None:
    """Download a data set, unless it is here, and verify it."""
    from fl_peel.data.datasets import fetch_dataset

    typer.echo(fetch_dataset(name, data_dir=data_dir))
