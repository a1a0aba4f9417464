"""Stage 1 by federation: its cost by step and by device class."""

from __future__ import annotations

from simulations.report.section import Section
from simulations.report.table_view import TableView, format_bytes, format_share
from strategies.figures.schema import RunResult


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


def stage1_views(result: RunResult) -> list[TableView]:
    """Return what each step took of all devices, and what all steps took of each class; nothing where the server was
    alone.
    """
    stage1 = result.stage1
    if stage1 is None:
        return []
    steps = tuple(
        (
            STEPS.get(row.step, row.step),
            f"{row.times:,}",
            f"{row.devices / row.times:,.0f}",
            f"{row.unavailable / row.times:,.0f}",
            f"{row.excluded / row.times:,.0f}",
            f"{row.stragglers / row.times:,.0f}",
            format_bytes(row.download_bytes),
            format_bytes(row.upload_bytes),
            f"{row.virtual_seconds:,.1f}",
        )
        for row in stage1.steps
    )
    classes = tuple(
        (
            name,
            f"{row.devices:,}",
            format_share(row.excluded),
            format_bytes(row.download_bytes),
            format_bytes(row.upload_bytes),
            f"{row.virtual_seconds:,.1f}",
            f"{row.energy_j:,.1f}",
        )
        for name, row in stage1.classes.items()
    )
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
    per_class = "Insufficient memory: share of the rounds in which the device had less memory than the step needs."
    return [
        TableView(
            "Stage 1, fully federated" if not _share(result) else "Stage 1 by federation",
            ("step", "rounds", "devices", "offline", "low memory", "past deadline", "down", "up", "virtual s"),
            steps,
            note=note,
        ),
        TableView(
            "Stage 1 by device class",
            ("device class", "devices", "insufficient memory", "down", "up", "virtual s", "energy J"),
            classes,
            note=per_class,
        ),
    ]


def _share(result: RunResult) -> float:
    """Return the share of users, or of their interactions, that the server collects."""
    share: float = result.scenario.get("pretraining", {}).get("collected", {}).get("share", 1.0)
    return share
