"""What moving budgets do to trained tables: all at once, and device by device over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fl_peel.figures import Estimate
from fl_peel.json_codec import to_plain
from simulations.report import drawing
from simulations.report.drawing import BLUE, INK, MUTED, VERMILLION, EndLabel, Plot
from simulations.report.render import Chart, Section
from simulations.report.table_view import (
    METHODS,
    TableColumn,
    TableView,
    format_bytes,
    format_count,
    format_decimals,
    format_metric,
    format_point,
    format_share,
    format_thousandths,
    nested_views,
    table_of,
)
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, ClassFollowed, Fall, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def elasticity(result: RunResult) -> Section:
    """Return the section."""
    falls = (
        "All budgets drop at once after training, without retraining; for comparison, tables that were trained for the "
        "reduced budgets from the start. Bars: 95 % intervals over devices."
    )
    moving = (
        "Devices followed after training while their budgets change. Floor: devices always hold what their smallest "
        "budget holds, and nothing is sent. Shaded: 95 % intervals over devices."
    )
    views = elasticity_tables(result)
    charts = (Chart(lambda: recall_after_falls(result), falls), Chart(lambda: moving_budgets(result), moving))
    return Section("elasticity", "Elasticity", (*charts, *views) if views else ())


MAX_TRACES = 4


_FALLS: Sequence[TableColumn[Fall]] = (
    TableColumn("budgets", lambda row: row.factor, format_share),
    TableColumn("mean budget", lambda row: row.budget_bytes_mean, format_bytes),
    TableColumn("elastic", lambda row: row.elastic, format_point),
    TableColumn("rigid", lambda row: row.rigid, format_point),
    TableColumn("trained for this budget", lambda row: row.trained_for, format_point),
    TableColumn("elastic / trained", lambda row: row.elastic_to_trained_for, format_thousandths),
    TableColumn("refined full table", lambda row: row.full_table_refined, format_metric),
    TableColumn("violations", lambda row: row.budget_violations, format_count),
)


_FOLLOWED: Sequence[TableColumn[ClassFollowed]] = (
    TableColumn("class", lambda row: row.device_class, str),
    TableColumn("devices", lambda row: row.figures.devices, format_count),
    TableColumn("changes / h", lambda row: row.figures.reselections_per_device_hour, format_decimals),
    TableColumn("growth / h", lambda row: row.figures.growth_bytes_per_device_hour, format_bytes),
    TableColumn("before", lambda row: row.figures.recall_before, format_metric),
    TableColumn("after", lambda row: row.figures.recall_after, format_metric),
    TableColumn("elastic", lambda row: row.figures.recall, format_metric),
    TableColumn("stored", lambda row: row.figures.stored_bytes_mean, format_bytes),
    TableColumn("floor", lambda row: row.figures.floor_recall, format_metric),
    TableColumn("stored at the floor", lambda row: row.figures.floor_bytes_mean, format_bytes),
)


def elasticity_tables(result: RunResult) -> list[TableView]:
    """Return the tables of elasticity: drops, and devices followed over time (single moments: the figure)."""
    part = result.elasticity
    if part is None:
        return []
    note = "Rigid devices keep their blocks, and serve nothing if these no longer fit."
    summary = (
        "Per device and hour: re-selections, bytes sent to growing devices. Recall before and after re-selections, and "
        "over all times; floor: of devices that always hold what their smallest budget holds, without growth."
    )
    by_class = part.followed.by_class if part.followed is not None else ()
    views = [
        table_of("Drop of all budgets at once", part.falls, _FALLS, note),
        table_of("Devices followed after training", by_class, _FOLLOWED, summary),
    ]
    shown = {"metric", "falls", "by_class", "over_time"}
    rest = {key: value for key, value in to_plain(part, top_n=result.top_n).items() if key not in shown}
    return [view for view in views if view.rows] + nested_views("Elasticity", rest)


@drawing.in_both_forms
def recall_after_falls(result: RunResult) -> Plot | None:
    """Recall right after all budgets fall by a factor: elastic, rigid, trained for it, the full tables."""
    from matplotlib.ticker import NullLocator

    falls = result.elasticity.falls if result.elasticity is not None else ()
    rows = sorted(falls, key=lambda row: row.factor, reverse=True)
    if len(rows) < 2:
        return None
    figure, (axes,) = drawing.new_figure(3.2)
    factors = [row.factor for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(factors[0] * 1.15, factors[-1] / 1.15)  # time goes on to the right, budgets fall
    axes.set_xticks(factors, [format_share(factor) for factor in factors])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    lines: tuple[tuple[str, str, list[Estimate | None]], ...] = (
        ("elastic", "elastic", [row.elastic for row in rows]),
        ("rigid", "rigid: keeps its blocks\nwhile they fit", [row.rigid for row in rows]),
        ("trained_for", "trained for\nthis budget", [row.trained_for for row in rows]),
    )
    labels, words = [], []
    for index, (key, name, recalls) in enumerate(lines):
        points = [(factor, one) for factor, one in zip(factors, recalls, strict=True) if one is not None]
        if not points:
            continue
        x, known = zip(*points, strict=True)
        style = drawing.line_kwargs(index) | ({"linestyle": "", "markersize": 9} if key == "trained_for" else {})
        texts = [f"{one.value:.4f} at {format_share(factor)}" for factor, one in points]
        tips = [f"{name}: {text}".replace("\n", " ") for text in texts]
        labels.append(drawing.draw_line(axes, drawing.Line(name, x, known, tips, bold=True), style))
        words.append(f"{key} from {texts[0]} to {texts[-1]}")
    full = (
        (FULL_REFINED, rows[0].full_table_refined, INK),
        (FULL_GLOBAL, rows[0].full_table_global, MUTED),
    )
    for key, recall, color in full:
        if recall is not None:
            labels.append(drawing.yardstick(axes, recall, METHODS[key], color))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("factor of all budgets (log scale)")
    axes.set_ylabel(f"Recall@{result.top_n} after the drop")
    drawing.label_ends(axes, labels)
    return drawing.finish(figure, "falls", "Drop of all budgets at once", f"Recall after a drop: {'; '.join(words)}.")


@drawing.in_both_forms
def moving_budgets(result: RunResult) -> Plot | None:
    """Plot devices after training: mean budget and stored bytes, recall, also at the floor, some devices' blocks."""
    followed = result.elasticity.followed if result.elasticity is not None else None
    if followed is None or len(followed.moments) < 2:
        return None
    moments, traces = followed.moments, result.elastic_traces[:MAX_TRACES]
    figure, panels = drawing.new_figure(2.0 * (2 + bool(traces)), 2 + bool(traces), 1, sharex=True)
    hours = np.array([row.hours for row in moments])

    def line(axes: Axes, values: list[float], name: str, color: str, width: float = 1.8) -> EndLabel:
        axes.step(hours, values, where="post", color=color, linewidth=width)
        return EndLabel(name, float(hours[-1]), values[-1], color, bold=True)

    def band(axes: Axes, recalls: list[Estimate], color: str) -> None:
        values = np.array([one.value for one in recalls])
        half = np.array([one.margin for one in recalls], np.float64)  # None: NaN
        axes.fill_between(hours, values - half, values + half, step="post", color=color, alpha=0.15, linewidth=0)

    budgets, stored = [row.budget_bytes_mean for row in moments], [row.stored_bytes_mean for row in moments]
    elastic, floor = [row.recall.value for row in moments], [row.floor_recall.value for row in moments]
    top, middle = panels[:2]
    top.set_ylim(0, 1.1 * max(budgets))
    drawing.label_ends(top, [line(top, budgets, "budget", INK, 2.6), line(top, stored, "stored", BLUE)])
    top.yaxis.set_major_formatter(lambda value, _: drawing.short_bytes(value))
    top.set_ylabel("mean bytes")
    middle.set_ylim(0, 1.1 * max(*elastic, *floor) or 1)
    band(middle, [row.recall for row in moments], BLUE)
    band(middle, [row.floor_recall for row in moments], VERMILLION)
    drawing.label_ends(middle, [line(middle, elastic, "elastic", BLUE), line(middle, floor, "floor", VERMILLION)])
    middle.set_ylabel(f"Recall@{result.top_n}")
    if traces:
        labels = []
        for index, trace in enumerate(traces):
            color = drawing.PALETTE[index % len(drawing.PALETTE)]
            panels[2].step(trace.hours, trace.kept_blocks, where="post", color=color)
            name = f"{trace.device}, {trace.device_class}"
            labels.append(EndLabel(name, trace.hours[-1], trace.kept_blocks[-1], color))
        panels[2].set_ylim(bottom=0)
        panels[2].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panels[2].set_ylabel("stored blocks")
        drawing.label_ends(panels[2], labels)
    panels[-1].set_xlabel("hours after training")
    for axes in panels:
        axes.grid(visible=False, axis="x")
    ranges = [f"{min(values):.4f} to {max(values):.4f}" for values in (elastic, floor)]
    alt = (
        f"Step charts over {hours[-1]:g} hours: mean recall of elastic devices from {ranges[0]}, "
        f"of devices at their floor from {ranges[1]}."
    )
    return drawing.finish(figure, "moving", "Changing budgets after training", alt)
