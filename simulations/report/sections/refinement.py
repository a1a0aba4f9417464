"""What of the refinement user groups accepted."""

from __future__ import annotations

from simulations.report.section import Section
from simulations.report.table_view import TableView, format_bytes
from strategies.figures.schema import RunResult


def refinement(result: RunResult) -> Section:
    """Return the section."""
    return Section("kept", "Refinement", acceptance_views(result))


def acceptance_views(result: RunResult) -> list[TableView]:
    """Return how many user groups accepted how many rounds, and why; nothing where no device was asked."""
    stage = result.refinement
    if stage is None:
        return []
    rows = tuple(
        (
            str(row.server_round),
            f"{row.devices:,}",
            f"{row.difference:+.4f}",
            f"{row.standard_error:.4f}",
            f"{row.accepted:,}",
            format_bytes(row.download_bytes),
        )
        for row in stage.comparisons
    )
    kept = ", ".join(
        f"{groups} accepted {'no round' if rounds == '0' else f'the first {rounds} rounds'}"
        for rounds, groups in stage.rounds_kept.items()
    )
    note = (
        f"Of {stage.groups} user groups {kept}. Difference: validation Recall@20 of a device with the refined table "
        "minus that with the last accepted one, mean over devices; a group accepts a refined table that is "
        "significantly better."
    )
    columns = ("after round", "devices", "difference", "standard error", "accepting groups", "down")
    return [TableView("Acceptance of refinement", columns, rows, note=note)]
