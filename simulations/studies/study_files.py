"""The four files of a study: `NAME.json`, `NAME.csv`, `NAME.html` and `NAME.svg`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.report.plots.style import Plot
from simulations.report.result_files import csv_bytes, json_bytes
from simulations.report.result_writer import write_results


def write_study(
    out_dir: Path,
    plain: Any,
    rows: Sequence[Mapping[str, Any]],
    page: str,
    plot: Plot,
    columns: Iterable[str] = (),
    more: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write them into ``out_dir``, named after the plot, all or none, and return their paths.

    plain: the result in plain JSON types; rows: of the CSV, of the given ``columns``, else of all keys in the order in
    which they first come; more: files that come with them; the SVG is the page's figure alone, for a README or a paper.

    Raises:
        ReportError: the folder cannot be written.
    """
    header = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    lines = [{key: row[key] for key in header if key in row} for row in rows]
    return write_results(
        out_dir,
        {
            f"{plot.name}.json": json_bytes(plain),
            f"{plot.name}.csv": csv_bytes(header, lines),
            f"{plot.name}.html": page.encode(),
            f"{plot.name}.svg": plot.svg.encode(),
            **(more or {}),
        },
    )


__all__ = ["write_study"]
