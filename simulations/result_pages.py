"""Kinds of results, and the pages of finished ones, written again from their JSON: nothing runs, no figure changes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fl_peel.errors import ReportError
from fl_peel.plugins import did_you_mean
from simulations.engine.inputs import DEMO
from simulations.report.drawing import PaperFigures, for_paper
from simulations.report.result_files import write_files

if TYPE_CHECKING:
    from simulations.report.render import ResultKind

RESULTS: Mapping[str, str] = MappingProxyType(
    {
        "report": "report.run_files:RUN",
        "compare": "studies.compare_report:COMPARE",
        "seeds": "report.seeds:SEEDS",
        "timeline": "report.timeline_report:TIMELINE",
        "timeline-seeds": "report.timeline_report:TIMELINE_SEEDS",
        "audit": "studies.audit:AUDIT",
        "ablate": "studies.ablate:ABLATE",
        "sweep": "sweep:SWEEP",
    }
)
"""Kinds of results by the name of their files, each where it is described."""


def result_kind(name: str) -> ResultKind[Any]:
    """Return a kind of result by the name of its files; what draws its figures is not imported before."""
    module, _, attribute = RESULTS[name].partition(":")
    kind: ResultKind[Any] = getattr(import_module(f"simulations.{module}"), attribute)
    return kind


def rebuild_pages(folder: Path) -> list[Path]:
    """Write the page beside every result in a folder, as this version makes it, and return their paths: all or none.

    Raises:
        ReportError: there is no result, one of them cannot be read, or the folder cannot be written.
    """
    return write_files(folder, dict(_pages(folder)))


def paper_figures(folder: Path, form: str, width_in: float, names: Collection[str]) -> Mapping[str, bytes]:
    """Draw the figures of every result in a folder for a paper, and return them by file name. names: of some; none: all
    of them.

    Raises:
        ReportError: there is no result, one of them cannot be read, or there is no figure of such a name.
    """
    figures = PaperFigures(form, width_in, names or None)
    with for_paper(figures):
        list(_pages(folder))
    for name in names:
        if name not in figures.seen:
            raise ReportError(f"--figure: {folder} has no figure {name!r}; {did_you_mean(name, figures.seen)}")
    return figures.files


def _pages(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Make the page of every result in a folder, each with its file's name."""
    names = [name for name in RESULTS if (folder / f"{name}.json").is_file()]
    if not names:
        files = ", ".join(f"{name}.json" for name in RESULTS)
        raise ReportError(f"{folder}: no result ({files}); give the --out folder of a finished command")
    for name in names:
        file, kind = folder / f"{name}.json", result_kind(name)
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ReportError(f"{file}: cannot read a result ({error}); run again with --out") from error
        result = kind.read(plain, str(file))
        demo = DEMO if name == "report" and (folder / DEMO).is_file() else None
        yield f"{name}.html", replace(kind.page(result), demo=demo).html(result).encode()
