"""The commands about finished runs: `fl-peel export`, `serve-device`, `export-onnx`, `demo`, `report` and `plot`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fl_peel.errors import ArtifactError, FlPeelError, ModelError, ReportError, shortened
from fl_peel.scenario.settings import PRECISIONS, Precision
from simulations.cli.console import AsJson, DataDir, one_line, path_option, print_json, read_size

if TYPE_CHECKING:
    from fl_peel.model.device import Embedding
    from fl_peel.model.model import Model

SIDE = ".items.json"
"""Ending of the file beside an artefact: own ids by catalogue row, and rows that were seen."""
FORMATS = ("svg", "pdf", "png")
"""Formats of figures for papers."""
SIXTH = Decimal("0.000001")
QUIT = ("q", "quit", "exit")
_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder model/ in the output folder of a run.")]
_Precision = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        click_type=click.Choice(PRECISIONS),
        metavar="PRECISION",
        help=f"Precision of the blocks: {', '.join(PRECISIONS)}; default: that of the run.",
    ),
]
_Top = Annotated[int, typer.Option("--top", min=1, help="Number of recommended items to print.")]


def export(
    model: _Model,
    budget: Annotated[str, typer.Option("--budget", help="Memory budget of the device, e.g. 100KB.")],
    out: Annotated[Path, path_option("--out", "File for the stored embedding, e.g. me.peel.", "FILE")],
    user_items: Annotated[
        list[str] | None,
        typer.Option("--user-items", metavar="ID,ID,...", help="Items of the user, oldest first; repeatable."),
    ] = None,
    items_file: Annotated[
        Path | None, path_option("--items-file", "File with items of the user, one id per line.", "FILE")
    ] = None,
    precision: _Precision = None,
    top: _Top = 10,
    as_json: AsJson = False,
) -> None:
    """Write what a new device stores under a budget, and print its recommendations: rank, id, score, title."""
    from simulations.engine.inputs import check_file

    num_bytes, given = read_size(budget), [*_own_ids(user_items or []), *_lines(items_file)]
    check_file(out, "--out")
    side = out.with_suffix(SIDE)

    from fl_peel.model.model import load
    from simulations.report.result_files import write_files

    loaded = load(model)
    embedding = loaded.device(given).embedding(num_bytes, precision)
    content = embedding.to_bytes()
    write_files(out.absolute().parent, {out.name: content, side.name: _side(loaded, embedding)})
    typer.echo(f"{out}: {_held(embedding, len(content))}", err=True)
    if as_json:
        print_json(_in_json(embedding, len(content), top))
        return
    for line in _ranked(embedding, top):
        typer.echo(line)


def serve_device(model: _Model, precision: _Precision = None, top: _Top = 10) -> None:
    """Simulate a device of a saved model in the terminal: enter items and budgets, see recommendations; q ends."""

    from fl_peel.model.model import load

    loaded = load(model)
    typer.echo(f"{loaded.num_items:,} items, {loaded.num_groups} user groups, {loaded.precision} blocks; q ends")
    session = _Session(loaded, precision, top)
    for line in _typed(lambda: session.question):
        try:
            for line_out in session.answer(line):
                typer.echo(line_out)
        except FlPeelError as mistake:
            typer.echo(f"error: {one_line(mistake)}", err=True)


@dataclass
class _Session:
    """A device at the terminal; first the items that it had are asked for, then budgets."""

    model: Model
    precision: Precision | None
    top: int
    held: Embedding | None = None
    items: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        if not self.items:
            return "your items (ids, separated by commas)> "
        return "budget (e.g. 100KB)> " if self.held is None else "another budget> "

    def answer(self, line: str) -> list[str]:
        if not self.items:
            given = tuple(_own_ids([line]))
            device = self.model.device(given)
            self.items = given
            return [f"user group {device.group} of {self.model.num_groups}"]
        num_bytes = read_size(line, "budget")
        moved, self.held = self._moved(num_bytes)
        return [f"{moved}; {_held(self.held, self.held.num_bytes)}", *_ranked(self.held, self.top)]

    def _moved(self, num_bytes: int) -> tuple[str, Embedding]:
        before = self.held
        if before is None:
            first = self.model.device(self.items).embedding(num_bytes, self.precision)
            return "downloaded", first
        if num_bytes < before.budget_bytes:
            return "shrunk, 0 B downloaded", before.shrink(num_bytes)
        delta = before.grow(num_bytes)
        return f"grown, {delta.num_bytes:,} B downloaded", delta.embedding


def _typed(question: Callable[[], str]) -> Iterator[str]:
    """Lines that somebody types, or that a pipe says, until one ends it or there are no more."""
    while True:
        typer.echo(question(), nl=False)
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            typer.echo(line.rstrip("\n"))
        word = line.strip()
        if not line or word.lower() in QUIT:
            return
        if word:
            yield word


def _ranked(embedding: Embedding, top: int) -> list[str]:
    """Rank, own id, score and, where it has one, title of the best, a line each."""
    titles = embedding.device.source.catalogue.titles
    return [
        "\t".join((f"{rank}", name, six_digits(score), *([titles[name]] if name in titles else [])))
        for rank, (name, score) in enumerate(embedding.top(top), start=1)
    ]


def _in_json(embedding: Embedding, num_bytes: int, top: int) -> dict[str, object]:
    stored, titles = embedding.stored, embedding.device.source.catalogue.titles
    return {
        "bytes": num_bytes,
        "budget_bytes": embedding.budget_bytes,
        "blocks": len(stored.blocks),
        "precision": stored.precision,
        "user_group": embedding.device.group,
        "items": [
            {"rank": rank, "id": name, "score": score} | ({"title": titles[name]} if name in titles else {})
            for rank, (name, score) in enumerate(embedding.top(top), 1)
        ],
    }


def six_digits(score: float) -> str:
    """As other languages round, too: what lies in the middle goes up."""
    return f"{Decimal(score + 0.0).quantize(SIXTH, ROUND_HALF_UP):f}"


def _held(embedding: Embedding, num_bytes: int) -> str:
    stored = embedding.stored
    return (
        f"{num_bytes:,} of {embedding.budget_bytes:,} B, {len(stored.blocks):,} blocks, {stored.precision}, "
        f"user group {embedding.device.group}"
    )


def _side(model: Model, embedding: Embedding) -> bytes:
    """What a reader without this package needs beside an artefact."""
    import json

    ids, titles = model.catalogue.by_row(), model.catalogue.titles
    content: dict[str, object] = {"ids": ids, "seen": embedding.seen_rows.tolist()}
    if titles:
        content["titles"] = [titles.get(name) for name in ids]
    return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _own_ids(texts: list[str]) -> list[str]:
    """Ids that are separated by commas."""
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


def _lines(file: Path | None) -> list[str]:
    """Ids that stand in a file, one a line: they may have commas in them.

    Raises:
        ModelError: the file cannot be read.
    """
    if file is None:
        return []
    from fl_peel.files import file_kind

    if file_kind(file) != "file":
        raise ModelError(f"{file}: no such file; correct --items-file")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read ({str(error)[:80]}); write one id a line, in UTF-8") from error
    return [line.strip() for line in lines if line.strip()]


# ---- `fl-peel export-onnx`


def export_onnx(
    artefact: Annotated[Path, typer.Argument(metavar="ME.peel", help="Stored embedding of a device.")],
    out: Annotated[Path | None, path_option("--out", "ONNX file; default: ME.onnx in the same folder.", "FILE")] = None,
) -> None:
    """Export a stored embedding as an ONNX model that scores all items of the catalogue; needs the extra onnx."""
    from simulations.engine.inputs import check_file

    if artefact.is_dir():
        raise ArtifactError(f"{artefact}: is a folder; give the file that fl-peel export wrote")
    target = artefact.with_suffix(".onnx") if out is None else out
    check_file(target, "--out")

    from fl_peel.blocks.onnx_export import to_onnx
    from simulations.report.result_files import write_files

    write_files(target.absolute().parent, {target.name: to_onnx(artefact)})
    typer.echo(f"model: {target}")


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
    form: Annotated[
        str,
        typer.Option(
            "--format", click_type=click.Choice(FORMATS), metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."
        ),
    ] = "pdf",
    width: Annotated[
        str, typer.Option("--width", metavar="WIDTH", help="Width: column or page of a paper, or inches.")
    ] = "column",
    out: Annotated[Path | None, path_option("--out", "Output folder; default: OUT/figures.")] = None,
) -> None:
    """Save the figures of a finished command for a paper: all, or those named."""
    from simulations.report.drawing import PAPER_WIDTHS_IN

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
