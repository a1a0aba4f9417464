"""Files of a run: `report.json`, `metrics.csv`, `metrics.parquet`, `report.html`; and what it says before its tables:
who has seen which interactions, what its budgets come to, what refinement did.

The shape of a result is in `strategies.figures.schema`, what its page shows in `sections`. The same result gives the
same bytes in every file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_peel.errors import ReportError
from fl_peel.figures import Estimate
from simulations.report.render import Page, ResultKind, run_sections, scenario_name
from simulations.report.table_view import (
    FULL_TABLES,
    format_bytes,
    format_estimate,
    format_ratio,
    format_share,
    selector_name,
)
from strategies.figures.schema import FULL_REFINED, BudgetRow, RunResult, from_json


def read_report(path: Path) -> RunResult:
    """Read `report.json` (or the folder that holds it); raise `ReportError` if it is not a report."""
    file = path / "report.json" if path.is_dir() else path
    try:
        plain = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ReportError(f"{file}: cannot read ({error.strerror}); give the --out folder of a run") from error
    except ValueError as error:
        raise ReportError(f"{file}: not a report ({error}); run again with --out") from error
    return from_json(plain, str(file))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a report may hold")


def run_page(result: RunResult) -> Page:
    """Return the page of a run; parts without data are left out."""
    return Page(
        f"{scenario_name(result.scenario)}: personalized elastic embeddings",
        tuple(run_sections(result)),
        verdicts(result),
        _facts(result),
        f"fl-peel run scenario.yaml --seed {result.seed}",
    )


RUN = ResultKind("report", from_json, run_page, table="metrics")


def _facts(result: RunResult) -> list[tuple[str, str]]:
    classes = result.device_classes.values()
    counters_shown = result.privacy is None or not result.privacy.withholds
    working = f"{sum(row.working_violations for row in classes):,}"
    facts = [
        ("devices", f"{sum(row.devices for row in classes):,}"),
        ("rounds", f"{len(result.rounds):,}"),
        ("full table, fp32", format_bytes(result.full_table.bytes)),
        ("budget violations", f"{sum(row.budget_violations for row in classes):,}"),
        *([("working memory violations", working)] if counters_shown else []),
        ("wall time", f"{sum(result.stages.values()):,.0f} s"),
        ("seed", str(result.seed)),
    ]
    return facts if classes else facts[1:3] + facts[-2:]


FAR_BELOW = 0.9
"""Share of its full table's recall below which a device class is pointed out."""
LEARNING_RATE = "lower refinement.local.learning_rate"


def verdicts(result: RunResult) -> tuple[str, ...]:
    """Say who has seen what, which budget keeps up, what refinement did, and which classes are far below."""
    full, stage, top_n = result.full_table, result.refinement, result.top_n
    ratios = {
        f"{format_share(row.share)} of the bytes ({format_bytes(row.budget_bytes)})": row.to_strongest
        for row in own_rows(result)
    }
    sentences = (
        seen_data(result.scenario),
        best_budget(ratios, result.scenario, full.strongest, top_n),
        refinement_helped(
            None if full.gain is None else full.gain.recall,
            len(result.rounds),
            None if stage is None else stage.groups_kept,
            top_n,
        ),
        classes_below(result),
    )
    return tuple(sentence for sentence in sentences if sentence)


def seen_data(scenario: Mapping[str, Any]) -> str:
    """Say who has seen which interactions; nothing about a scenario without these keys."""
    pretraining = scenario.get("pretraining") or {}
    if "source" not in pretraining:
        return ""
    share, mode = pretraining["collected"]["share"], pretraining["collected"]["mode"]
    devices = pretraining["source"] == "devices"
    if devices and not share:
        return f"Fully federated: no interaction leaves a device; the server sees {_sums(scenario)}."
    whose = f"the oldest {format_share(share)} of each user's" if mode == "oldest" else f"{format_share(share)} of the"
    where = "from sums over devices, begun with" if devices else "on the server, from"
    paper = " (as in the paper)" if share == 1 and not devices else ""
    return f"Pretraining: {where} {whose} interactions{paper}; in refinement the server sees {_sums(scenario)}."


def _sums(scenario: Mapping[str, Any]) -> str:
    masked = (scenario.get("secure_aggregation") or {}).get("enabled")
    noised = (scenario.get("privacy") or {}).get("mechanism", "none") != "none"
    return f"{'masked ' * bool(masked)}sums over each node's devices{', with noise' * noised}"


