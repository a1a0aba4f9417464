"""Files of a run: `report.json`, `metrics.csv`, `metrics.parquet` and `report.html`; the door to all of reporting.

The shape of a result is in `strategies.figures.schema`, what its page shows in `sections`. The same result gives the
same bytes in every file.
"""

from __future__ import annotations

import json
from pathlib import Path

from fl_peel.errors import ReportError
from simulations.report.render import Page, ResultKind, scenario_name
from simulations.report.section import run_sections
from simulations.report.table_view import format_bytes
from simulations.report.verdict import verdicts
from strategies.figures.schema import RunResult, from_json


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
