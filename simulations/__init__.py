"""Runs of scenarios on Flower's engine: command line, studies, reports, benchmarks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fl_peel.lazy_imports import imported_when_asked

if TYPE_CHECKING:
    from simulations.report.contracts import SectionContract
    from simulations.report.section import Chart, Section
    from simulations.report.table_view import TableView
    from simulations.scenario_files import load_scenario, shipped_scenarios
    from simulations.workbench.progress import Progress
    from simulations.workbench.result import Result
    from simulations.workbench.run import run

__all__ = [
    "Chart",
    "Progress",
    "Result",
    "Section",
    "SectionContract",
    "TableView",
    "load_scenario",
    "run",
    "shipped_scenarios",
]

# A simulation reports to nobody. Flower and Ray read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyway, without its warning

__getattr__ = imported_when_asked(
    __name__,
    {
        "Chart": "simulations.report.section",
        "Progress": "simulations.workbench.progress",
        "Result": "simulations.workbench.result",
        "Section": "simulations.report.section",
        "SectionContract": "simulations.report.contracts",
        "TableView": "simulations.report.table_view",
        "load_scenario": "simulations.scenario_files",
        "run": "simulations.workbench.run",
        "shipped_scenarios": "simulations.scenario_files",
    },
)
