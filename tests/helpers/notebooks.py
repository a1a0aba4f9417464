"""The shipped notebook, executed; ``python -m tests.helpers.notebooks`` writes it anew with its outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

from tests.helpers.root import ROOT

QUICKSTART = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
MOST_CHARACTERS = 60_000
"""Of one output in the file; larger ones are left to whoever runs it."""


def executed(path: Path, folder: str) -> Any:
    """A notebook as it is once its cells have run in a folder."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources, record_timing=False
    ).execute()
    return notebook


def slim(notebook: Any) -> Any:
    """The same without what a log says and without large outputs, of which the words stay."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
        for output in cell.outputs:
            output.data = {kind: one for kind, one in output.data.items() if len(one) <= MOST_CHARACTERS}
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def words(notebook: Any) -> list[str]:
    """What cells are worth, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(slim(executed(QUICKSTART, temporary)), QUICKSTART)
