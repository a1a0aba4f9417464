"""Budgets and stored blocks of a few devices, round by round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.section import Chart, Section
from simulations.report.table_view import byte_unit
from simulations.report.theme import BLUE, GREEN, INK, MUTED, PAPER, darker
from strategies.figures.schema import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def traces(result: RunResult) -> Section:
    """Return the section."""
    caption = (
        "Line: the budget of that round. Left, filled: bytes stored, never above it. Right: blocks stored. Hatched: "
        "the device was offline."
    )
    return Section("traces", TITLE, (Chart(lambda: device_traces(result), caption),))


TITLE = "Budgets and stored blocks of single devices"


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
    figure.align_ylabels(panels)
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
        TITLE,
        f"Step charts of budget, stored bytes and stored blocks by round: {'; '.join(words)}.",
    )


def _shade_away(panels: Iterable[Axes], places: Sequence[int]) -> None:
    """Hatch the rounds in which a device was offline, from below to above: it took no part, which is not the same as
    holding nothing.
    """
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
