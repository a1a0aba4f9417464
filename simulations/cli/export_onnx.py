"""`fl-peel export-onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.console import path_option


def export_onnx(
    artefact: Annotated[Path, typer.Argument(metavar="ME.peel", help="Stored embedding of a device.")],
    out: Annotated[Path | None, path_option("--out", "ONNX file; default: ME.onnx in the same folder.", "FILE")] = None,
) -> None:
    """Export a stored embedding as an ONNX model that scores all items of the catalogue; needs the extra onnx."""
    from simulations.engine.inputs import check_file

    target = artefact.with_suffix(".onnx") if out is None else out
    check_file(target, "--out")

    from fl_peel.blocks.onnx_export import to_onnx
    from simulations.report.result_files import write_files

    write_files(target.absolute().parent, {target.name: to_onnx(artefact)})
    typer.echo(f"model: {target}")
