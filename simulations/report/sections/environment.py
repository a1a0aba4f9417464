"""Size of the run and its machine."""

from __future__ import annotations

from fl_peel.json_codec import to_plain
from simulations.report.section import Section
from simulations.report.table_view import nested_views
from strategies.figures.schema import RunResult


def environment(result: RunResult) -> Section:
    """Return the section."""
    views = [] if result.environment is None else nested_views(TITLE, to_plain(result.environment))
    return Section("environment", TITLE, views)


TITLE = "Environment"
