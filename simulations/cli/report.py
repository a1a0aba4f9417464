"""`fl-peel report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR ...", help="Output folders of finished commands.")],
) -> None:
    """Write the pages of finished runs, comparisons, audits and timelines again from their JSON, without a run."""
    from simulations.result_pages import rebuild_pages

    for folder in folders:
        for page in rebuild_pages(folder):
            typer.echo(f"report: {page}")
