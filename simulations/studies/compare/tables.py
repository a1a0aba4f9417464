"""Tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from simulations.report.tables.labels import metric_name
from simulations.report.tables.table_view import (
    ABSENT,
    TableView,
    format_interval,
    format_kilobytes,
    format_metric,
    format_ratio,
    format_share,
)
from simulations.studies.compare.schema import CompareResult, CompareRow


def compare_view(rows: Sequence[CompareRow], metric: str = "recall@20") -> TableView:
    """One line a method, one column a budget (share of the full table): the figure of the precision that validation
    chose for it there, and which that is. Marked in each column: the method that validation likes best, whatever the
    test says of it.

    `metric` is `recall@20` or `ndcg@20`; where seeds gave a spread it follows the mean as '±'.
    """
    shares = sorted({row["share"] for row in rows})
    servers = {row["method"] for row in rows if row.get("ceiling")}
    lines = list(dict.fromkeys((row["method"], row["group_aware"]) for row in rows))
    lines.sort(key=lambda line: line[0] in servers)  # rivals first, each in its place
    cells: dict[tuple[int, int], str] = {}
    liked: dict[int, tuple[float, int]] = {}
    for row in (row for row in rows if row["chosen"]):
        values: Mapping[str, Any] = row
        spread = values.get(f"{metric}_std")
        text = format_metric(values[metric]) + ("" if spread is None else f" ±{spread:.4f}")
        line, column = lines.index((row["method"], row["group_aware"])), shares.index(row["share"])
        cells[line, column] = f"{text} {row['precision']}".rstrip()
        if row["method"] not in servers and (column not in liked or row["validation_recall@20"] > liked[column][0]):
            liked[column] = (row["validation_recall@20"], line)
    body = tuple(
        (
            method,
            "server" if method in servers else "yes" if aware else "no",
            trials(rows, method),
            *(cells.get((i, j), ABSENT) for j in range(len(shares))),
        )
        for i, (method, aware) in enumerate(lines)
    )
    columns = ("method", "groups", "trials", *(format_share(share) for share in shares))
    note = (
        "Test metrics of the settings chosen on validation, with the chosen precision; bold: the best method on "
        "validation at each budget. Columns: budget as a share of the fp32 full table. Groups: whether each user group "
        "may have its own table; server: an upper bound from a server that has the data of all devices. Trials: "
        "settings evaluated on validation per budget, precisions included (the largest number over budgets)."
    )
    best = frozenset((line, column + 3) for column, (_, line) in liked.items())
    return TableView(f"{metric_name(metric)} by budget", columns, body, 2, note, best)


def trials(rows: Sequence[CompareRow], method: str) -> str:
    """Settings of a method that were looked at on validation for one budget, all precisions together; the most."""
    by_share: dict[float, int] = {}
    for row in rows:
        if row["method"] == method and "trials" in row:
            by_share[row["share"]] = by_share.get(row["share"], 0) + row["trials"]
    return str(max(by_share.values())) if by_share else ABSENT


def ceilings_view(result: CompareResult) -> TableView:
    """Return the methods of a server that has the data and knows no budget."""
    body = tuple(
        (
            row["method"],
            format_kilobytes(row["server_bytes"]) if row["server_bytes"] else ABSENT,
            str(row["trials"]),
            *(format_metric(row[key]) if row["server_bytes"] else ABSENT for key in CEILING_METRICS),
            row["note"],
        )
        for row in result.get("ceilings", ())
    )
    columns = ("method", "KB on the server", "trials", "validation Recall@20", "Recall@20", "NDCG@20", "setting")
    note = "Upper bounds that no device stores. 1 KB = 1000 bytes."
    return TableView("Upper bounds: server with all data", columns, body, 1, note)


CEILING_METRICS: tuple[Literal["validation_recall@20", "recall@20", "ndcg@20"], ...] = (
    "validation_recall@20",
    "recall@20",
    "ndcg@20",
)
VERDICT = {
    "group_exposure": "group exposure",
    "group_popularity": "group popularity",
    "single_budget": "trained for the budget",
}


def verdict_view(result: CompareResult) -> TableView:
    """PEEL against the lines that matter, each as validation chose it: ratios of recall on the test."""
    rows = tuple(
        (
            format_share(line["share"]),
            line["precision"],
            format_metric(line["recall@20"]),
            *(_over(line, f"to_{name}") for name in ("full_table", *VERDICT)),
            _over(line, "to_best_without_groups"),
            line.get("rival", ABSENT),
            _over(line, "to_best_with_groups"),
            line.get("rival_with_groups", ABSENT),
        )
        for line in result["summary"]["budgets"]
    )
    columns = (
        *("budget", "precision", "Recall@20", "global table", *VERDICT.values()),
        *("best without groups", "method", "best with groups", "method"),
    )
    note = (
        "Test recall of PEEL, and its ratio to that of: the full global table; group tables ranked by exposure, and by "
        "popularity, refined under that order; PEEL trained for that budget alone; the best methods on validation "
        "without user groups and with them, variants of PEEL excluded. In brackets: paired 95 % intervals."
    )
    return TableView("PEEL relative to other methods", columns, rows, 2, note)


def _over(row: Mapping[str, Any], name: str) -> str:
    """A ratio of the summary, with its paired interval where there is one."""
    low, high = row.get(f"{name}_interval", (None, None))
    return format_interval(row.get(name), low, high, 3)


def compare_table(rows: Sequence[CompareRow], metric: str = "recall@20") -> Table:
    """Return the terminal's table of a comparison: methods down, budgets across."""
    return compare_view(rows, metric).to_rich()


def compare_details_view(rows: Sequence[CompareRow]) -> TableView:
    """Return every row of a comparison with its bytes, trials and seconds."""
    body = tuple(
        (
            *(
                row["method"],
                row["precision"] + (" (chosen)" if row["chosen"] else ""),
                format_share(row["share"]),
                format_kilobytes(row["stored_bytes_max"]),
            ),
            format_metric(row["validation_recall@20"]),
            *(format_metric(row["recall@20"]), format_metric(row["ndcg@20"]), f"{row['seconds']:,.1f}"),
            str(row.get("trials", ABSENT)),
        )
        for row in rows
    )
    columns = (
        *("method", "precision", "share", "stored KB, max", "validation Recall@20"),
        *("Recall@20", "NDCG@20", "seconds", "trials"),
    )
    return TableView(
        "All rows",
        columns,
        body,
        2,
        "1 KB = 1000 bytes. Seconds: time to serve that budget; trials: settings evaluated on validation.",
    )


def refinement_view(result: CompareResult) -> TableView:
    """The full table: the global one, as user groups start with it, refined by the federation, refined centrally."""
    refinement = result["refinement"]
    base = refinement["none"]["recall@20"]
    rows = []
    for name, quality in (
        ("none: global table", refinement["none"]),
        ("none: group tables before refinement", refinement.get("start")),
        ("federated", refinement["federated"]),
        ("central", refinement["central"]),
    ):
        if quality is None:
            rows.append((name, ABSENT, ABSENT, ABSENT))
        else:
            figures: Mapping[str, Any] = quality
            recall, ndcg = quality["recall@20"], quality["ndcg@20"]
            low, high = figures.get("recall@20_interval", (None, None))
            whole = format_interval(recall, low, high)
            rows.append((name, whole, format_metric(ndcg), format_ratio(recall, base)))
    return TableView(
        "Refinement of the full table", ("refinement", "Recall@20", "NDCG@20", "relative to global"), tuple(rows)
    )
