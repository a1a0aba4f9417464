"""Stage 1 by federation: its cost by step and by device class."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report.section import Section
from simulations.report.table_view import TableColumn, TableView, format_bytes, format_count, format_share, table_of
from strategies.figures.schema import RunResult, Stage1Class, Stage1Step


def stage1(result: RunResult) -> Section:
    """Return the section."""
    return Section("stage1", "Stage 1", stage1_views(result))


STEPS = {
    "counts": "item counts",
    "pass": "passes",
    "choice": "choice of the filter",
    "vectors": "vectors",
    "groups": "user groups",
    "moments": "group moments",
    "maps": "group maps",
}
"""Names of the steps for readers."""


_STEPS: Sequence[TableColumn[Stage1Step]] = (
    TableColumn("step", lambda row: STEPS.get(row.step, row.step)),
    TableColumn("rounds", lambda row: row.times, format_count),
    TableColumn("devices", lambda row: f"{row.devices / row.times:,.0f}"),
    TableColumn("offline", lambda row: f"{row.unavailable / row.times:,.0f}"),
    TableColumn("low memory", lambda row: f"{row.excluded / row.times:,.0f}"),
    TableColumn("past deadline", lambda row: f"{row.stragglers / row.times:,.0f}"),
    TableColumn("down", lambda row: row.download_bytes, format_bytes),
    TableColumn("up", lambda row: row.upload_bytes, format_bytes),
    TableColumn("virtual s", lambda row: f"{row.virtual_seconds:,.1f}"),
)
_CLASSES: Sequence[TableColumn[tuple[str, Stage1Class]]] = (
    TableColumn("device class", lambda row: row[0]),
    TableColumn("devices", lambda row: row[1].devices, format_count),
    TableColumn("insufficient memory", lambda row: row[1].excluded, format_share),
    TableColumn("down", lambda row: row[1].download_bytes, format_bytes),
    TableColumn("up", lambda row: row[1].upload_bytes, format_bytes),
    TableColumn("virtual s", lambda row: f"{row[1].virtual_seconds:,.1f}"),
    TableColumn("energy J", lambda row: f"{row[1].energy_j:,.1f}"),
)


def stage1_views(result: RunResult) -> list[TableView]:
    """Return the cost of each step, and of each class; nothing where the server was alone."""
    stage1 = result.stage1
    if stage1 is None:
        return []
    note = (
        f"A device moved {format_bytes(stage1.bytes_down_mean)} down and {format_bytes(stage1.bytes_up_mean)} up, on "
        f"average over all devices, in {stage1.rounds} rounds. Devices (in the sums), offline, low memory "
        "(insufficient) and past deadline: mean over the rounds of a step. Devices outside the sums are served all "
        "the same."
    )
    privacy = result.scenario.get("privacy", {})
    if privacy.get("mechanism") == "none" and privacy.get("min_owners", 1) > 1:
        least = privacy["min_owners"]
        note += (
            f" No sum of fewer than {least} devices was opened: {stage1.items:,} items have at least {least} owners."
        )
    void = sum(step.void or 0 for step in stage1.steps)
    if void:
        note += f" {void} sums were void: somebody spoiled them, and nothing was taken of them."
    per_class = "Insufficient memory: share of the rounds in which the device had less memory than the step needs."
    title = "Stage 1, fully federated" if not _share(result) else "Stage 1 by federation"
    return [
        table_of(title, stage1.steps, _STEPS, note),
        table_of("Stage 1 by device class", list(stage1.classes.items()), _CLASSES, per_class),
    ]


def _share(result: RunResult) -> float:
    """Return the share of users, or of their interactions, that the server collects."""
    share: float = result.scenario.get("pretraining", {}).get("collected", {}).get("share", 1.0)
    return share
