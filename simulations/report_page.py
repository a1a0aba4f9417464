"""A result as one HTML page: no script, no network, every name escaped, figures inline."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from simulations.heterogeneity_tables import elasticity_tables, fairness_tables, fleet_table, time_table
from simulations.plot_style import Plot
from simulations.report_schema import CompareResult, RunResult
from simulations.report_tables import (
    TableView,
    budgets_view,
    compare_details_view,
    compare_view,
    costs_view,
    device_classes_view,
    format_bytes,
    format_metric,
    format_share,
    full_table_view,
    nested_views,
    refinement_view,
)
from simulations.templates import TEMPLATES

FIGURES = (
    *("recall", "traces", "bytes", "learning", "classes", "groups", "stages"),
    *("fleet", "fairness", "falls", "moving"),
)
"""As `plots` names them."""


def run_page(result: RunResult, plots: Sequence[Plot]) -> str:
    """Return the page of a run; parts without data are left out."""
    name = scenario_name(result["scenario"])
    return render(
        "report.html",
        title=f"{name}: personalized elastic embeddings",
        lead=_lead(result),
        facts=_run_facts(result),
        full_table=full_table_view(result),
        budgets=budgets_view(result) if result["budgets"] else None,
        device_classes=device_classes_view(result) if result["device_classes"] else None,
        costs=costs_view(result),
        fleet=fleet_table(result),
        times=time_table(result),
        fairness=fairness_tables(result),
        elasticity=elasticity_tables(result),
        privacy=privacy_views(result),
        plots=dict.fromkeys(FIGURES) | {plot.name: plot for plot in plots},
        environment=nested_views("Environment", result["environment"]) if result.get("environment") else [],
        **provenance(result, f"fl-peel run scenario.yaml --seed {result['seed']}"),
    )


def privacy_views(result: RunResult) -> list[TableView]:
    """What the run hid and what it spent; nothing where it hid nothing."""
    told = result.get("privacy") or {}
    hides = told.get("mechanism", "none") != "none" or "all-sent" in told.values() or "group-prefix" in told.values()
    return nested_views("Privacy", told) if hides else []


def compare_page(result: CompareResult, plot: Plot) -> str:
    """Return the page of a comparison."""
    full = result["full_table"]
    name = scenario_name(result["scenario"]) if "scenario" in result else ""
    facts = [
        ("full table, fp32", format_bytes(full["bytes"])),
        ("Recall@20", format_metric(full["recall@20"])),
        ("NDCG@20", format_metric(full["ndcg@20"])),
        ("methods", str(len({row["method"] for row in result["rows"]}))),
    ]
    return render(
        "compare.html",
        title=f"{name}: ways to fit a budget" if name else "Ways to fit a budget",
        lead="Every method under the same budgets, its bytes counted as they would be stored on the device.",
        facts=facts,
        tables=[compare_view(result["rows"]), compare_view(result["rows"], "ndcg@20")],
        refinement=refinement_view(result),
        details=compare_details_view(result["rows"]),
        plot=plot,
        **provenance(result, f"fl-peel compare {shlex.quote(name)}" if name else ""),
    )


def scenario_name(scenario: Mapping[str, Any] | str) -> str:
    """The name that a scenario gives itself."""
    return scenario if isinstance(scenario, str) else str(scenario.get("name", "scenario"))


def render(template: str, **values: Any) -> str:
    """A page from a template of :mod:`simulations.templates`; every value is escaped."""
    environment = Environment(
        loader=DictLoader(dict(TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = lambda plot: Markup(plot.svg)  # to_svg escapes names
    return environment.get_template(template).render(**values)


def _lead(result: RunResult) -> str:
    """The run in one sentence: the cheapest elastic embedding that matches the full global table, or the best."""
    full = result["full_table"]["global"]["recall@20"]
    rows = sorted(result["budgets"], key=lambda row: row["share"])
    if not rows or full <= 0:
        return "Federated training of item tables that shrink to any memory budget."
    matching = [row for row in rows if row["recall@20"] >= full]
    row = max(
        (row for row in matching if row["share"] == matching[0]["share"]) if matching else rows,
        key=lambda row: row["recall@20"],
    )
    return (
        f"At {format_share(row['share'])} of the bytes ({format_bytes(row['budget_bytes'])}), "
        f"{row['precision']} blocks chosen by “{row['selector']}” reach {row['recall@20'] / full:.2f} times the "
        "Recall@20 of the full global table."
    )


def _run_facts(result: RunResult) -> list[tuple[str, str]]:
    classes = result["device_classes"].values()
    facts = [
        ("devices", f"{sum(row['devices'] for row in classes):,}"),
        ("rounds", f"{len(result['rounds']):,}"),
        ("full table, fp32", format_bytes(result["full_table"]["bytes"])),
        ("budget violations", f"{sum(row['budget_violations'] for row in classes):,}"),
        ("wall time", f"{sum(result['stages'].values()):,.0f} s"),
        ("seed", str(result["seed"])),
    ]
    return facts if result["device_classes"] else facts[1:3] + facts[4:]


def provenance(result: Mapping[str, Any] | RunResult | CompareResult, command: str) -> dict[str, Any]:
    """What the part on how to reproduce shows; ``command``: where the result does not tell its own."""
    values: Mapping[str, Any] = result
    scenario = values.get("scenario")
    versions: Mapping[str, str] = values.get("versions") or {}
    return {
        "command": values.get("command") or command,
        "seed": values.get("seed"),
        "scenario": scenario
        if scenario is None or isinstance(scenario, str)
        else yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True),
        "versions": TableView("Versions", ("package", "version"), tuple(versions.items()), 2) if versions else None,
    }
