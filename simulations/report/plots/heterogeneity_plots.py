"""The figures of a study of devices: who gets what, what a fall of all budgets leaves, devices followed over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from simulations.report.plots.style import (
    BLUE,
    GREEN,
    INK,
    LABEL_PT,
    LEGEND_IN,
    MARKERS,
    MUTED,
    ORANGE,
    PALETTE,
    PAPER,
    VERMILLION,
    EndLabel,
    Plot,
    around,
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
from simulations.report.tables.labels import METHODS
from simulations.report.tables.table_view import format_share
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, PEEL, RunResult

MAX_TRACES = 4


@in_both_forms
def fairness_by_class(result: RunResult) -> Plot | None:
    """Recall of every device class under each way of serving it: a line of dots a class."""
    part = result.fairness
    rows = [row for row in part.by_class if row.recall[PEEL] is not None] if part is not None else []
    methods = [name for name in METHODS if any(row.recall.get(name) is not None for row in rows)]
    if len(methods) < 2:
        return None
    figure, (axes,) = new_figure(1.3 + 0.45 * len(rows))
    y = np.arange(len(rows))[::-1]
    colors = dict(zip(METHODS, (BLUE, INK, MUTED, ORANGE, VERMILLION, GREEN), strict=True))
    words: list[str] = []
    known: list[float] = []
    for index, name in reversed(list(enumerate(methods))):  # the first on top
        values = np.array([row.recall.get(name) for row in rows], np.float64)  # None: NaN
        axes.plot(
            values, y, linestyle="", marker=MARKERS[index], color=colors[name], label=METHODS[name],
            markersize=12 if name == PEEL else 6.5, markeredgecolor=PAPER, zorder=2 if name == PEEL else 3,
        )  # fmt: skip
        shown = [(value, float(y[i]), rows[i].device_class) for i, value in enumerate(values) if not np.isnan(value)]
        sayings = [f"{kind}, {METHODS[name]}: {value:.4f}" for value, _, kind in shown]
        hover(axes, [one[0] for one in shown], [one[1] for one in shown], sayings)
        margins = np.array([row.margin.get(name) for row in rows], np.float64)
        if not np.isnan(margins).all():
            axes.errorbar(values, y, xerr=np.nan_to_num(margins), fmt="none", ecolor=colors[name], elinewidth=0.8,
                          alpha=0.5, zorder=1)  # fmt: skip
        words.append(f"{METHODS[name]} from {np.nanmin(values):.4f} to {np.nanmax(values):.4f}")
        ends = np.concatenate([values, values - margins, values + margins])
        known += ends[~np.isnan(ends)].tolist()
    axes.set_yticks(y, [f"{row.device_class}\n{row.devices:,} devices" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(*dot_limits(known))
    cut = " (the axis does not start at 0)" if axes.get_xlim()[0] > 0 else ""
    axes.set_xlabel(f"Recall@{result.top_n} by device class{cut}")
    columns = 1 if is_narrow() else 3
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside upper left",
        ncols=columns,
        fontsize=LABEL_PT,
        frameon=False,
    )
    figure.set_figheight(figure.get_figheight() + LEGEND_IN * (-(-len(methods) // columns) - 2))
    return finish(figure, "fairness", "Recall by device class", f"Dots by device class: {'; '.join(reversed(words))}.")


def dot_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis for dots: near the values, so that they can be distinguished; from 0 where one is
    below half.
    """
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.01 * high, 1e-3)
    return (min(0.0, low - margin) if low < high / 2 else low - margin), high + margin


