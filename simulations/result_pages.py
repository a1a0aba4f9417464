"""The pages of finished results, written again from their JSON: nothing runs, and no figure changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fl_peel.errors import ReportError
from fl_peel.json_codec import from_plain
from simulations.engine.inputs import DEMO
from simulations.report.result_files import write_files
from simulations.report.run_files import run_page
from simulations.studies.audit.report import audit_page, audit_plot
from simulations.studies.compare.compare_plot import compare_plot
from simulations.studies.compare.report import compare_page, leaderboard_page
from simulations.studies.schema import AuditResult, CompareResult, Leaderboard, typed
from simulations.timeline.report import timeline_page
from strategies.figures.schema import from_json
from strategies.timeline.timeline_figures import TimelineResult


def rebuild_pages(folder: Path) -> list[Path]:
    """Write the page beside every result in a folder, as this version makes it, and return their paths: all or none.

    Raises:
        ReportError: there is no result, one of them cannot be read, or the folder cannot be written.
    """
    page_of_file = {file: page for name, page in PAGES.items() if (file := folder / name).is_file()}
    if not page_of_file:
        raise ReportError(f"{folder}: no result ({', '.join(PAGES)}); give the --out folder of a finished command")
    return write_files(
        folder, {f"{file.stem}.html": page(_read(file), str(file)) for file, page in page_of_file.items()}
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file}: cannot read a result ({error}); run again with --out") from error


def _run(plain: Any, where: str) -> bytes:
    result = from_json(plain, where)
    demo = DEMO if Path(where).with_name(DEMO).is_file() else None
    return run_page(result, demo).encode()


def _compare(plain: Any, where: str) -> bytes:
    if isinstance(plain, dict) and "tuning" in plain:
        board = typed(Leaderboard, plain, where)
        return leaderboard_page(board, compare_plot(board), plain).encode()
    result = typed(CompareResult, plain, where)
    return compare_page(result, compare_plot(result), plain).encode()


def _timeline(plain: Any, where: str) -> bytes:
    return timeline_page(from_plain(TimelineResult, plain, where, top_n=20)).encode()


def _audit(plain: Any, where: str) -> bytes:
    result = typed(AuditResult, plain, where)
    return audit_page(result, audit_plot(result.rows), plain).encode()


PAGES: Mapping[str, Callable[[Any, str], bytes]] = MappingProxyType(
    {"report.json": _run, "compare.json": _compare, "timeline.json": _timeline, "audit.json": _audit}
)
"""Results by their file, and how each becomes a page."""
