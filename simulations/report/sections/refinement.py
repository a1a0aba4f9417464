"""What of the refinement user groups accepted."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report.section import Section
from simulations.report.table_view import TableColumn, TableView, format_bytes, format_count, format_metric, table_of
from strategies.figures.schema import ComparisonRow, RunResult


def refinement(result: RunResult) -> Section:
    """Return the section."""
    return Section("kept", "Refinement", acceptance_views(result))


def acceptance_views(result: RunResult) -> list[TableView]:
    """Return how many user groups accepted how many rounds, and why; nothing where no device was asked."""
    stage = result.refinement
    if stage is None:
        return []
    kept = ", ".join(
        f"{groups} accepted {'no round' if rounds == '0' else f'the first {rounds} rounds'}"
        for rounds, groups in stage.rounds_kept.items()
    )
    note = (
        f"Of {stage.groups} user groups {kept}. Difference: validation Recall@20 of a device with the refined table "
        "minus that with the last accepted one, mean over devices; a group accepts a refined table that is "
        "significantly better."
    )
    if any(row.slice_price is not None for row in stage.comparisons):
        note += (
            " Slice price: all groups together compare lists in which each further slice of an item divides its weight "
            "by this price with lists without a price, under small budgets, and take the best that all accept."
        )
    return [table_of("Acceptance of refinement", stage.comparisons, _COLUMNS, note)]


_COLUMNS: Sequence[TableColumn[ComparisonRow]] = (
    TableColumn("after round", lambda row: row.server_round),
    TableColumn("slice price", lambda row: row.slice_price, "{:g}".format),
    TableColumn("devices", lambda row: row.devices, format_count),
    TableColumn("difference", lambda row: f"{row.difference:+.4f}"),
    TableColumn("standard error", lambda row: row.standard_error, format_metric),
    TableColumn("accepting groups", lambda row: row.accepted, format_count),
    TableColumn("down", lambda row: row.download_bytes, format_bytes),
)
