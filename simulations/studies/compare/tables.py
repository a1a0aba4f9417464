"""Tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from simulations.report.tables.view import (
    ABSENT,
    TableView,
    format_kilobytes,
    format_metric,
    format_ratio,
    format_share,
    metric_name,
)
from simulations.studies.compare.schema import CompareResult, CompareRow


def compare_view(rows: Sequence[CompareRow], metric: str = "recall@20") -> TableView:
    """One line a method and precision, one column a budget (share of the full table), its best marked.

    `metric` is `recall@20` or `ndcg@20`; where seeds gave a spread it follows the mean as '±'.
    """
    shares = sorted({row["share"] for row in rows})
    lines = list(dict.fromkeys((row["method"], row["group_aware"], row["precision"]) for row in rows))
    cells: dict[tuple[int, int], tuple[float, str]] = {}
    for row in rows:
        values: Mapping[str, Any] = row
        spread = values.get(f"{metric}_std")
        text = format_metric(values[metric]) + ("" if spread is None else f" ±{spread:.4f}")
        line = lines.index((row["method"], row["group_aware"], row["precision"]))
        cells[line, shares.index(row["share"])] = (values[metric], text)
    best = set()
    for column in range(len(shares)):
        top = max(value for (_, place), (value, _) in cells.items() if place == column)
        best |= {(i, column + 3) for i in range(len(lines)) if cells.get((i, column), (None, ""))[0] == top}
    body = tuple(
        (
            method,
            "yes" if aware else "no",
            precision,
            *(cells[i, j][1] if (i, j) in cells else ABSENT for j in range(len(shares))),
        )
        for i, (method, aware, precision) in enumerate(lines)
    )
    columns = ("method", "groups", "precision", *(format_share(share) for share in shares))
    note = "Columns: budget as a share of the fp32 full table. Groups: may serve each user group differently."
    return TableView(f"{metric_name(metric)} by budget", columns, body, 3, note, frozenset(best))


def compare_table(rows: Sequence[CompareRow], metric: str = "recall@20") -> Table:
    """Return the terminal's table of a comparison: methods down, budgets across."""
    return compare_view(rows, metric).to_rich()


def compare_details_view(rows: Sequence[CompareRow]) -> TableView:
    """Every row of a comparison with its bytes and seconds."""
    body = tuple(
        (
            *(
                row["method"],
                row["precision"],
                format_share(row["share"]),
                format_kilobytes(row["stored_bytes_max"]),
            ),
            *(format_metric(row["recall@20"]), format_metric(row["ndcg@20"]), f"{row['seconds']:,.1f}"),
        )
        for row in rows
    )
    columns = ("method", "precision", "share", "stored KB, max", "Recall@20", "NDCG@20", "seconds")
    return TableView("Every row", columns, body, 2, "1 KB = 1000 bytes. Seconds: spent to serve that budget.")


def refinement_view(result: CompareResult) -> TableView:
    """The full table: the global one, as user groups start with it, refined by the federation, refined centrally."""
    refinement = result["refinement"]
    base = refinement["none"]["recall@20"]
    rows = []
    for name, quality in (
        ("none: the global table", refinement["none"]),
        ("none: as groups start", refinement.get("start")),
        ("federated", refinement["federated"]),
        ("central", refinement["central"]),
    ):
        if quality is None:
            rows.append((name, ABSENT, ABSENT, ABSENT))
        else:
            recall, ndcg = quality["recall@20"], quality["ndcg@20"]
            rows.append((name, format_metric(recall), format_metric(ndcg), format_ratio(recall, base)))
    return TableView("Refinement of the full table", ("refinement", "Recall@20", "NDCG@20", "ratio"), tuple(rows))
