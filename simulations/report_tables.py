"""Results as tables of text: one `TableView` each, shown alike by the terminal (rich) and the page (HTML)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from simulations.report_schema import CompareResult, CompareRow, RunResult
from simulations.secure_rows import secure_rows

ABSENT = "–"


@dataclass(frozen=True)
class TableView:
    """A table ready to print: `rows` of text under `columns`, of which the first `num_labels` are words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_labels: int = 1
    note: str = ""
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)  # (row, column) to emphasize

    def to_rich(self) -> Table:
        """Return the same table for the terminal."""
        table = Table(
            title=self.title,
            caption=self.note or None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for index, column in enumerate(self.columns):
            table.add_column(Text(column), justify="left" if index < self.num_labels else "right")
        for i, row in enumerate(self.rows):
            table.add_row(*(Text(cell, style="bold" if (i, j) in self.best else "") for j, cell in enumerate(row)))
        return table


def format_bytes(num_bytes: float) -> str:
    """Four digits and a decimal unit: 10491136 -> '10.49 MB' (1 KB = 1000 B)."""
    if num_bytes < 1000:
        return f"{num_bytes:.4g} B"
    unit, scale = byte_unit(num_bytes)
    scaled = num_bytes / scale
    return f"{scaled:,.1f} {unit}" if scaled >= 99.995 else f"{scaled:.2f} {unit}"


def byte_unit(largest_bytes: float) -> tuple[str, int]:
    """Return the decimal unit that suits numbers up to `largest_bytes`, and its bytes: ('MB', 1000000)."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if largest_bytes >= scale:
            return unit, scale
    return "KB", 1000


def format_share(share: float) -> str:
    """A fraction as per cent, without spare zeros: 0.0025 -> '0.25%'."""
    return f"{share * 100:.4g}%"


def format_metric(value: float | None) -> str:
    """Four decimals; a dash for what was not measured."""
    return ABSENT if value is None else f"{value:.4f}"


def _kilobytes(num_bytes: float) -> str:
    return f"{num_bytes / 1000:,.1f}"


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.3f}" if reference > 0 else ABSENT


def full_table_view(result: RunResult) -> TableView:
    """The full fp32 table, as pretrained, as user groups start with it, and as refined."""
    full = result["full_table"]
    base = full["global"]["recall@20"]
    tables = [("global", full["global"]), ("refined", full["refined"])]
    if "start" in full:
        tables.insert(1, ("start of the user groups", full["start"]))
    rows = tuple(
        (
            name,
            format_bytes(full["bytes"]),
            format_metric(quality["recall@20"]),
            format_metric(quality["ndcg@20"]),
            _ratio(quality["recall@20"], base),
        )
        for name, quality in tables
    )
    return TableView("Full item table, fp32", ("table", "size", "Recall@20", "NDCG@20", "ratio"), rows)


def budgets_view(result: RunResult) -> TableView:
    """Elastic embeddings per budget; the ratio is Recall@20 over that of the full global table."""
    base = result["full_table"]["global"]["recall@20"]
    rows = tuple(
        (
            row["precision"],
            row["selector"],
            format_share(row["share"]),
            _kilobytes(row["budget_bytes"]),
            _kilobytes(row["stored_bytes_max"]),
            format_metric(row["recall@20"]),
            format_metric(row["ndcg@20"]),
            _ratio(row["recall@20"], base),
        )
        for row in sorted(result["budgets"], key=lambda row: (row["precision"], row["selector"], row["share"]))
    )
    columns = (
        *("precision", "selector", "share", "budget KB", "stored KB"),
        *("Recall@20", "NDCG@20", "ratio"),
    )
    note = (
        "Share: of the fp32 full table. Stored: the largest of any device. "
        "Ratio: Recall@20 over the full global table's. 1 KB = 1000 bytes."
    )
    return TableView("Elastic embeddings by budget", columns, rows, 2, note)


_CLASS_EXTRAS = {
    "download_bytes": ("down", format_bytes),
    "upload_bytes": ("up", format_bytes),
    "virtual_seconds": ("virtual s", lambda value: f"{value:,.1f}"),
    "energy_j": ("energy J", lambda value: f"{value:,.1f}"),
    "dropped": ("dropped", lambda value: f"{value:,}"),
}


def device_classes_view(result: RunResult) -> TableView:
    """Each device class under its own moving budget."""
    classes = result["device_classes"]
    extras = [key for key in _CLASS_EXTRAS if any(key in row for row in classes.values())]
    rows = []
    for name, row in classes.items():
        values: Mapping[str, Any] = row
        rows.append(
            (
                name,
                f"{row['devices']:,}",
                _kilobytes(row["budget_bytes_mean"]),
                format_metric(row["recall@20"]),
                f"{row['reselections']:,}",
                f"{row['budget_violations']:,}",
                *(_CLASS_EXTRAS[key][1](values[key]) if key in values else ABSENT for key in extras),
            )
        )
    columns = ("device class", "devices", "budget KB", "Recall@20", "re-selections", "violations")
    return TableView("Device classes", (*columns, *(_CLASS_EXTRAS[key][0] for key in extras)), tuple(rows))


def costs_view(result: RunResult) -> TableView:
    """Bytes and seconds: totals over the rounds, means per device, wall time per stage, peak memory."""
    rounds = result["rounds"]
    rows = [
        ("bytes down, all rounds", format_bytes(sum(row["download_bytes"] for row in rounds))),
        ("bytes up, all rounds", format_bytes(sum(row["upload_bytes"] for row in rounds))),
    ]
    if "bytes_per_device" in result:
        rows.append(("bytes down per device, mean", format_bytes(result["bytes_per_device"]["download_mean"])))
        rows.append(("bytes up per device, mean", format_bytes(result["bytes_per_device"]["upload_mean"])))
    failures = sum(row["failures"] for row in rounds)
    rows.append(("rounds", f"{len(rounds):,}"))
    rows.append(("failed devices, all rounds", f"{failures:,}"))
    rows += [(f"{stage}, s", f"{seconds:,.1f}") for stage, seconds in result["stages"].items()]
    rows.append(("all stages, s", f"{sum(result['stages'].values()):,.1f}"))
    if "peak_rss_bytes" in result:
        rows.append(("peak memory", format_bytes(result["peak_rss_bytes"])))
    rows += secure_rows(result["secure_aggregation"]) if "secure_aggregation" in result else []
    return TableView("Bytes and seconds", ("what", "value"), tuple(rows))


def summary_tables(result: RunResult) -> list[Table]:
    """Return the terminal's closing tables: full table, budgets, device classes, bytes and seconds."""
    views = (full_table_view(result), budgets_view(result), device_classes_view(result), costs_view(result))
    return [view.to_rich() for view in views]


def nested_views(title: str, values: Mapping[str, Any]) -> list[TableView]:
    """Show a free-form part (`fairness`): its scalars in one table, each list of records in its own."""
    scalars: list[tuple[str, str]] = []
    views: list[TableView] = []

    def walk(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                walk(f"{path}.{key}" if path else key, part)
        elif isinstance(value, list) and value and all(isinstance(record, Mapping) for record in value):
            columns = tuple(dict.fromkeys(key for record in value for key in record))
            rows = tuple(tuple(_scalar(record.get(key)) for key in columns) for record in value)
            views.append(TableView(f"{title}: {path}", columns, rows))
        elif isinstance(value, list):
            scalars.append((path, ", ".join(_scalar(part) for part in value)))
        else:
            scalars.append((path, _scalar(value)))

    walk("", values)
    head = [TableView(title, ("what", "value"), tuple(scalars))] if scalars else []
    return head + views


def _scalar(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value) and abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.4f}" if isinstance(value, float) and 0.001 <= abs(value) < 1000 else f"{value}"


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
                _kilobytes(row["stored_bytes_max"]),
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
            rows.append((name, format_metric(recall), format_metric(ndcg), _ratio(recall, base)))
    return TableView("Refinement of the full table", ("refinement", "Recall@20", "NDCG@20", "ratio"), tuple(rows))


def metric_name(metric: str) -> str:
    """How a metric key is written for readers: 'ndcg@20' -> 'NDCG@20'."""
    return metric.replace("recall", "Recall").replace("ndcg", "NDCG").replace("_", " ")
