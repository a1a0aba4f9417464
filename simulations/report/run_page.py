"""A result as one HTML page: no network, every name escaped, figures inline, all of it there without its script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fl_peel.json_codec import to_plain
from simulations.report.plots.style import Plot
from simulations.report.render import provenance, render, scenario_name
from simulations.report.tables.heterogeneity_tables import elasticity_tables, fairness_tables, fleet_table, time_table
from simulations.report.tables.labels import selector_name
from simulations.report.tables.run_tables import (
    budgets_view,
    costs_view,
    device_classes_view,
    format_over,
    full_table_view,
)
from simulations.report.tables.stages import acceptance_views, stage1_views
from simulations.report.tables.table_view import TableView, format_bytes, format_metric, format_share, nested_views
from strategies.figures.schema import BudgetRow, Quality, Ratio, RunResult, to_json

FIGURES = (
    *("recall", "traces", "bytes", "learning", "classes", "groups", "stages"),
    *("fleet", "fairness", "falls", "moving"),
)
"""Figures by the names that `plots` has for them."""


def run_page(result: RunResult, plots: Sequence[Plot], demo: str | None = None) -> str:
    """Return the page of a run; parts without data are left out. demo: page to play with that lies beside it."""
    name, plain = scenario_name(result.scenario), to_json(result)
    return render(
        "report.html",
        title=f"{name}: personalized elastic embeddings",
        lead=_lead(result),
        why=why_less(result),
        demo=demo,
        facts=_run_facts(result),
        full_table=full_table_view(result),
        budgets=budgets_view(result) if result.budgets else None,
        device_classes=device_classes_view(result) if result.device_classes else None,
        costs=costs_view(result),
        fleet=fleet_table(result),
        times=time_table(result),
        stage1=stage1_views(result),
        kept=acceptance_views(result),
        fairness=fairness_tables(result),
        elasticity=elasticity_tables(result),
        privacy=privacy_views(result),
        plots=dict.fromkeys(FIGURES) | {plot.name: plot for plot in plots},
        top_n=result.top_n,
        environment=nested_views("Environment", plain["environment"]) if result.environment is not None else [],
        **provenance(plain, f"fl-peel run scenario.yaml --seed {result.seed}"),
    )


def privacy_views(result: RunResult) -> list[TableView]:
    """Tables of privacy: what was hidden, and the epsilon spent; none where nothing was hidden."""
    privacy = result.privacy
    return nested_views("Privacy", to_plain(privacy)) if privacy is not None and privacy.hides else []


def _lead(result: RunResult) -> str:
    """The run in one sentence: the smallest elastic embedding that is not significantly worse than the best full table,
    or the best one.
    """
    full, whose = _yardstick(result)
    rows = sorted(result.budgets, key=lambda row: row.share)
    if not rows or (full is not None and full.recall <= 0):
        return "Federated training of item tables that shrink to any memory budget."
    matching = [row for row in rows if full is not None and _as_good(row, full.recall)]
    row = max(
        (row for row in matching if row.share == matching[0].share) if matching else rows,
        key=lambda row: row.recall,
    )
    start = (
        f"At {format_share(row.share)} of the bytes ({format_bytes(row.budget_bytes)}), "
        f"{row.precision} blocks ranked by {selector_name(row.selector)} reach "
    )
    if full is None:
        return f"{start}a Recall@{result.top_n} of {format_metric(row.recall)}; the full table was not measured."
    known = row.to_strongest
    over = f"{row.recall / full.recall:.2f}" if known is None else format_over(known)
    return f"{start}{over} times the Recall@{result.top_n} of the best full table, {whose}."


def _as_good(row: BudgetRow, recall: float) -> bool:
    """Whether a full table of that recall is not better beyond chance."""
    high = None if row.to_strongest is None else row.to_strongest.high
    return row.recall >= recall or (high is not None and high >= 1)


def why_less(result: RunResult) -> str:
    """Explain why a smaller table can be better, where the figure shows that it is; return nothing elsewhere."""
    left_out = (
        "An item without a stored block is not recommended, and the items left out are those with the least "
        f"{'exposure' if _best_selector(result) == 'exposure' else 'weight'} in the user group"
    )
    if shares := _significant(row for row in result.budgets if _low(row.to_strongest) > 1):
        return (
            f"At budgets of {shares} the smaller table is significantly better than the best full table. {left_out}, "
            "so that they do not displace relevant items from a list."
        )
    groups = (result.full_table.start, result.full_table.refined)
    own = max((one for one in groups if one is not None), key=lambda one: one.recall, default=None)
    shares = _significant(row for row in result.budgets if _low(row.to_global) > 1)
    if not shares or own is None or _low(own.to_global) <= 1 or own.to_global is None:
        return ""
    return (
        f"At budgets of {shares} the smaller table is significantly better than the full global table, because each "
        f"user group has its own: the full group tables already reach {format_over(own.to_global)} times the recall "
        f"of the global table, and shrinking them costs little of it. {left_out}."
    )


def _low(ratio: Ratio | None) -> float:
    return 0.0 if ratio is None or ratio.low is None else ratio.low


def _significant(rows: Iterable[BudgetRow]) -> str:
    """The budgets of rows in words, the smallest and the largest."""
    shares = sorted({row.share for row in rows})
    if not shares:
        return ""
    return " to ".join(format_share(share) for share in dict.fromkeys((shares[0], shares[-1])))


def _best_selector(result: RunResult) -> str:
    """Return the selector by which the best elastic table chose its blocks."""
    return max(result.budgets, key=lambda row: row.recall).selector if result.budgets else ""


def _yardstick(result: RunResult) -> tuple[Quality | None, str]:
    """The best full table of the run on the test, and what it is."""
    full = result.full_table
    tables: tuple[tuple[Quality | None, str], ...] = (
        (full.globally, "the global table"),
        (full.start, "the group tables before refinement"),
        (full.refined, "the group tables after refinement"),
    )
    known = [(quality, whose) for quality, whose in tables if quality is not None]
    return max(known, key=lambda one: one[0].recall, default=(None, ""))


def _run_facts(result: RunResult) -> list[tuple[str, str]]:
    classes = result.device_classes.values()
    counters_shown = result.privacy is None or not result.privacy.withholds
    facts = [
        ("devices", f"{sum(row.devices for row in classes):,}"),
        ("rounds", f"{len(result.rounds):,}"),
        ("full table, fp32", format_bytes(result.full_table.bytes)),
        ("budget violations", f"{sum(row.budget_violations for row in classes):,}"),
        *(
            [("working memory violations", f"{sum(row.working_violations for row in classes):,}")]
            if counters_shown
            else []
        ),
        ("wall time", f"{sum(result.stages.values()):,.0f} s"),
        ("seed", str(result.seed)),
    ]
    return facts if classes else facts[1:3] + facts[-2:]
