"""The bar charts of a run: recall by device class and by user group, seconds by stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulations.report.plots.style import (
    BLUE,
    GREEN,
    INK,
    LABEL_PT,
    MUTED,
    Plot,
    around,
    error_bars,
    finish,
    label_ends,
    new_figure,
    yardstick,
)
from simulations.report.tables.view import format_bytes
from strategies.figures.schema import RunResult, UserGroupRow

MAX_NAMED_GROUPS = 32  # more user groups than this are not named one by one


def recall_by_class(result: RunResult) -> Plot | None:
    """Recall of each device class under its own budgets, against the full tables; one bar a line."""
    bars = [
        (name, row.recall, f"{row.devices:,} devices, {format_bytes(row.budget_bytes_mean)}")
        for name, row in result.device_classes.items()
        if row.recall is not None
    ]
    if not bars:
        return None
    figure, (axes,) = new_figure(1.0 + 0.4 * len(bars))
    y = np.arange(len(bars))[::-1]
    values = [value for _, value, _ in bars]
    axes.barh(y, values, height=0.7, color=BLUE)
    margins = [row.recall_margin or 0.0 for row in result.device_classes.values() if row.recall is not None]
    if any(margins):
        axes.errorbar(values, y, xerr=margins, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2.5, zorder=4)
    axes.set_yticks(y, [f"{_shorten(name)}\n{detail}" for name, _, detail in bars])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"Recall@{result.top_n} under each class's own budgets")
    for place, value in zip(y, values, strict=True):
        inside = value > 0.25 * max(values)  # at the foot of the bar, clear of the yardsticks
        axes.annotate(
            f"{value:.4f}",
            (0.0 if inside else value, float(place)),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_PT,
            fontweight="bold",
            color="white" if inside else INK,
        )
    marks = full_recalls(result)
    top = max([*values, *(value for _, value, _ in marks)])
    axes.set_xlim(0, max(top * 1.25, *(v + m for v, m in zip(values, margins, strict=True))) if top else 1)
    for side, (name, value, color) in zip(("right", "left"), sorted(marks, key=lambda mark: mark[1]), strict=False):
        axes.axvline(value, color=color, linewidth=1.1, linestyle=(0, (5, 3)), zorder=3)
        axes.annotate(
            f"full table, {name} {value:.4f}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3 if side == "left" else -3, 3),
            textcoords="offset points",
            ha=side,
            fontsize=LABEL_PT,
            color=color,
        )
    low, high = min(bars, key=lambda bar: bar[1]), max(bars, key=lambda bar: bar[1])
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(bars)} device classes: from {low[1]:.4f} ({low[0]}) "
        f"to {high[1]:.4f} ({high[0]})."
    )
    return finish(figure, "classes", "Recall by device class", alt)


def full_recalls(result: RunResult) -> list[tuple[str, float, str]]:
    """Name, recall and colour of the full tables that were measured, as yardsticks."""
    full = result.full_table
    first = ("global", full.globally) if full.globally is not None else ("start", full.start)
    tables = ((*first, MUTED), ("refined", full.refined, INK))
    return [(name, quality.recall, color) for name, quality, color in tables if quality is not None]


def _shorten(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def recall_by_group(result: RunResult) -> Plot | None:
    """Recall of each user group; beyond `MAX_NAMED_GROUPS` groups the bars are sorted and unnamed."""
    rows: Sequence[UserGroupRow] = result.user_groups
    if len(rows) > MAX_NAMED_GROUPS:
        rows = sorted(rows, key=lambda row: row.recall or 0.0)
    measured = [
        (str(row.group), row.recall, f"{row.devices:,} devices" if len(rows) <= 10 else "")
        for row in rows
        if row.recall is not None
    ]
    if not measured:
        return None
    figure, (axes,) = new_figure(2.8)
    x = np.arange(len(measured))
    heights = [value for _, value, _ in measured]
    ends = [around(row.recall, row.recall_margin) for row in rows if row.recall is not None]
    axes.bar(x, heights, width=min(0.72, 0.14 * len(measured) + 0.1), color=GREEN)
    error_bars(axes, [float(place) for place in x], heights, ends, INK if len(measured) <= MAX_NAMED_GROUPS else MUTED)
    axes.set_xlim(-0.6, len(measured) - 0.4)
    axes.grid(visible=False, axis="x")
    if len(measured) <= MAX_NAMED_GROUPS:
        axes.set_xticks(x, [f"{label}\n{detail}".rstrip() for label, _, detail in measured])
        axes.set_xlabel("user group")
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(measured)} user groups, sorted by recall")
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
    marks = full_recalls(result)
    axes.set_ylabel(f"Recall@{result.top_n}")
    top = max([*heights, *(value for _, value, _ in marks), *(high for _, high in filter(None, ends))])
    axes.set_ylim(0, top * 1.12 if top else 1)
    label_ends(axes, [yardstick(axes, value, f"full table, {name}", color) for name, value, color in reversed(marks)])
    low, high = min(measured, key=lambda bar: bar[1]), max(measured, key=lambda bar: bar[1])
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(measured)} user groups: from {low[1]:.4f} ({low[0]}) "
        f"to {high[1]:.4f} ({high[0]})."
    )
    return finish(figure, "groups", "Recall by user group", alt)


def stage_seconds(result: RunResult) -> Plot | None:
    """Wall seconds of each stage."""
    stages = result.stages
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
    return finish(figure, "stages", "Where the time went", alt)