def own_rows(result: RunResult) -> list[BudgetRow]:
    """Return the rows of the precision and the selector that devices are sent, which were chosen before the test."""
    precision, selector = (result.scenario.get("blocks") or {}).get("precision"), result.scenario.get("selector")
    rows = [row for row in result.budgets if (row.precision, row.selector) == (precision, selector)]
    return sorted(rows, key=lambda row: row.share)


def best_budget(
    ratios: Mapping[str, Estimate | None], scenario: Mapping[str, Any], full_model: str | None, top_n: int = 20
) -> str:
    """Relate the smallest budget that is not significantly worse to the full model, or else the best one.

    ratios: recall under every budget relative to the full model, by what the budget is called, smallest first.
    """
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not known or full_model is None:
        return "How budgets relate to the full model was not measured (evaluation.budgets, evaluation.full_tables)."
    keeps_up = (name for name, ratio in known.items() if (ratio.value if ratio.high is None else ratio.high) >= 1)
    name = next(keeps_up, max(known, key=lambda name: known[name].value))
    blocks = f"{scenario['blocks']['precision']} blocks ranked by {selector_name(scenario['selector'])}"
    return (
        f"At {name}, {blocks} have {format_ratio(known[name])} times the Recall@{top_n} of the full model "
        f"({FULL_TABLES[full_model]}){significance(known[name])}."
    )


SIGNIFICANT = 0.05
"""P-value below which two figures are said to differ."""
EQUAL = 0.05
"""How far from 1 a whole interval of a ratio may reach for the two to be called equal."""


def significance(ratio: Estimate, p_value: float | None = None) -> str:
    """Say whether a ratio differs from 1, or is shown to be near 1, which an interval across 1 alone does not show (two
    one-sided tests: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987); nothing without an
    interval. p_value: of no difference, where it is corrected for several comparisons.
    """
    if ratio.low is None or ratio.high is None:
        return ""
    differs = p_value < SIGNIFICANT if p_value is not None else not ratio.low <= 1 <= ratio.high
    if differs:
        return f": significantly {'better' if ratio.value > 1 else 'worse'}"
    if ratio.low > 1 - EQUAL and ratio.high < 1 / (1 - EQUAL):
        return f": equal within {EQUAL:.0%}"
    return f": no significant difference, and not shown to be equal within {EQUAL:.0%}"


def starred(ratio: Estimate | None, p_value: float | None) -> str:
    """Return a ratio for a table, with a star where it differs from 1. p_value: corrected for all of the table's."""
    return format_ratio(ratio) + ("*" if p_value is not None and p_value < SIGNIFICANT else "")


def refinement_helped(gain: Estimate | None, rounds: int, accepted: int | None = None, top_n: int = 20) -> str:
    """Say whether federated refinement helped, and what to try where it did not.

    gain: of recall, paired; accepted: user groups that accepted refinement, None where they were not asked.
    """
    if not rounds:
        return "There was no federated refinement (refinement.rounds: 0)."
    if accepted == 0:
        return f"Federated refinement did not help: no user group accepted it on validation; {LEARNING_RATE}."
    if gain is None or gain.low is None or gain.high is None:
        return "Whether federated refinement helped was not measured (evaluation.full_tables, evaluation.bootstrap)."
    figure = f"{format_estimate(gain, signed=True)} Recall@{top_n}"
    if gain.low > 0:
        return f"Federated refinement helped: {figure}."
    if gain.high < 0:
        return f"Federated refinement did harm: {figure}; {LEARNING_RATE}."
    return f"Federated refinement made no significant difference: {figure}; {LEARNING_RATE}, or give it more rounds."


def classes_below(result: RunResult) -> str:
    """Name the device classes that have far less than with their full tables; nothing where there is none."""
    by_class: Sequence[Any] = result.fairness.by_class if result.fairness is not None else ()
    low = [
        f"{row.device_class} {ratio:.2f}"
        for row in by_class
        if (ratio := row.ratio.get(FULL_REFINED)) is not None and ratio < FAR_BELOW
    ]
    if not low:
        return ""
    return (
        f"Far below the recall of their own full tables: {', '.join(low)} times it; raise these classes' budgets, or "
        "code blocks shorter (blocks.precision)."
    )
