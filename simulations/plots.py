"""What the figures of a run show: each function answers one question with a `Plot`, or None without data.

`report_figures(read_report(path))` gives them all, for slides and papers. Nothing here touches pyplot: figures
are values, and no window or global state is involved. The figure of a comparison is in `plots_compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from simulations.plot_style import (
    BLUE,
    GREEN,
    INK,
    LABEL_PT,
    MUTED,
    ORANGE,
    EndLabel,
    Plot,
    darker,
    label_ends,
    line_kwargs,
    new_figure,
    short_bytes,
    styled,
    to_svg,
    yardstick,
)
from simulations.report_schema import RunResult
from simulations.report_tables import byte_unit, format_bytes, format_share, metric_name

MAX_TRACES = 4  # devices drawn over the rounds
MAX_NAMED_GROUPS = 32  # more user groups than this are not named one by one


def report_figures(result: RunResult) -> tuple[Plot, ...]:
    """Return every figure of a run for which it has data, in reading order."""
    with styled():
        plots = (
            recall_by_budget(result),
            device_traces(result),
            bytes_by_round(result),
            learning_curves(result),
            recall_by_class(result),
            recall_by_group(result),
            stage_seconds(result),
        )
    return tuple(plot for plot in plots if plot is not None)


def _finish(figure: Figure, name: str, title: str, alt: str) -> Plot:
    return Plot(name, title, alt, to_svg(figure, name, alt))


def _share_axis(axes: Axes, shares: Sequence[float], full_bytes: float | None) -> None:
    """Log x axis in % of the fp32 full table, ticks at the budgets measured; KB along the top."""
    ticks = sorted(set(shares))
    axes.set_xscale("log")
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.set_xticks(ticks, [format_share(tick) for tick in ticks], rotation=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("budget, % of the bytes of the fp32 full item table (log scale)")
    axes.grid(visible=False, axis="x")
    if full_bytes:
        top = axes.secondary_xaxis("top")
        top.set_xticks(ticks, [short_bytes(tick * full_bytes) for tick in ticks])
        top.xaxis.set_minor_locator(NullLocator())
        top.xaxis.set_minor_formatter(NullFormatter())
        top.tick_params(colors=MUTED, length=2, labelsize=7.5)
        top.spines["top"].set_visible(False)


def recall_by_budget(result: RunResult) -> Plot | None:
    """Recall@20 against the budget, one line a precision and selector, with the full tables as yardsticks."""
    rows = sorted(result["budgets"], key=lambda row: (row["precision"], row["selector"], row["share"]))
    if not rows:
        return None
    full = result["full_table"]
    precisions, selectors = {row["precision"] for row in rows}, {row["selector"] for row in rows}
    figure, (axes,) = new_figure(3.9)
    _share_axis(axes, [row["share"] for row in rows], full["bytes"])
    labels, words = [], []
    for index, ((precision, selector), group) in enumerate(
        groupby(rows, key=lambda row: (row["precision"], row["selector"]))
    ):
        line = list(group)
        x, y = [row["share"] for row in line], [row["recall@20"] for row in line]
        style = line_kwargs(index)
        axes.plot(x, y, **style)
        parts = [selector] * (len(selectors) > 1) + [precision] * (len(precisions) > 1 or len(selectors) == 1)
        name = " ".join(parts)
        labels.append(EndLabel(name, x[-1], y[-1], style["color"], bold=True))
        words.append(f"{name} goes from {y[0]:.4f} at {format_share(x[0])} to {y[-1]:.4f} at {format_share(x[-1])}")
    for name, color in (("refined", INK), ("global", MUTED)):
        value = full["refined"]["recall@20"] if name == "refined" else full["global"]["recall@20"]
        labels.append(yardstick(axes, value, f"full table, {name} {value:.4f}", color))
        words.append(f"the full {name} table reaches {value:.4f}")
    axes.set_ylabel("Recall@20 (test, mean over devices)")
    axes.margins(y=0.08)
    label_ends(axes, labels)
    return _finish(
        figure,
        "recall",
        "Recall against the budget",
        f"Line chart of Recall@20 against budget: {'; '.join(words)}.",
    )


def device_traces(result: RunResult) -> Plot | None:
    """Budget, stored bytes and kept blocks of a few devices, round by round."""
    traces = [trace for trace in result.get("traces", []) if trace["budget_bytes"]][:MAX_TRACES]
    if not traces:
        return None
    figure, panels = new_figure(0.7 + 1.25 * len(traces), len(traces), 2, sharex=True)
    words = []
    for trace, left, right in zip(traces, panels[::2], panels[1::2], strict=True):
        edges = np.arange(len(trace["budget_bytes"]) + 1) + 0.5
        budget, stored = _gaps(trace["budget_bytes"]), _gaps(trace["stored_bytes"])
        known = np.concatenate((budget, stored))
        unit, scale = byte_unit(float(np.nanmax(known)) if np.isfinite(known).any() else 0.0)
        left.stairs(stored / scale, edges, fill=True, color=BLUE, alpha=0.35, linewidth=0)
        left.stairs(budget / scale, edges, color=INK, linewidth=1.5, baseline=None)
        left.set_ylim(bottom=0)
        left.set_ylabel(unit)
        left.set_title(f"device {trace['device']}, {trace['device_class']}", fontsize=9)
        right.stairs(_gaps(trace["kept_blocks"]), edges, color=GREEN, fill=True, alpha=0.55, linewidth=0)
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        right.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        right.set_ylabel("blocks")
        kept = [blocks for blocks in trace["kept_blocks"] if blocks is not None]
        words.append(
            f"device {trace['device']} ({trace['device_class']}) keeps {min(kept, default=0):,} to "
            f"{max(kept, default=0):,} blocks in {len(trace['budget_bytes'])} rounds"
        )
    figure.align_ylabels(panels)
    for axes in panels[-2:]:
        axes.set_xlabel("round")
        _round_axis(axes, max(len(trace["budget_bytes"]) for trace in traces))
    for axes in panels:
        axes.grid(visible=False, axis="x")
    _key(panels[0], [("budget", INK), ("stored", BLUE)])
    _key(panels[1], [("kept blocks", GREEN)])
    return _finish(
        figure,
        "traces",
        "Budgets that move, and what devices keep",
        f"Step charts of budget, stored bytes and kept blocks by round: {'; '.join(words)}.",
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
    """Name the colours above the panel's right end, in those colours."""
    text = [(name, darker(color)) for name, color in reversed(entries)]
    offset = 0.0
    for name, color in text:
        axes.annotate(
            name,
            xy=(1, 1),
            xycoords="axes fraction",
            xytext=(-offset, 4),
            textcoords="offset points",
            ha="right",
            fontsize=LABEL_PT,
            fontweight="bold",
            color=color,
        )
        offset += 6.2 * len(name) + 8


