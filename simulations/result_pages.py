"""The pages of finished results, written again from their JSON: nothing runs, and no figure changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from fl_peel.errors import ReportError
from fl_peel.json_codec import from_plain
from fl_peel.plugins import did_you_mean
from simulations.engine.inputs import DEMO
from simulations.report.drawing import PaperFigures, Plot, for_paper
from simulations.report.result_files import write_files
from simulations.report.run_files import run_page
from simulations.report.timeline_report import timeline_page
from simulations.studies.ablate_report import ablate_page, ablate_plot
from simulations.studies.audit_report import audit_page, audit_plot
from simulations.studies.compare_report import compare_page, compare_plot, leaderboard_page
from simulations.studies.schema import AblateResult, AuditResult, CompareResult, Leaderboard, StudyResult, typed
from simulations.sweep.report import SweepResult, sweep_page
from strategies.figures.schema import from_json
from strategies.timeline.timeline_figures import TimelineResult

Study = TypeVar("Study", bound=StudyResult)


def rebuild_pages(folder: Path) -> list[Path]:
    """Write the page beside every result in a folder, as this version makes it, and return their paths: all or none.

    Raises:
        ReportError: there is no result, one of them cannot be read, or the folder cannot be written.
    """
    return write_files(folder, {f"{file.stem}.html": page for file, page in _pages(folder)})


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


def _pages(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Make the page of every result in a folder, by the result's file."""
    page_of_file = {file: page for name, page in PAGES.items() if (file := folder / name).is_file()}
    if not page_of_file:
        raise ReportError(f"{folder}: no result ({', '.join(PAGES)}); give the --out folder of a finished command")
    for file, page in page_of_file.items():
        yield file, page(_read(file), str(file))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file}: cannot read a result ({error}); run again with --out") from error


def _run(plain: Any, where: str) -> bytes:
    result = from_json(plain, where)
    demo = DEMO if Path(where).with_name(DEMO).is_file() else None
    return run_page(result, demo).encode()


def _study(
    kind: type[Study], plot: Callable[[Study], Plot], page: Callable[[Study, Plot, Mapping[str, Any]], str]
) -> Callable[[Any, str], bytes]:
    """Return how the JSON of a study becomes its page."""

    def of_json(plain: Any, where: str) -> bytes:
        result = typed(kind, plain, where)
        return page(result, plot(result), plain).encode()

    return of_json


def _compare(plain: Any, where: str) -> bytes:
    if isinstance(plain, dict) and "tuning" in plain:
        return _study(Leaderboard, compare_plot, leaderboard_page)(plain, where)
    return _study(CompareResult, compare_plot, compare_page)(plain, where)


def _timeline(plain: Any, where: str) -> bytes:
    return timeline_page(from_plain(TimelineResult, plain, where, top_n=20)).encode()


def _sweep(plain: Any, where: str) -> bytes:
    return sweep_page(from_plain(SweepResult, plain, where)).encode()


PAGES: Mapping[str, Callable[[Any, str], bytes]] = MappingProxyType(
    {
        "report.json": _run,
        "compare.json": _compare,
        "timeline.json": _timeline,
        "audit.json": _study(AuditResult, audit_plot, audit_page),
        "ablate.json": _study(AblateResult, ablate_plot, ablate_page),
        "sweep.json": _sweep,
    }
)
"""Results by their file, and how each becomes a page."""
