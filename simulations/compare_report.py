"""From a comparison to its files: `compare.json`, `compare.csv`, `compare.html` and `compare.svg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from simulations.plot_style import Plot
from simulations.plots_compare import compare_alt, compare_plot
from simulations.report_files import csv_bytes, json_bytes, to_plain, write_files
from simulations.report_page import compare_page
from simulations.report_schema import CompareResult, CompareRow, ReportError, check_compare
from simulations.report_tables import compare_table

__all__ = ["CompareResult", "compare_plot", "compare_table", "read_compare", "write_compare"]


def write_compare(result: CompareResult, out_dir: Path) -> list[Path]:
    """Write the four files of a comparison into `out_dir`, all or none, and return their paths.

    `compare.csv` has one line a row of the table; `compare.svg` is the figure alone, for a README or a paper.
    Raises `ReportError`, naming the key's path, for a missing key, a wrong type, NaN or infinity.
    """
    plain = cast(CompareResult, to_plain(result, "comparison"))
    check_compare(plain)
    rows: list[Mapping[str, Any]] = list(plain["rows"])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    plotted = plotted_rows(plain["rows"])
    svg = compare_plot(plotted, plain["full_table"])
    plot = Plot("compare", "Quality against bytes", compare_alt(plotted), svg)
    return write_files(
        out_dir,
        {
            "compare.json": json_bytes(plain),
            "compare.csv": csv_bytes(columns, rows),
            "compare.html": compare_page(plain, plot).encode(),
            "compare.svg": svg.encode(),
        },
    )


def plotted_rows(rows: Sequence[CompareRow]) -> list[CompareRow]:
    """What the figure shows: where rows say which precision validation chose, one line a method of these alone.

    Rows of budgets in which nothing fits have no place on an axis of bytes.
    """
    shown = [row for row in rows if row["stored_bytes_max"] > 0] or list(rows)
    if not any("chosen" in row for row in shown):
        return shown
    return [{**row, "precision": ""} for row in shown if row.get("chosen")]


def read_compare(path: Path) -> CompareResult:
    """Read `compare.json` (or the folder that holds it); raise `ReportError` if it is not a comparison."""
    file = path / "compare.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file}: cannot read a comparison ({error}); run `fl-peel compare --out`") from error
    check_compare(result, str(file))
    return cast(CompareResult, result)
