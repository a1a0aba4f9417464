"""Figures of a report on the test, by their names in events."""

from __future__ import annotations

from fl_peel.events import known, plain_name
from simulations.report.tables.table_view import format_share
from strategies.figures.schema import BudgetRow, RunResult


def figures_on_test(result: RunResult) -> dict[str, float]:
    """Recall and NDCG of every budget and full table: ``test/recall_at_20/1pct``, ``test/ndcg_at_20/full_refined``."""
    full = result.full_table
    tables = {"full_global": full.globally, "full_start": full.start, "full_refined": full.refined}
    figures: dict[str, float | None] = {}
    for metric in ("recall", "ndcg"):
        path = f"test/{metric}_at_{result.top_n}"
        for row in result.budgets:
            figures[f"{path}/{budget_name(result, row)}"] = getattr(row, metric)
        for name, quality in tables.items():
            figures[f"{path}/{name}"] = None if quality is None else getattr(quality, metric)
    return known(figures)


def budget_name(result: RunResult, row: BudgetRow) -> str:
    """``1pct``; where it is not the scenario's own precision and selector, these too: ``1pct_fp16_popularity``."""
    share = plain_name(format_share(row.share))
    own = (result.scenario["blocks"]["precision"], result.scenario["selector"])
    return share if (row.precision, row.selector) == own else plain_name(f"{share}_{row.precision}_{row.selector}")
