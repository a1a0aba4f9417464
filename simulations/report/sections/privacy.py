"""What was hidden, and the privacy loss."""

from __future__ import annotations

from fl_peel.json_codec import to_plain
from simulations.report.section import Section
from simulations.report.table_view import TableView, nested_views
from strategies.figures.schema import RunResult


def privacy(result: RunResult) -> Section:
    """Return the section."""
    return Section("privacy", "", privacy_views(result))


def privacy_views(result: RunResult) -> list[TableView]:
    """Tables of privacy: what was hidden, and the epsilon spent; none where nothing was hidden."""
    report = result.privacy
    return nested_views("Privacy", to_plain(report)) if report is not None and report.hides else []
