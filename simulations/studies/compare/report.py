"""Files of a comparison: `compare.json`, `compare.csv`, `compare.parquet`, `compare.html` and `compare.svg`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from simulations.report.drawing import Plot
from simulations.report.render import page
from simulations.report.section import Chart, Section
from simulations.report.table_view import format_bytes, format_metric
from simulations.studies.compare.compare_plot import compare_plot
from simulations.studies.compare.tables import (
    ceilings_view,
    compare_details_view,
    compare_view,
    peel_over_view,
    refinement_view,
    verdict_view,
)
from simulations.studies.schema import CompareResult, typed, write_study


def write_compare(result: Mapping[str, Any], out_dir: Path) -> list[Path]:
    """Write the files of a comparison into `out_dir`, as :func:`simulations.studies.schema.write_study` does."""
    return write_study(out_dir, result, CompareResult, compare_plot, compare_page)


def compare_tables(content: Any) -> list[Table]:
    """Return the tables that the terminal shows. content: of the JSON."""
    result = typed(CompareResult, content)
    views = [compare_view(result.rows), verdict_view(result), peel_over_view(result.rows)]
    return [view.to_rich() for view in (*views, *([ceilings_view(result)] if result.ceilings else []))]


def compare_page(result: CompareResult, plot: Plot, source: Mapping[str, Any]) -> str:
    """Return the page of a comparison. source: content of its JSON."""
    full, name = result.full_table, result.name
    caption = (
        "Solid: each user group has its own table; dashed: one table for all. Error bars: 95 % intervals over devices "
        "(and seeds, where there are several) of each point alone."
    )
    quality = (
        Chart(lambda: plot, caption),
        verdict_view(result),
        peel_over_view(result.rows),
        compare_view(result.rows),
        compare_view(result.rows, "ndcg@20"),
        ceilings_view(result) if result.ceilings else None,
    )
    return page(
        [
            Section("quality", "Quality against bytes", quality),
            Section("refinement", "Refinement", (refinement_view(result),)),
            Section("rows", "All rows", (compare_details_view(result.rows),)),
        ],
        title=f"{name}: methods under memory budgets" if name else "Methods under memory budgets",
        lead="Every method under the same budgets, with its bytes counted as stored on the device.",
        facts=[
            ("full table, fp32", format_bytes(full.bytes)),
            ("Recall@20", format_metric(full.recall.value)),
            ("NDCG@20", format_metric(full.ndcg.value)),
            ("methods", str(len({row.method for row in result.rows}))),
        ],
        source=source,
        command=f"fl-peel compare {shlex.quote(name)}" if name else "",
    )


__all__ = ["compare_page", "compare_tables", "write_compare"]
