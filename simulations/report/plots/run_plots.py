"""Figures of a run: each function answers one question with a `Plot`, or None without data.

`report_figures(read_report(path))` gives them all, for slides and papers. Nothing here touches pyplot: figures
are values, and no window or global state is involved. Bar charts are in `bars`, the figure of a comparison
is in `simulations.studies.compare.compare_plot`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from simulations.report.plots.bars import full_recalls, recall_by_class, recall_by_group, stage_seconds
from simulations.report.plots.heterogeneity_plots import (
    fairness_by_class,
    fleet_budgets,
    moving_budgets,
    recall_after_falls,
)
from simulations.report.plots.style import (
    BLUE,
    GREEN,
    INK,
    LABEL_PT,
    MUTED,
    ORANGE,
    PAPER,
    EndLabel,
    Ends,
    Plot,
    darker,
    error_bars,
    finish,
    hover,
    in_both_forms,
    is_narrow,
    label_ends,
    line_kwargs,
    new_figure,
    short_bytes,
    yardstick,
)
from simulations.report.tables.labels import selector_name
from simulations.report.tables.table_view import byte_unit, format_bytes, format_interval, format_share
from strategies.figures.schema import BudgetRow, HistoryRow, RoundRow, RunResult

MAX_TRACES = 4  # devices drawn over the rounds


def report_figures(result: RunResult) -> tuple[Plot, ...]:
    """Return every figure of a run for which it has data, in reading order."""
    plots = (
        recall_by_budget(result),
        device_traces(result),
        bytes_by_round(result),
        learning_curves(result),
        recall_by_class(result),
        recall_by_group(result),
        stage_seconds(result),
        fleet_budgets(result),
        fairness_by_class(result),
        recall_after_falls(result),
        moving_budgets(result),
    )
    return tuple(plot for plot in plots if plot is not None)


def share_axis(axes: Axes, shares: Sequence[float], full_bytes: float | None) -> None:
    """Log x axis in % of the fp32 full table, ticks at the budgets measured; KB along the top."""
    ticks = sorted(set(shares))
    axes.set_xscale("log")
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xticks(ticks, [format_share(tick) for tick in ticks], rotation=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    if is_narrow():
        axes.set_xlabel("budget, share of the full table (log scale)")
        return
    axes.set_xlabel("budget, % of the bytes of the fp32 full item table (log scale)")
    if full_bytes:
        top = axes.secondary_xaxis("top")
        top.set_xticks(ticks, [short_bytes(tick * full_bytes) for tick in ticks])
        top.xaxis.set_minor_locator(NullLocator())
        top.xaxis.set_minor_formatter(NullFormatter())
        top.tick_params(colors=MUTED, length=2, labelsize=7.5)
        top.spines["top"].set_visible(False)


def line_over_shares(
    axes: Axes, shares: Sequence[float], values: Sequence[float], ends: Sequence[Ends], index: int, count: int
) -> str:
    """Draw line ``index`` of ``count`` over the axis of :func:`share_axis`, with bars from end to end that stand beside
    those of the others; returns its colour.
    """
    style = line_kwargs(index)
    axes.plot(shares, values, **style)
    aside = 1.025 ** (index - (count - 1) / 2)
    color: str = style["color"]
    error_bars(axes, [share * aside for share in shares], values, ends, color)
    return color


@in_both_forms
def recall_by_budget(result: RunResult) -> Plot | None:
    """Recall against the budget, one line per precision and selector, from zero, with the best full table and its
    interval for comparison. The global table is drawn, too.
    """
    drawn = recall_figure(result)
    return None if drawn is None else finish(drawn[0], "recall", "Recall against the budget", drawn[1])


def recall_figure(result: RunResult) -> tuple[Figure, str] | None:
    """The same as a figure, and in words; draw it within `styled()`."""
    rows = sorted(result.budgets, key=lambda row: (row.precision, row.selector, row.share))
    if not rows:
        return None
    figure, (axes,) = new_figure(4.1)
    share_axis(axes, [row.share for row in rows], result.full_table.bytes)
    labels, words = [], []
    lines = [(key, list(group)) for key, group in groupby(rows, key=lambda row: (row.precision, row.selector))]
    for index, ((precision, selector), line) in enumerate(lines):
        x, y = [row.share for row in line], [row.recall for row in line]
        ends = [None if one is None else (one.low, one.high) for one in (row.recall_interval for row in line)]
        color = line_over_shares(axes, x, y, ends, index, len(lines))
        name = f"{precision}, {line_name(selector, {row.selector for row in rows})}".removesuffix(", ")
        labels.append(EndLabel(name, x[-1], y[-1], color, bold=True))
        words.append(f"{name} goes from {y[0]:.4f} at {format_share(x[0])} to {y[-1]:.4f} at {format_share(x[-1])}")
        hover(axes, x, y, [_budget_words(row, name) for row in line])
    full = sorted(full_recalls(result), key=lambda one: -one.quality.recall)
    best = full[0] if full else None
    for one in full:
        if one is best or one.name == "global":
            kind, color = ("best full table", INK) if one is best else ("full table", MUTED)
            caption = f"{kind}: {one.name} {one.quality.recall:.4f}"
            labels.append(replace(yardstick(axes, one.quality.recall, caption, color), bold=one is best))
            words.append(f"{kind}, {one.name}: {one.quality.recall:.4f}")
    if best is not None and best.quality.recall_interval is not None:
        known = best.quality.recall_interval
        axes.axhspan(known.low, known.high, color=INK, alpha=0.08, linewidth=0, zorder=0)
    tops = [row.recall_interval.high if row.recall_interval else row.recall for row in rows]
    axes.set_ylim(0, 1.1 * max([*tops, *([best.quality.recall] if best else []), 1e-9]))
    axes.set_ylabel(f"Recall@{result.top_n} (test, mean over devices)")
    label_ends(axes, labels)
    return figure, f"Line chart of Recall@{result.top_n} against budget: {'; '.join(words)}."


def line_name(selector: str, selectors: Collection[str]) -> str:
    """Return the name that distinguishes a line from others of its precision: what chose its blocks, where there is a
    choice.
    """
    return f"by {selector_name(selector)}" if len(selectors) > 1 else ""


def _budget_words(row: BudgetRow, name: str) -> str:
    known = row.recall_interval
    within = format_interval(row.recall, *((known.low, known.high) if known else (None, None)))
    over = "" if row.to_strongest is None else f", {row.to_strongest.value:.3f} relative to the best full table"
    return f"{name}: {within} at {format_share(row.share)}, {format_bytes(row.budget_bytes)}{over}"


@in_both_forms
def device_traces(result: RunResult) -> Plot | None:
    """Budget, stored bytes and kept blocks of a few devices, round by round."""
    traces = [trace for trace in result.traces if trace.budget_bytes][:MAX_TRACES]
    if not traces:
        return None
    figure, panels = new_figure(0.7 + 1.25 * len(traces), len(traces), 2, sharex=True)
    words = []
    for trace, left, right in zip(traces, panels[::2], panels[1::2], strict=True):
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
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        right.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        right.set_ylabel("blocks")
        kept = [blocks for blocks in trace.kept_blocks if blocks is not None]
        words.append(
            f"device {trace.device} ({trace.device_class}) stores {min(kept, default=0):,} to "
            f"{max(kept, default=0):,} blocks in {len(trace.budget_bytes)} rounds"
            + (f", offline in {len(away)} of them" if away else "")
        )
    figure.align_ylabels(panels)
    for axes in panels[-1:] if is_narrow() else panels[-2:]:
        axes.set_xlabel("round")
        _round_axis(axes, max(len(trace.budget_bytes) for trace in traces))
    for axes in panels:
        axes.grid(visible=False, axis="x")
    _key(panels[0], [("budget", INK), ("stored", BLUE)])
    _key(panels[1], [("stored blocks", GREEN)])
    return finish(
        figure,
        "traces",
        "Budgets and stored blocks of single devices",
        f"Step charts of budget, stored bytes and stored blocks by round: {'; '.join(words)}.",
    )


def _shade_away(panels: Iterable[Axes], places: Sequence[int]) -> None:
    """Hatch the rounds in which a device was offline, from below to above: it took no part, which is not the same as
    holding nothing.
    """
    for axes in panels:
        for place in places:
            axes.axvspan(
                place + 0.5, place + 1.5, facecolor="none", edgecolor=MUTED, hatch="////", linewidth=0, alpha=0.6
            )
        runs = [place for place in places if place - 1 not in places]  # one word for rounds beside one another
        for first in runs:
            last = next(place for place in range(first, places[-1] + 1) if place + 1 not in places)
            axes.annotate(
                "offline",
                ((first + last) / 2 + 1, 0.5),
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                va="center",
                fontsize=LABEL_PT,
                color=darker(MUTED),
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
            )


def _round_axis(axes: Axes, num_rounds: int) -> None:
    """Rounds counted from 1, each half a unit to either side."""
    axes.set_xlim(0.5, num_rounds + 0.5)
    steps = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if num_rounds / step <= 10]
    step = steps[0] if steps else num_rounds
    axes.set_xticks([1, *range(step, num_rounds + 1, step)] if step > 1 else range(1, num_rounds + 1))


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
            fontsize=LABEL_PT,
            fontweight="bold",
            color=color,
        )
        offset += 6.2 * len(name) + 8


@in_both_forms
def bytes_by_round(result: RunResult) -> Plot | None:
    """Bytes that crossed the network each round, all devices together: download above zero, upload below."""
    rounds = result.rounds
    if not rounds:
        return None
    down = np.array([row.download_bytes for row in rounds], dtype=np.float64)
    up = np.array([row.upload_bytes for row in rounds], dtype=np.float64)
    unit, scale = byte_unit(float(max(down.max(), up.max())))
    figure, (axes,) = new_figure(2.7)
    edges = np.arange(len(rounds) + 1) + 0.5
    axes.stairs(down / scale, edges, fill=True, color=BLUE)
    axes.stairs(-up / scale, edges, fill=True, color=ORANGE)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    _round_axis(axes, len(rounds))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("round")
    axes.set_ylabel(f"{unit} per round, all devices")
    hover(axes, [row.server_round for row in rounds], (down / scale).tolist(), [_round_words(row) for row in rounds])
    label_ends(
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
    return finish(figure, "bytes", "Bytes on the network", alt)


def _round_words(row: RoundRow) -> str:
    down, up = format_bytes(row.download_bytes), format_bytes(row.upload_bytes)
    return f"round {row.server_round}: {down} down, {up} up, {row.devices:,} devices"


@in_both_forms
def learning_curves(result: RunResult) -> Plot | None:
    """Loss and recall (or NDCG) after each round; over the virtual clock too."""
    history = result.history
    losses = [_curve("loss", history, lambda row: row.loss)]
    losses += [_curve("controller loss", history, lambda row: row.controller_loss)]
    quality = [_curve("validation Recall@20", history, lambda row: row.recall)]
    quality += [_curve("validation NDCG@20", history, lambda row: row.ndcg)]
    panels: list[tuple[list[Curve], str, str]] = []
    if any(curve.values for curve in losses):
        panels.append((losses, "loss", "round"))
    if any(curve.values for curve in quality):
        panels += [(quality, "mean over devices", over) for over in ("round", "virtual clock, s")]
    if not panels:
        return None
    figure, plots = new_figure(2.4 * len(panels) + 0.1, len(panels), 1)
    words = []
    for axes, (curves, unit, over) in zip(plots, panels, strict=True):
        labels = []
        for index, curve in enumerate(curves):
            x, y = curve.rounds if over == "round" else curve.virtual_seconds, curve.values
            if not y:
                continue
            style = line_kwargs(index) | {"marker": "o" if len(x) <= 30 else ""}
            axes.plot(x, y, **style)
            hover(axes, x, y, [f"{curve.name} {value:.4g}, {over} {at:.4g}" for at, value in zip(x, y, strict=True)])
            labels.append(EndLabel(f"{curve.name} {y[-1]:.4g}", x[-1], y[-1], style["color"]))
            words.append(f"{curve.name} goes from {y[0]:.4g} to {y[-1]:.4g} over the {over}")
        axes.set_xlabel(over)
        axes.set_ylabel(unit)
        if over == "round":
            _round_axis(axes, max(row.server_round for row in history))
        label_ends(axes, labels)
    return finish(figure, "learning", "Metrics by round", f"Line charts: {'; '.join(words)}.")


@dataclass(frozen=True)
class Curve:
    """The values measured in some of the rounds, by round and by time on the virtual clock; equally long."""

    name: str
    rounds: tuple[float, ...]
    virtual_seconds: tuple[float, ...]
    values: tuple[float, ...]


def _curve(name: str, history: Sequence[HistoryRow], of: Callable[[HistoryRow], float | None]) -> Curve:
    measured = [(row.server_round, row.virtual_seconds, value) for row in history if (value := of(row)) is not None]
    rounds, seconds, values = zip(*measured, strict=True) if measured else ((), (), ())
    return Curve(name, rounds, seconds, values)
