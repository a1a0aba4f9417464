"""`fl-peel data`: named data sets."""

from __future__ import annotations

from typing import Annotated

import typer

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
