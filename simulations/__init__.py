"""Runs of scenarios on Flower's engine: command line, studies, reports, benchmarks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fl_peel.packages import imported_when_asked

if TYPE_CHECKING:
    from simulations.report.contracts import SectionContract as SectionContract
    from simulations.report.render import Chart as Chart
    from simulations.report.render import Section as Section
    from simulations.report.table_view import TableView as TableView
    from simulations.scenario_files import load_scenario as load_scenario
    from simulations.scenario_files import shipped_scenarios as shipped_scenarios
    from simulations.workbench import Progress as Progress
    from simulations.workbench import Result as Result
    from simulations.workbench import run as run

# A simulation reports to nobody. Flower and Ray read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyway, without its warning

__getattr__ = imported_when_asked(__name__, __file__)
