"""A run round by round: its metrics, when recall was reached, what user groups accepted, and single devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.report import drawing
from simulations.report.drawing import BLUE, GREEN, INK, MUTED, PAPER, EndLabel, Plot, darker
from simulations.report.render import Chart, Section
from simulations.report.table_view import (
    TableColumn,
    TableView,
    byte_unit,
    format_bytes,
    format_count,
    format_decimals,
    format_metric,
    format_share,
    table_of,
)
from strategies.figures.schema import ComparisonRow, HistoryRow, RunResult, TimeToRecall

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning(result: RunResult) -> Section:
    """Return the section."""
    caption = (
        "Metrics after each round, over the participating devices, without intervals (rounds do not release sums of "
        "squares)."
    )
    return Section("learning", TITLE, (Chart(lambda: learning_curves(result), caption),))


TITLE = "Metrics by round"
Curves = Mapping[str, Callable[[HistoryRow], float | None]]
"""What is measured in some of the rounds, by its name for readers."""


@drawing.in_both_forms
def learning_curves(result: RunResult) -> Plot | None:
    """Loss and recall (or NDCG) after each round; over the virtual clock too."""
    history = result.history
    losses: Curves = {"loss": lambda row: row.loss, "controller loss": lambda row: row.controller_loss}
    quality: Curves = {"validation Recall@20": lambda row: row.recall, "validation NDCG@20": lambda row: row.ndcg}
    panels: list[tuple[Curves, str, str]] = []
    if any(of(row) is not None for of in losses.values() for row in history):
        panels.append((losses, "loss", "round"))
    if any(of(row) is not None for of in quality.values() for row in history):
        panels += [(quality, "mean over devices", over) for over in ("round", "virtual clock, s")]
    if not panels:
        return None
    figure, plots = drawing.new_figure(2.4 * len(panels) + 0.1, len(panels), 1)
    words = []
    for axes, (curves, unit, over) in zip(plots, panels, strict=True):
        labels = []
        for index, (name, of) in enumerate(curves.items()):
            measured = [(row, value) for row in history if (value := of(row)) is not None]
            if not measured:
                continue
            x = [row.server_round if over == "round" else row.virtual_seconds for row, _ in measured]
            y = [value for _, value in measured]
            style = drawing.line_kwargs(index) | {"marker": "o" if len(x) <= 30 else ""}
            axes.plot(x, y, **style)
            drawing.hover(axes, x, y, [f"{name} {value:.4g}, {over} {at:.4g}" for at, value in zip(x, y, strict=True)])
            labels.append(EndLabel(f"{name} {y[-1]:.4g}", x[-1], y[-1], style["color"]))
            words.append(f"{name} goes from {y[0]:.4g} to {y[-1]:.4g} over the {over}")
        axes.set_xlabel(over)
        axes.set_ylabel(unit)
        if over == "round":
            drawing.round_axis(axes, max(row.server_round for row in history))
        drawing.label_ends(axes, labels)
    return drawing.finish(figure, "learning", TITLE, f"Line charts: {'; '.join(words)}.")


def times(result: RunResult) -> Section:
    """Return the section."""
    return Section("times", "Time to recall", (time_table(result),))


_TIMES: Sequence[TableColumn[TimeToRecall]] = (
    TableColumn("class", lambda row: row.device_class, str),
    TableColumn("share of best", lambda row: row.target_share, format_share),
    TableColumn("validation Recall@20", lambda row: row.recall, format_metric),
    TableColumn("round", lambda row: row.server_round, format_count),
    TableColumn("virtual s", lambda row: row.virtual_seconds, format_decimals),
    TableColumn("down per device", lambda row: row.download_bytes, format_bytes),
    TableColumn("up per device", lambda row: row.upload_bytes, format_bytes),
    TableColumn("energy J", lambda row: row.energy_j, format_decimals),
)


def time_table(result: RunResult) -> TableView | None:
    """When validation recall first reached a share of its best."""
    note = "Bytes and energy per device of the class, mean, up to and including that round."
    rows = result.time_to_recall
    return table_of("Time to recall, on the virtual clock", rows, _TIMES, note) if rows else None


def refinement(result: RunResult) -> Section:
    """Return the section."""
    return Section("kept", "Refinement", acceptance_views(result))


def acceptance_views(result: RunResult) -> list[TableView]:
    """Return how many user groups accepted how many rounds; nothing where no device was asked."""
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
    return [table_of("Acceptance of refinement", stage.comparisons, _COMPARISONS, note, terminal=True)]


_COMPARISONS: Sequence[TableColumn[ComparisonRow]] = (
    TableColumn("after round", lambda row: row.server_round),
    TableColumn("devices", lambda row: row.devices, format_count),
    TableColumn("difference", lambda row: f"{row.difference:+.4f}"),
    TableColumn("standard error", lambda row: row.standard_error, format_metric),
    TableColumn("accepting groups", lambda row: row.accepted, format_count),
    TableColumn("down", lambda row: row.download_bytes, format_bytes),
)


def traces(result: RunResult) -> Section:
    """Return the section."""
    caption = (
        "Line: the budget of that round. Left, filled: bytes stored, never above it. Right: blocks stored. Hatched: "
        "the device was offline."
    )
    return Section("traces", TRACES, (Chart(lambda: device_traces(result), caption),))


TRACES = "Budgets and stored blocks of single devices"


MAX_TRACES = 4  # devices drawn over the rounds


@drawing.in_both_forms
def device_traces(result: RunResult) -> Plot | None:
    """Budget, stored bytes and kept blocks of a few devices, round by round."""
    from matplotlib.ticker import MaxNLocator

    shown = [trace for trace in result.traces if trace.budget_bytes][:MAX_TRACES]
    if not shown:
        return None
    figure, panels = drawing.new_figure(0.7 + 1.25 * len(shown), len(shown), 2, sharex=True)
    words = []
    for trace, left, right in zip(shown, panels[::2], panels[1::2], strict=True):
        edges = np.arange(len(trace.budget_bytes) + 1) + 0.5
        budget, stored = _gaps(trace.budget_bytes), _gaps(trace.stored_bytes)
        known = np.concatenate((budget, stored))
        unit, scale = byte_unit(float(np.nanmax(known)) if np.isfinite(known).any() else 0.0)
        left.stairs(stored / scale, edges, fill=True, color=BLUE, alpha=0.35, linewidth=0)
        left.stairs(budget / scale, edges, color=INK, linewidth=1.5, baseline=None)
        left.set_ylim(bottom=0)
        left.set_ylabel(unit)
        left.set_title(f"device {trace.device}, {trace.device_class}", fontsize=9)
        away = [place for place, value in enumerate(trace.budget_bytes) if value is None]
        _shade_away((left, right), away)
        right.stairs(_gaps(trace.kept_blocks), edges, color=GREEN, fill=True, alpha=0.55, linewidth=0)
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        right.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        right.set_ylabel("blocks")
        kept = [blocks for blocks in trace.kept_blocks if blocks is not None]
        words.append(
            f"device {trace.device} ({trace.device_class}) stores {min(kept, default=0):,} to "
            f"{max(kept, default=0):,} blocks in {len(trace.budget_bytes)} rounds"
            + (f", offline in {len(away)} of them" if away else "")
        )
    for axes in panels[-1:] if drawing.is_narrow() else panels[-2:]:
        axes.set_xlabel("round")
        drawing.round_axis(axes, max(len(trace.budget_bytes) for trace in shown))
    for axes in panels:
        axes.grid(visible=False, axis="x")
    _key(panels[0], [("budget", INK), ("stored", BLUE)])
    _key(panels[1], [("stored blocks", GREEN)])
    return drawing.finish(
        figure,
        "traces",
        TRACES,
        f"Step charts of budget, stored bytes and stored blocks by round: {'; '.join(words)}.",
    )


def _shade_away(panels: Iterable[Axes], places: Sequence[int]) -> None:
    """Hatch the rounds in which a device was offline: that is not the same as holding nothing."""
    firsts = [place for place in places if place - 1 not in places]  # of rounds beside one another
    lasts = [place for place in places if place + 1 not in places]
    for axes in panels:
        for first, last in zip(firsts, lasts, strict=True):
            axes.axvspan(
                first + 0.5, last + 1.5, facecolor="none", edgecolor=MUTED, hatch="////", linewidth=0, alpha=0.6
            )
            word = axes.annotate(
                "offline",
                ((first + last) / 2 + 1, 0.5),
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                va="center",
                fontsize=drawing.LABEL_PT,
                color=darker(MUTED),
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
            )
            word.set_in_layout(False)  # within the panel, it needs no room


def _gaps(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _key(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Name the colours above the panel's right end and above its title, in those colours."""
    text = [(name, darker(color)) for name, color in reversed(entries)]
    offset = 0.0
    for name, color in text:
        axes.annotate(
            name,
            xy=(1, 1),
            xycoords="axes fraction",
            xytext=(-offset, 18),
            textcoords="offset points",
            ha="right",
            fontsize=drawing.LABEL_PT,
            fontweight="bold",
            color=color,
        )
        offset += 6.2 * len(name) + 8
