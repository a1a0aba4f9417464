"""Tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from fl_peel.figures import Estimate
from simulations.report.labels import metric_name
from simulations.report.table_view import (
    ABSENT,
    TableColumn,
    TableView,
    format_estimate,
    format_kilobytes,
    format_margin,
    format_metric,
    format_point,
    format_ratio,
    format_share,
    table_of,
)
from simulations.report.verdict import significance
from simulations.studies.schema import CompareResult, CompareRow, Verdict


def compare_view(rows: Sequence[CompareRow], metric: str = "recall@20") -> TableView:
    """One line a method, one column a budget (share of the full table): the figure of the precision that validation
    chose for it there, and which that is. Marked in each column: the method that validation likes best, whatever the
    test says of it.

    `metric` is `recall@20` or `ndcg@20`; where seeds gave a spread it follows the mean as '±'.
    """
    shares = sorted({row.share for row in rows})
    servers = {row.method for row in rows if row.ceiling}
    lines = list(dict.fromkeys((row.method, row.group_aware) for row in rows))
    lines.sort(key=lambda line: line[0] in servers)  # rivals first, each in its place
    cells: dict[tuple[int, int], str] = {}
    liked: dict[int, tuple[float, int]] = {}
    for row in (row for row in rows if row.chosen):
        line, column = lines.index((row.method, row.group_aware)), shares.index(row.share)
        cells[line, column] = f"{format_margin(row.spread(metric))} {row.precision}".rstrip()
        if row.method not in servers and (column not in liked or row.validation_recall > liked[column][0]):
            liked[column] = (row.validation_recall, line)
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
        if row.method == method and row.trials is not None:
            by_share[row.share] = by_share.get(row.share, 0) + row.trials
    return str(max(by_share.values())) if by_share else ABSENT


def ceilings_view(result: CompareResult) -> TableView:
    """Return the methods of a server that has the data and knows no budget."""
    body = tuple(
        (
            row.method,
            format_kilobytes(row.server_bytes) if row.server_bytes else ABSENT,
            str(row.trials),
            *(
                format_metric(value) if row.server_bytes else ABSENT
                for value in (row.validation_recall, row.recall.value, row.ndcg.value)
            ),
            row.note,
        )
        for row in result.ceilings
    )
    columns = ("method", "KB on the server", "trials", "validation Recall@20", "Recall@20", "NDCG@20", "setting")
    note = "Upper bounds that no device stores. 1 KB = 1000 bytes."
    return TableView("Upper bounds: server with all data", columns, body, 1, note)


SIGNIFICANT = 0.05
"""Corrected p-value below which two methods are said to differ."""
VERDICT = {
    "group_exposure": "group exposure",
    "group_popularity": "group popularity",
    "single_budget": "trained for the budget",
}


def verdict_view(result: CompareResult) -> TableView:
    """PEEL against the lines that matter, each as validation chose it: ratios of recall on the test."""
    rows = tuple(
        (
            format_share(line.share),
            line.precision,
            format_metric(line.recall),
            *(format_ratio(line.ratios.get(f"to_{name}")) for name in ("full_table", *VERDICT)),
            format_ratio(line.ratios.get("to_best_without_groups")),
            line.rival or ABSENT,
            format_ratio(line.ratios.get("to_best_with_groups")),
            line.rival_with_groups or ABSENT,
        )
        for line in result.summary.budgets
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


RIVALS = {"to_best_without_groups": "without user groups", "to_best_with_groups": "with user groups"}
"""Ratios to the best other method of a kind, and the kind in words."""


def compare_verdicts(result: CompareResult) -> tuple[str, ...]:
    """Say what PEEL has of the recall of the best other methods, at the smallest budget and at the first at which it is
    not significantly worse than any of them, and of that of a cached list.
    """
    lines = result.summary.budgets
    keeps_up = (line for line in lines if all((ratio.high or ratio.value) >= 1 for ratio in _to_rivals(line).values()))
    shown = [*lines[:1], *[line for line in [next(keeps_up, None)] if line is not None and line is not lines[0]]]
    sentences = []
    for line in shown:
        known = [
            f"{format_ratio(ratio)} times that of {rival}, the best other method {RIVALS[key]}{significance(ratio)}"
            for (key, ratio), rival in zip(_to_rivals(line).items(), (line.rival, line.rival_with_groups), strict=False)
        ]
        if known:
            sentences.append(f"At {format_share(line.share)} of the bytes the Recall@20 of PEEL is {'; '.join(known)}.")
    for row in result.rows:
        if row.method == "cached-list" and row.chosen and row.peel_over and shown and row.share == shown[-1].share:
            sentences.append(
                f"On a static split as here it has at {format_share(row.share)} {format_ratio(row.peel_over)} times "
                f"the recall of a cached list of 20 item ids{significance(row.peel_over)}; over time the list falls "
                "behind (docs/timeline.md)."
            )
    return tuple(sentences)


def _to_rivals(line: Verdict) -> dict[str, Estimate]:
    return {key: ratio for key in RIVALS if (ratio := line.ratios.get(key)) is not None}


def peel_over_view(rows: Sequence[CompareRow]) -> TableView:
    """PEEL's recall over that of every method, by budget, with paired intervals."""
    shares = sorted({row.share for row in rows})
    cells = {
        (row.method, row.share): format_ratio(row.peel_over)
        + ("*" if row.p_holm is not None and row.p_holm < SIGNIFICANT else "")
        for row in rows
        if row.peel_over is not None
    }
    methods = dict.fromkeys(method for method, _ in cells)
    body = tuple((method, *(cells.get((method, share), ABSENT) for share in shares)) for method in methods)
    note = (
        "Test recall of PEEL relative to each method, both with settings chosen on validation for that budget. In "
        "brackets: paired 95 % intervals. *: the two differ significantly, corrected for all comparisons of this table "
        f"(Holm, p < {SIGNIFICANT})."
    )
    return TableView("PEEL relative to each method", ("method", *map(format_share, shares)), body, 1, note)


