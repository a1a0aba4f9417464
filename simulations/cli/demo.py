"""`fl-peel demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.console import DataDir, path_option


def demo(
    run: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder OUT/model of `fl-peel run --out OUT`, or OUT.")],
    out: Annotated[Path, path_option("--out", "HTML file of the page.", "FILE")] = Path("demo.html"),
    data_dir: DataDir = None,
) -> None:
    """Write an interactive page: choose a device and a budget, see its stored blocks and recommendations."""
    from simulations.engine.inputs import check_file

    check_file(out, "--out")

    from fl_peel.model.model_files import ABOUT
    from simulations.demo import demo_of_run
    from simulations.report.result_files import write_files

    made = demo_of_run(run.absolute().parent if (run / ABOUT).is_file() else run, data_dir)
    write_files(out.absolute().parent, {out.name: made.page.encode()})
    if made.lacks:
        typer.echo(f"note: {made.lacks}", err=True)
    typer.echo(f"page: {out}")


# ---- `fl-peel report`


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR ...", help="Output folders of finished commands.")],
) -> None:
    """Write the pages of finished runs, comparisons, audits and timelines again from their JSON, without a run."""
    from simulations.result_pages import rebuild_pages

    for folder in folders:
        for page in rebuild_pages(folder):
            typer.echo(f"report: {page}")
