"""`fl-peel demo`, `report` and `plot`: what is made of finished results, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_peel.errors import ReportError, shortened
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


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR ...", help="Output folders of finished commands.")],
) -> None:
    """Write the pages of finished runs, comparisons, audits and timelines again from their JSON, without a run."""
    from simulations.result_pages import rebuild_pages

    for folder in folders:
        for page in rebuild_pages(folder):
            typer.echo(f"report: {page}")


def plot(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a finished command.")],
    figure: Annotated[
        list[str] | None, typer.Option("--figure", metavar="NAME", help="Name of a figure, e.g. budgets; repeatable.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="Format of the files: svg, pdf or png.")] = "pdf",
    width: Annotated[
        str, typer.Option("--width", metavar="WIDTH", help="Width: column or page of a paper, or inches.")
    ] = "column",
    out: Annotated[Path | None, path_option("--out", "Output folder; default: OUT/figures.")] = None,
) -> None:
    """Save the figures of a finished command for a paper: all, or those named."""
    from simulations.report.drawing import FORMATS, PAPER_WIDTHS_IN

    if form not in FORMATS:
        raise ReportError(f"--format: {shortened(repr(form), 20)} is unknown; choose from {', '.join(FORMATS)}")
    try:
        width_in = PAPER_WIDTHS_IN.get(width) or float(width)
    except ValueError:
        width_in = 0.0
    if not 2 <= width_in <= 20:
        raise ReportError(f"--width: {shortened(repr(width), 20)} is no width; give column, page, or 2 to 20 inches")

    from simulations.report.result_files import write_files
    from simulations.result_pages import paper_figures

    for file in write_files(out or folder / "figures", paper_figures(folder, form, width_in, figure or [])):
        typer.echo(f"figure: {file}")