def bytes_by_round(result: RunResult) -> Plot | None:
    """Bytes that crossed the network each round, all devices together: download above zero, upload below."""
    rounds = result["rounds"]
    if not rounds:
        return None
    down = np.array([row["download_bytes"] for row in rounds], dtype=np.float64)
    up = np.array([row["upload_bytes"] for row in rounds], dtype=np.float64)
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
    axes.set_ylabel(f"{unit} a round, all devices")
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
    return _finish(figure, "bytes", "Bytes on the network", alt)


def learning_curves(result: RunResult) -> Plot | None:
    """Loss and recall (or NDCG) after each round; over the virtual clock too where there is one."""
    history: Sequence[Mapping[str, Any]] = result.get("history", [])
    keys = list(dict.fromkeys(key for row in history for key in row))
    quality = [key for key in keys if "recall" in key or "ndcg" in key]
    losses = [key for key in keys if "loss" in key]
    panels: list[tuple[list[str], str, str, str]] = []
    if losses:
        panels.append((losses, "server_round", "loss", "round"))
    if quality:
        panels.append((quality, "server_round", "mean over devices", "round"))
        if any(row.get("virtual_seconds") is not None for row in history):
            panels.append((quality, "virtual_seconds", "mean over devices", "virtual clock, s"))
    if not panels:
        return None
    figure, plots = new_figure(2.4 * len(panels) + 0.1, len(panels), 1)
    words = []
    for axes, (names, over, unit, x_label) in zip(plots, panels, strict=True):
        labels = []
        for index, name in enumerate(names):
            points = [
                (row[over], row[name]) for row in history if row.get(over) is not None and row.get(name) is not None
            ]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            style = line_kwargs(index) | {"marker": "o" if len(x) <= 30 else ""}
            axes.plot(x, y, **style)
            labels.append(EndLabel(f"{metric_name(name)} {y[-1]:.4g}", x[-1], y[-1], style["color"]))
            words.append(f"{metric_name(name)} goes from {y[0]:.4g} to {y[-1]:.4g} over the {x_label}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(unit)
        if over == "server_round":
            _round_axis(axes, max(row[over] for row in history))
        label_ends(axes, labels)
    return _finish(figure, "learning", "Learning, round by round", f"Line charts: {'; '.join(words)}.")


def recall_by_class(result: RunResult) -> Plot | None:
    """Recall@20 of each device class under its own budgets, against the full global table."""
    named = [
        (name, row["recall@20"], f"{row['devices']:,} devices\n{format_bytes(row['budget_bytes_mean'])}")
        for name, row in result["device_classes"].items()
    ]
    return _recall_bars(result, named, "classes", "Recall by device class", "device class", BLUE)


def recall_by_group(result: RunResult) -> Plot | None:
    """Recall@20 of each user group; beyond `MAX_NAMED_GROUPS` groups the bars are sorted and unnamed."""
    rows = result.get("user_groups", [])
    if len(rows) > MAX_NAMED_GROUPS:
        rows = sorted(rows, key=lambda row: row["recall@20"] or 0.0)
    few = len(rows) <= 10
    named = [(str(row["group"]), row["recall@20"], f"{row['devices']:,} devices" if few else "") for row in rows]
    return _recall_bars(result, named, "groups", "Recall by user group", "user group", GREEN)


def _recall_bars(
    result: RunResult,
    named: Sequence[tuple[str, float | None, str]],
    name: str,
    title: str,
    x_label: str,
    color: str,
) -> Plot | None:
    measured = [(label, value, detail) for label, value, detail in named if value is not None]
    if not measured:
        return None
    figure, (axes,) = new_figure(2.8)
    x = np.arange(len(measured))
    heights = [value for _, value, _ in measured]
    axes.bar(x, heights, width=min(0.72, 0.14 * len(measured) + 0.1), color=color)
    axes.set_xlim(-0.6, len(measured) - 0.4)
    axes.grid(visible=False, axis="x")
    if len(measured) <= MAX_NAMED_GROUPS:
        axes.set_xticks(x, [f"{label}\n{detail}".rstrip() for label, _, detail in measured])
        axes.set_xlabel(x_label)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(measured)} {x_label}s, sorted by recall")
    if len(measured) <= 10:
        for place, value in zip(x, heights, strict=True):
            inside = value > 0.15 * max(heights)
            axes.annotate(
                f"{value:.4f}",
                (float(place), value),
                xytext=(0, -5 if inside else 3),
                textcoords="offset points",
                ha="center",
                va="top" if inside else "bottom",
                fontsize=LABEL_PT,
                color="white" if inside else INK,
                fontweight="bold",
            )
    full = result["full_table"]
    axes.set_ylabel("Recall@20")
    top = max(*heights, full["global"]["recall@20"], full["refined"]["recall@20"])
    axes.set_ylim(0, top * 1.12 if top else 1)
    label_ends(
        axes,
        [
            yardstick(axes, full["refined"]["recall@20"], "full table, refined", INK),
            yardstick(axes, full["global"]["recall@20"], "full table, global", MUTED),
        ],
    )
    low, high = min(measured, key=lambda bar: bar[1]), max(measured, key=lambda bar: bar[1])
    alt = (
        f"Bar chart of Recall@20 for {len(measured)} {x_label}s: from {low[1]:.4f} ({low[0]}) "
        f"to {high[1]:.4f} ({high[0]})."
    )
    return _finish(figure, name, title, alt)


def stage_seconds(result: RunResult) -> Plot | None:
    """Wall seconds of each stage."""
    stages = result["stages"]
    if not stages:
        return None
    figure, (axes,) = new_figure(0.75 + 0.27 * len(stages))
    y = np.arange(len(stages))[::-1]
    axes.barh(y, list(stages.values()), color=MUTED, height=0.65)
    axes.set_yticks(y, list(stages))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("wall time, s")
    for place, seconds in zip(y, stages.values(), strict=True):
        axes.annotate(
            f"{seconds:,.1f}",
            (seconds, float(place)),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_PT,
        )
    axes.margins(x=0.1)
    alt = "Bar chart of wall seconds: " + ", ".join(f"{name} {s:,.1f}" for name, s in stages.items()) + "."
    return _finish(figure, "stages", "Where the time went", alt)