@in_both_forms
def recall_after_falls(result: RunResult) -> Plot | None:
    """Recall right after all budgets fall by a factor: elastic, rigid, trained for it, the full tables."""
    falls = result.elasticity.falls if result.elasticity is not None else ()
    rows = sorted(falls, key=lambda row: row.factor, reverse=True)
    if len(rows) < 2:
        return None
    figure, (axes,) = new_figure(3.2)
    factors = [row.factor for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(factors[0] * 1.15, factors[-1] / 1.15)  # time goes on to the right, budgets fall
    axes.set_xticks(factors, [format_share(factor) for factor in factors])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    lines: tuple[tuple[str, str, list[float | None], list[float | None]], ...] = (
        ("elastic", "elastic", [row.elastic for row in rows], [row.elastic_margin for row in rows]),
        (
            "rigid",
            "rigid: keeps its blocks\nwhile they fit",
            [row.rigid for row in rows],
            [row.rigid_margin for row in rows],
        ),
        (
            "trained_for",
            "trained for\nthis budget",
            [row.trained_for for row in rows],
            [row.trained_for_margin for row in rows],
        ),
    )
    labels, words = [], []
    for index, (key, name, values, margins) in enumerate(lines):
        points = [
            (factor, value, around(value, margin))
            for factor, value, margin in zip(factors, values, margins, strict=True)
            if value is not None
        ]
        if not points:
            continue
        x, y, ends = zip(*points, strict=True)
        style = line_kwargs(index)
        error_bars(axes, x, y, ends, style["color"])
        hover(axes, x, y, [f"{name}: {v:.4f} at {format_share(f)}".replace("\n", " ") for f, v, _ in points])
        axes.plot(x, y, **style | ({"linestyle": "", "markersize": 9} if key == "trained_for" else {}))
        labels.append(EndLabel(name, x[-1], y[-1], style["color"], bold=True))
        words.append(f"{key} from {y[0]:.4f} at {format_share(x[0])} to {y[-1]:.4f} at {format_share(x[-1])}")
    full = ((FULL_REFINED, rows[0].full_table_refined, INK), (FULL_GLOBAL, rows[0].full_table_global, MUTED))
    for key, recall, color in full:
        if recall is not None:
            labels.append(yardstick(axes, recall, METHODS[key], color))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("factor of all budgets (log scale)")
    axes.set_ylabel(f"Recall@{result.top_n} after the drop")
    label_ends(axes, labels)
    return finish(figure, "falls", "Drop of all budgets at once", f"Recall after a drop: {'; '.join(words)}.")


@in_both_forms
def moving_budgets(result: RunResult) -> Plot | None:
    """Plot what happens after training: mean budget and stored bytes, recall of elastic and rigid devices, and a few
    devices' blocks.
    """
    followed = result.elasticity.followed if result.elasticity is not None else None
    if followed is None or len(followed.moments) < 2:
        return None
    moments, traces = followed.moments, result.elastic_traces[:MAX_TRACES]
    figure, panels = new_figure(2.0 * (2 + bool(traces)), 2 + bool(traces), 1, sharex=True)
    hours = np.array([row.hours for row in moments])

    def line(axes: Axes, values: list[float], name: str, color: str, width: float = 1.8) -> EndLabel:
        axes.step(hours, values, where="post", color=color, linewidth=width)
        return EndLabel(name, float(hours[-1]), values[-1], color, bold=True)

    def band(axes: Axes, values: list[float], margins: list[float | None], color: str) -> None:
        half = np.array(margins, np.float64)  # None: NaN
        axes.fill_between(hours, values - half, values + half, step="post", color=color, alpha=0.15, linewidth=0)

    budgets, stored = [row.budget_bytes_mean for row in moments], [row.stored_bytes_mean for row in moments]
    elastic, rigid = [row.recall for row in moments], [row.rigid_recall for row in moments]
    top, middle = panels[:2]
    top.set_ylim(0, 1.1 * max(budgets))
    label_ends(top, [line(top, budgets, "budget", INK, 2.6), line(top, stored, "stored", BLUE)])
    top.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    top.set_ylabel("mean bytes")
    middle.set_ylim(0, 1.1 * max(*elastic, *rigid) or 1)
    band(middle, elastic, [row.recall_margin for row in moments], BLUE)
    band(middle, rigid, [row.rigid_recall_margin for row in moments], VERMILLION)
    label_ends(middle, [line(middle, elastic, "elastic", BLUE), line(middle, rigid, "rigid", VERMILLION)])
    middle.set_ylabel(f"Recall@{result.top_n}")
    if traces:
        labels = []
        for index, trace in enumerate(traces):
            color = PALETTE[index % len(PALETTE)]
            panels[2].step(trace.hours, trace.kept_blocks, where="post", color=color)
            name = f"{trace.device}, {trace.device_class}"
            labels.append(EndLabel(name, trace.hours[-1], trace.kept_blocks[-1], color))
        panels[2].set_ylim(bottom=0)
        panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panels[2].set_ylabel("stored blocks")
        label_ends(panels[2], labels)
    panels[-1].set_xlabel("hours after training")
    for axes in panels:
        axes.grid(visible=False, axis="x")
    ranges = [f"{min(values):.4f} to {max(values):.4f}" for values in (elastic, rigid)]
    alt = (
        f"Step charts over {hours[-1]:g} hours: mean recall of elastic devices from {ranges[0]}, "
        f"of rigid devices from {ranges[1]}."
    )
    return finish(figure, "moving", "Changing budgets after training", alt)


@in_both_forms
def fleet_budgets(result: RunResult) -> Plot | None:
    """The fleet: share of the full table that budgets of each class range over, on a log scale."""
    rows = [row for row in result.fleet.classes if row.share_high > 0] if result.fleet is not None else []
    if not rows:
        return None
    figure, (axes,) = new_figure(0.9 + 0.36 * len(rows))
    y = np.arange(len(rows))[::-1]
    axes.set_xscale("log")
    for place, row in zip(y, rows, strict=True):
        low = max(row.share_low, row.share_high / 1e4)
        axes.plot([low, row.share_high], [place, place], color=BLUE, linewidth=7, solid_capstyle="butt", alpha=0.4)
        axes.plot(row.share_median, place, marker="|", markersize=14, markeredgewidth=2.5, color=darker(BLUE))
    axes.set_yticks(y, [f"{row.device_class} ({format_share(row.population_share)})" for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    low, high = axes.get_xlim()
    subs = (1, 2, 5) if high < 300 * low else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_share(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("budgets over all rounds, % of the full table: median, 10th to 90th percentile (log)")
    axes.grid(visible=False, axis="y")
    alt = "Budget ranges of device classes: " + "; ".join(
        f"{row.device_class} {format_share(row.share_low)} to {format_share(row.share_high)}" for row in rows
    )
    return finish(figure, "fleet", "The fleet", f"{alt}.")


__all__ = ["dot_limits", "fairness_by_class", "fleet_budgets", "moving_budgets", "recall_after_falls"]
