"""A result as one HTML page: no script, no network, every name escaped, figures inline."""

from __future__ import annotations

from collections.abc import Sequence

from fl_peel.plain import to_plain
from simulations.report.plots.style import Plot
from simulations.report.render import provenance, render, scenario_name
from simulations.report.tables.heterogeneity import elasticity_tables, fairness_tables, fleet_table, time_table
from simulations.report.tables.run import budgets_view, costs_view, device_classes_view, full_table_view
from simulations.report.tables.stages import kept_views, stage1_views
from simulations.report.tables.view import TableView, format_bytes, format_metric, format_share, nested_views
from strategies.figures.schema import Quality, RunResult, to_json

FIGURES = (
    *("recall", "traces", "bytes", "learning", "classes", "groups", "stages"),
    *("fleet", "fairness", "falls", "moving"),
)
"""As `plots` names them."""


def run_page(result: RunResult, plots: Sequence[Plot]) -> str:
    """Return the page of a run; parts without data are left out."""
    name, plain = scenario_name(result.scenario), to_json(result)
    return render(
        "report.html",
        title=f"{name}: personalized elastic embeddings",
        lead=_lead(result),
        facts=_run_facts(result),
        full_table=full_table_view(result),
        budgets=budgets_view(result) if result.budgets else None,
        device_classes=device_classes_view(result) if result.device_classes else None,
        costs=costs_view(result),
        fleet=fleet_table(result),
        times=time_table(result),
        stage1=stage1_views(result),
        kept=kept_views(result),
        fairness=fairness_tables(result),
        elasticity=elasticity_tables(result),
        privacy=privacy_views(result),
        plots=dict.fromkeys(FIGURES) | {plot.name: plot for plot in plots},
        top_n=result.top_n,
        environment=nested_views("Environment", plain["environment"]) if result.environment is not None else [],
        **provenance(plain, f"fl-peel run scenario.yaml --seed {result.seed}"),
    )


def privacy_views(result: RunResult) -> list[TableView]:
    """What the run hid and what it spent; nothing where it hid nothing."""
    told = result.privacy
    return nested_views("Privacy", to_plain(told)) if told is not None and told.hides else []


def _lead(result: RunResult) -> str:
    """The run in one sentence: the cheapest elastic embedding that matches the strongest full table, or the best."""
    full, whose = _yardstick(result)
    rows = sorted(result.budgets, key=lambda row: row.share)
    if not rows or (full is not None and full.recall <= 0):
        return "Federated training of item tables that shrink to any memory budget."
    matching = [row for row in rows if full is not None and row.recall >= full.recall]
    row = max(
        (row for row in matching if row.share == matching[0].share) if matching else rows,
        key=lambda row: row.recall,
    )
    start = (
        f"At {format_share(row.share)} of the bytes ({format_bytes(row.budget_bytes)}), "
        f"{row.precision} blocks chosen by “{row.selector}” reach "
    )
    if full is None:
        return f"{start}a Recall@{result.top_n} of {format_metric(row.recall)}; the full table was not measured."
    return (
        f"{start}{row.recall / full.recall:.2f} times the Recall@{result.top_n} of the strongest full table, {whose}."
    )


def _yardstick(result: RunResult) -> tuple[Quality | None, str]:
    """The strongest full table of the run, and what it is."""
    full = result.full_table
    tables: tuple[tuple[Quality | None, str], ...] = (
        (full.globally, "the global one"),
        (full.start, "that of the user groups at the start"),
        (full.refined, "the refined one"),
    )
    known = [(quality, whose) for quality, whose in tables if quality is not None]
    return max(known, key=lambda one: one[0].recall, default=(None, ""))


def _run_facts(result: RunResult) -> list[tuple[str, str]]:
    classes = result.device_classes.values()
    told = result.privacy is None or not result.privacy.withholds
    facts = [
        ("devices", f"{sum(row.devices for row in classes):,}"),
        ("rounds", f"{len(result.rounds):,}"),
        ("full table, fp32", format_bytes(result.full_table.bytes)),
        ("budget violations", f"{sum(row.budget_violations for row in classes):,}"),
        *([("working memory violations", f"{sum(row.working_violations for row in classes):,}")] if told else []),
        ("wall time", f"{sum(result.stages.values()):,.0f} s"),
        ("seed", str(result.seed)),
    ]
    return facts if classes else facts[1:3] + facts[-2:]
