"""The bar charts of a run: recall by device class and by user group, seconds by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from simulations.report.plots.style import (
    BLUE,
    GREEN,
    INK,
    LABEL_PT,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    VERMILLION,
    Plot,
    around,
    darker,
    error_bars,
    finish,
    hover,
    in_both_forms,
    is_narrow,
    label_ends,
    new_figure,
    yardstick,
)
from simulations.report.tables.labels import METHODS
from simulations.report.tables.run_tables import own_full_tables
from simulations.report.tables.table_view import format_bytes
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, RunResult, TableQuality, UserGroupRow

MAX_NAMED_GROUPS = 32  # more user groups than this are not named one by one


@in_both_forms
def recall_by_class(result: RunResult) -> Plot | None:
    """Recall of each device class under its own budgets, one bar a line, and of the same devices with full tables where
    that was measured.
    """
    bars = [(name, row, row.recall) for name, row in result.device_classes.items() if row.recall is not None]
    if not bars:
        return None
    figure, (axes,) = new_figure(1.15 + 0.44 * len(bars))
    y = [float(place) for place in np.arange(len(bars))[::-1]]
    values = [value for *_, value in bars]
    ends = [around(value, row.recall_margin) for _, row, value in bars]
    axes.barh(y, values, height=0.7, color=BLUE)
    error_bars(axes, values, y, ends, INK, across=True)
    names = [
        f"{_shorten(name)}\n{row.devices:,} devices, {format_bytes(row.budget_bytes_mean)}" for name, row, _ in bars
    ]
    axes.set_yticks(y, names)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"Recall@{result.top_n} under each class's own budgets")
    _name_bars(axes, values, y)
    own = own_full_tables(result)
    top = max([*values, *(high for _, high in filter(None, ends))])
    labels, words = [], []
    for (table, color), marker in zip(FULL_TABLES.items(), ("D", "s"), strict=True):
        of_classes = [own.get(name, {}).get(table) for name, *_ in bars]
        known = [(value, place) for value, place in zip(of_classes, y, strict=True) if value is not None]
        if known:
            x, places = zip(*known, strict=True)
            style: dict[str, Any] = {"color": color, "markeredgecolor": PAPER, "markersize": 7, "zorder": 5}
            axes.plot(x, places, marker, label=METHODS[table], **style)
            top = max(top, *x)
            words.append(f"{METHODS[table]} {min(x):.4f} to {max(x):.4f}")
            labels.append(METHODS[table])
    hover(axes, values, y, [_class_words(name, value, own.get(name, {})) for name, _, value in bars])
    axes.set_xlim(0, top * 1.12 if top else 1)
    if labels:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=1 if is_narrow() else 2, frameon=False,
            fontsize=LABEL_PT, borderaxespad=0.2, title="same devices with the", alignment="left",
            title_fontsize=LABEL_PT,
        )  # fmt: skip
    low, high = min(bars, key=lambda bar: bar[2]), max(bars, key=lambda bar: bar[2])
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(bars)} device classes: from {low[2]:.4f} ({low[0]}) "
        f"to {high[2]:.4f} ({high[0]}){'; the same devices with the ' * bool(words)}{', '.join(words)}."
    )
    return finish(figure, "classes", "Recall by device class", alt)


FULL_TABLES = {FULL_REFINED: VERMILLION, FULL_GLOBAL: ORANGE}
"""Full tables that classes are compared with, and their colours."""


def _class_words(name: str, recall: float, own: Mapping[str, float]) -> str:
    return "; ".join([f"{name}: {recall:.4f}", *(f"{METHODS[table]} {value:.4f}" for table, value in own.items())])


def _name_bars(axes: Axes, values: Sequence[float], places: Sequence[float]) -> None:
    """The figure of each bar at its foot, clear of marks; beside it where it is short."""
    for place, value in zip(places, values, strict=True):
        inside = value > 0.25 * max(values)
        axes.annotate(
            f"{value:.4f}",
            (0.0 if inside else value, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=LABEL_PT,
            fontweight="bold",
            color=PAPER if inside else INK,
        )


@dataclass(frozen=True)
class FullTableRecall:
    """A full table that was measured: its name for readers, its quality, and the colour of its line."""

    name: str
    quality: TableQuality
    color: str


def full_recalls(result: RunResult) -> list[FullTableRecall]:
    """The full tables that were measured, as yardsticks."""
    full = result.full_table
    tables = (
        ("global", full.globally, MUTED),
        ("before refinement", full.start, PURPLE),
        ("refined", full.refined, INK),
    )
    return [FullTableRecall(name, quality, color) for name, quality, color in tables if quality is not None]


def _shorten(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


@in_both_forms
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
    axes.bar(x, heights, width=min(0.72, 0.14 * len(measured) + 0.1), color=darker(GREEN))
    hover(axes, x.tolist(), heights, [f"user group {group}: {value:.4f}" for group, value, _ in measured])
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
                color=PAPER if inside else INK,
                fontweight="bold",
            )
    marks = [one for one in full_recalls(result) if one.name != "before refinement"]
    axes.set_ylabel(f"Recall@{result.top_n}")
    top = max([*heights, *(one.quality.recall for one in marks), *(high for _, high in filter(None, ends))])
    axes.set_ylim(0, top * 1.12 if top else 1)
    label_ends(axes, [yardstick(axes, one.quality.recall, f"full table, {one.name}", one.color) for one in marks])
    low, high = min(measured, key=lambda bar: bar[1]), max(measured, key=lambda bar: bar[1])
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(measured)} user groups: from {low[1]:.4f} ({low[0]}) "
        f"to {high[1]:.4f} ({high[0]})."
    )
    return finish(figure, "groups", "Recall by user group", alt)


@in_both_forms
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
