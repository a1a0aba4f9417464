"""What a run cost and hid: bytes and seconds, stage 1 by step and device class, privacy, and the machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_peel.json_codec import to_plain
from fl_peel.privacy.report import PrivacyReport
from simulations.report import drawing
from simulations.report.drawing import BLUE, INK, MUTED, ORANGE, EndLabel, Plot
from simulations.report.render import Chart, Section
from simulations.report.table_view import (
    ABSENT,
    TableColumn,
    TableView,
    byte_unit,
    format_bytes,
    format_count,
    format_share,
    nested_views,
    table_of,
)
from strategies.figures.schema import RoundRow, RunResult, SecureAggregationResult, Stage1Class, Stage1Step


def costs(result: RunResult) -> Section:
    """Return the section."""
    payload = "Payload of each round, summed over its devices: download above zero, upload below."
    return Section(
        "costs",
        TITLE,
        (
            costs_view(result),
            Chart(lambda: bytes_by_round(result), payload),
            Chart(lambda: stage_seconds(result), "Wall time of each stage."),
        ),
    )


TITLE = "Bytes and seconds"


def costs_view(result: RunResult) -> TableView:
    """Bytes and seconds: totals over the rounds, means per device, wall time per stage, peak memory."""
    rounds, moved = result.rounds, result.bytes_per_device
    rows = [
        ("bytes down, all rounds", format_bytes(sum(row.download_bytes for row in rounds))),
        ("bytes up, all rounds", format_bytes(sum(row.upload_bytes for row in rounds))),
    ]
    if moved is not None:
        rows.append(("bytes down per device, mean", format_bytes(moved.download_mean)))
        rows.append(("bytes up per device, mean", format_bytes(moved.upload_mean)))
    rows.append(("rounds", f"{len(rounds):,}"))
    rows.append(("failed devices, all rounds", f"{sum(row.failures for row in rounds):,}"))
    rows += [(f"{stage}, s", f"{seconds:,.1f}") for stage, seconds in result.stages.items()]
    rows.append(("all stages, s", f"{sum(result.stages.values()):,.1f}"))
    if result.peak_rss_bytes is not None:
        rows.append(("peak memory", format_bytes(result.peak_rss_bytes)))
    rows += secure_rows(result.secure_aggregation) if result.secure_aggregation is not None else []
    return TableView(TITLE, ("quantity", "value"), tuple(rows), terminal=True)


def secure_rows(result: SecureAggregationResult) -> list[tuple[str, str]]:
    """Devices, dropouts and void groups over all rounds; bytes and processor seconds of one device in one round."""
    counts, moved, seconds = result.counts, result.bytes_per_device, result.seconds
    devices, speed = max(counts.announced, 1), result.devices_per_second
    return [
        ("secure sums: devices, all rounds", f"{counts.devices:,}"),
        ("secure sums: dropped, masks recovered", f"{counts.dropped:,}, {counts.recovered:,}"),
        ("secure sums: void groups, sat out", f"{counts.void_groups:,}, {counts.sat_out_groups:,}"),
        ("secure sums: rows of items, of few owners", f"{counts.owned_rows:,}, {counts.few_owner_rows:,}"),
        ("secure sums: masked vector, bytes", f"{moved.vector:,.0f}"),
        ("secure sums: keys and shares up, down", f"{moved.upload - moved.vector:,.0f}, {moved.download:,.0f}"),
        ("secure sums: ms per device", f"{1e3 * seconds.devices / devices:.1f}"),
        ("secure sums: ms per device, server", f"{1e3 * seconds.server / devices:.1f}"),
        ("secure sums: devices/s, one processor", ABSENT if speed is None else f"{speed:,.0f}"),
    ]


@drawing.in_both_forms
def bytes_by_round(result: RunResult) -> Plot | None:
    """Bytes that crossed the network each round, all devices together: download above zero, upload below."""
    rounds = result.rounds
    if not rounds:
        return None
    down = np.array([row.download_bytes for row in rounds], dtype=np.float64)
    up = np.array([row.upload_bytes for row in rounds], dtype=np.float64)
    unit, scale = byte_unit(float(max(down.max(), up.max())))
    figure, (axes,) = drawing.new_figure(2.7)
    edges = np.arange(len(rounds) + 1) + 0.5
    axes.stairs(down / scale, edges, fill=True, color=BLUE)
    axes.stairs(-up / scale, edges, fill=True, color=ORANGE)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    drawing.round_axis(axes, len(rounds))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("round")
    axes.set_ylabel(f"{unit} per round, all devices")
    drawing.hover(
        axes, [row.server_round for row in rounds], (down / scale).tolist(), [_round_words(row) for row in rounds]
    )
    drawing.label_ends(
        axes,
        [
            EndLabel(f"download\n{format_bytes(down.sum())} in all", edges[-1], down[-1] / scale / 2, BLUE),
            EndLabel(f"upload\n{format_bytes(up.sum())} in all", edges[-1], -up[-1] / scale / 2, ORANGE),
        ],
    )
    alt = (
        f"Bars by round: {len(rounds)} rounds move {format_bytes(down.sum())} down and "
        f"{format_bytes(up.sum())} up in all."
    )
    return drawing.finish(figure, "bytes", "Bytes on the network", alt)


def _round_words(row: RoundRow) -> str:
    down, up = format_bytes(row.download_bytes), format_bytes(row.upload_bytes)
    return f"round {row.server_round}: {down} down, {up} up, {row.devices:,} devices"


@drawing.in_both_forms
def stage_seconds(result: RunResult) -> Plot | None:
    """Wall seconds of each stage."""
    stages = result.stages
    if not stages:
        return None
    figure, (axes,) = drawing.new_figure(0.75 + 0.27 * len(stages))
    y = np.arange(len(stages))[::-1]
    bars = axes.barh(y, list(stages.values()), color=MUTED, height=0.65)
    axes.bar_label(bars, [f"{seconds:,.1f}" for seconds in stages.values()], padding=4, fontsize=drawing.LABEL_PT)
    axes.set_yticks(y, list(stages))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("wall time, s")
    axes.margins(x=0.1)
    alt = "Bar chart of wall seconds: " + ", ".join(f"{name} {s:,.1f}" for name, s in stages.items()) + "."
    return drawing.finish(figure, "stages", "Where the time went", alt)


def environment(result: RunResult) -> Section:
    """Return the section."""
    views = [] if result.environment is None else nested_views("Environment", to_plain(result.environment))
    return Section("environment", "Environment", views)


def privacy(result: RunResult) -> Section:
    """Return the section."""
    return Section("privacy", "", privacy_views(result.privacy))


def privacy_views(report: PrivacyReport | None) -> list[TableView]:
    """Tables of privacy: what was hidden, and the epsilon spent; none where nothing was hidden."""
    return nested_views("Privacy", to_plain(report)) if report is not None and report.hides else []


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
        if result.scenario["pretraining"]["user_exponent"] > 0:
            note += (
                " Each owner adds a number of its own (pretraining.user_exponent): whoever solves the sums for the "
                "items that an item's owners have may tell these owners apart."
            )
    void = sum(step.void or 0 for step in stage1.steps)
    if void:
        note += f" {void} sums were void: somebody spoiled them, and nothing was taken of them."
    per_class = "Insufficient memory: share of the rounds in which the device had less memory than the step needs."
    title = "Stage 1, fully federated" if not _share(result) else "Stage 1 by federation"
    return [
        table_of(title, stage1.steps, _STEPS, note, terminal=True),
        table_of("Stage 1 by device class", list(stage1.classes.items()), _CLASSES, per_class),
    ]


def _share(result: RunResult) -> float:
    """Return the share of users, or of their interactions, that the server collects."""
    share: float = result.scenario.get("pretraining", {}).get("collected", {}).get("share", 1.0)
    return share