_DETAILS: Sequence[TableColumn[CompareRow]] = (
    TableColumn("method", lambda row: row.method),
    TableColumn("precision", lambda row: row.precision + (" (chosen)" if row.chosen else "")),
    TableColumn("share", lambda row: row.share, format_share),
    TableColumn("stored KB, max", lambda row: row.stored_bytes_max, format_kilobytes),
    TableColumn("validation Recall@20", lambda row: row.validation_recall, format_metric),
    TableColumn("Recall@20", lambda row: row.recall, format_point),
    TableColumn("NDCG@20", lambda row: row.ndcg, format_point),
    TableColumn("seconds", lambda row: f"{row.seconds:,.1f}"),
    TableColumn("trials", lambda row: row.trials),
)


def compare_details_view(rows: Sequence[CompareRow]) -> TableView:
    """Return every row of a comparison with its bytes, trials and seconds."""
    note = "1 KB = 1000 bytes. Seconds: time to serve that budget; trials: settings evaluated on validation."
    return table_of("All rows", rows, _DETAILS, note, 2)


def refinement_view(result: CompareResult) -> TableView:
    """The full table: the global one, as user groups start with it, refined by the federation, refined centrally."""
    refinement = result.refinement
    base = refinement.none.recall.value
    tables = {
        "none: global table": refinement.none,
        "none: group tables before refinement": refinement.start,
        "federated": refinement.federated,
        "central": refinement.central,
    }
    rows = tuple(
        (name, *[ABSENT] * 3)
        if quality is None
        else (
            name,
            format_estimate(quality.recall),
            format_metric(quality.ndcg.value),
            format_ratio(Estimate(quality.recall.value / base) if base else None),
        )
        for name, quality in tables.items()
    )
    columns = ("refinement", "Recall@20", "NDCG@20", "relative to global")
    return TableView("Refinement of the full table", columns, rows)
