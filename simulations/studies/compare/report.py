"""Files of a comparison: `compare.json`, `compare.csv`, `compare.html` and `compare.svg`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from fl_peel.errors import ReportError
from simulations.report.plots.style import Plot
from simulations.report.render import provenance, render, scenario_name
from simulations.report.result_files import to_plain
from simulations.report.tables.table_view import format_bytes, format_metric
from simulations.studies.compare.compare_plot import compare_plot
from simulations.studies.compare.paired import peel_over_view
from simulations.studies.compare.schema import CompareResult, CompareRow, check_compare
from simulations.studies.compare.tables import (
    ceilings_view,
    compare_details_view,
    compare_table,
    compare_view,
    refinement_view,
    verdict_view,
)
from simulations.studies.study_files import write_study


def write_compare(result: CompareResult, out_dir: Path) -> list[Path]:
    """Write the four files of a comparison into `out_dir`, all or none, and return their paths.

    `compare.csv` has one line a row of the table; `compare.svg` is the figure alone, for a README or a paper.
    Raises `ReportError`, naming the key's path, for a missing key, a wrong type, NaN or infinity.
    """
    plain = cast(CompareResult, to_plain(result, "comparison"))
    check_compare(plain)
    plotted = plotted_rows(plain["rows"])
    plot = compare_plot(plotted, plain["full_table"])
    return write_study(out_dir, plain, plain["rows"], compare_page(plain, plot), plot)


def plotted_rows(rows: Sequence[CompareRow]) -> list[CompareRow]:
    """Return the rows that the figure shows: one line a method, of the precisions that validation chose.

    Rows of budgets in which nothing fits have no place on an axis of bytes.
    """
    shown = [row for row in rows if row["stored_bytes_max"] > 0] or list(rows)
    return [{**row, "precision": ""} for row in shown if row["chosen"]]


def read_compare(path: Path) -> CompareResult:
    """Read `compare.json` (or the folder that holds it); raise `ReportError` if it is not a comparison."""
    file = path / "compare.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file}: cannot read a comparison ({error}); run `fl-peel compare --out`") from error
    check_compare(result, str(file))
    return cast(CompareResult, result)


def compare_page(result: CompareResult, plot: Plot) -> str:
    """Return the page of a comparison."""
    full = result["full_table"]
    name = scenario_name(result["scenario"]) if "scenario" in result else ""
    facts = [
        ("full table, fp32", format_bytes(full["bytes"])),
        ("Recall@20", format_metric(full["recall@20"])),
        ("NDCG@20", format_metric(full["ndcg@20"])),
        ("methods", str(len({row["method"] for row in result["rows"]}))),
    ]
    return render(
        "compare.html",
        title=f"{name}: methods under memory budgets" if name else "Methods under memory budgets",
        lead="Every method under the same budgets, with its bytes counted as stored on the device.",
        facts=facts,
        tables=[
            verdict_view(result),
            peel_over_view(result["rows"]),
            compare_view(result["rows"]),
            compare_view(result["rows"], "ndcg@20"),
            *([ceilings_view(result)] if result.get("ceilings") else []),
        ],
        refinement=refinement_view(result),
        details=compare_details_view(result["rows"]),
        plot=plot,
        **provenance(result, f"fl-peel compare {shlex.quote(name)}" if name else ""),
    )


__all__ = ["CompareResult", "compare_plot", "compare_table", "read_compare", "write_compare"]
