"""Quality of device classes, against systems whose tables are not elastic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_peel.json_codec import to_plain
from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.labels import METHODS, method_name
from simulations.report.section import Chart, Section
from simulations.report.table_view import (
    TableColumn,
    TableView,
    format_bytes,
    format_count,
    format_metric,
    format_point,
    format_share,
    format_thousandths,
    nested_views,
    table_of,
)
from simulations.report.theme import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, VERMILLION
from strategies.figures.schema import (
    EXCLUDING_SMALL,
    FIXED_TIERS,
    FULL_GLOBAL,
    FULL_REFINED,
    PEEL,
    TRAINED_WITHOUT,
    ClassFairness,
    ClassGap,
    FixedTiersResult,
    RunResult,
    Spread,
    WorstClass,
)


def fairness(result: RunResult) -> Section:
    """Return the section."""
    caption = (
        "Each class under its own budgets, with elastic tables, full tables and systems whose tables are not elastic. "
        "Classes have different users: compare dots within a line. Thin lines: 95 % intervals over devices."
    )
    views = fairness_tables(result)
    chart = Chart(lambda: fairness_by_class(result), caption)
    return Section("fairness", "Fairness", (chart, *views) if views else ())


_CLASSES: Sequence[TableColumn[ClassFairness]] = (
    TableColumn("class", lambda row: row.device_class, str),
    TableColumn("devices", lambda row: row.devices, format_count),
    TableColumn("mean budget", lambda row: row.budget_bytes, format_bytes),
    TableColumn("elastic", lambda row: row.recall[PEEL], format_point),
    TableColumn("refined full table", lambda row: row.recall.get(FULL_REFINED), format_point),
    TableColumn("global full table", lambda row: row.recall.get(FULL_GLOBAL), format_point),
    TableColumn("elastic / global", lambda row: row.ratio.get(FULL_GLOBAL), format_thousandths),
    TableColumn("fixed tiers", lambda row: row.recall.get(FIXED_TIERS), format_point),
    TableColumn("small devices excluded", lambda row: row.recall.get(EXCLUDING_SMALL), format_point),
    TableColumn("trained without small", lambda row: row.recall.get(TRAINED_WITHOUT), format_point),
)


_WORST: Sequence[TableColumn[WorstClass]] = (
    TableColumn("relative to", lambda row: row.against, method_name),
    TableColumn("worst class", lambda row: row.device_class, str),
    TableColumn("elastic / full", lambda row: row.ratio, format_thousandths),
)


_GAP: Sequence[TableColumn[ClassGap]] = (
    TableColumn("served by", lambda row: row.method, method_name),
    TableColumn("largest budgets", lambda row: row.largest, str),
    TableColumn("smallest budgets", lambda row: row.smallest, str),
    TableColumn("gap in recall", lambda row: row.gap, lambda value: f"{value:+.4f}"),
)


def _spread(top_n: int) -> Sequence[TableColumn[Spread]]:
    return (
        TableColumn("served by", lambda row: row.method, method_name),
        TableColumn(f"Recall@{top_n}", lambda row: row.recall, format_metric),
        TableColumn("worst 10%", lambda row: row.worst_10_percent, format_metric),
        TableColumn("worst 25%", lambda row: row.worst_25_percent, format_metric),
        TableColumn("worst 50%", lambda row: row.worst_50_percent, format_metric),
        TableColumn("recall 0", lambda row: row.zero_share, format_share),
    )


def fairness_tables(result: RunResult) -> list[TableView]:
    """Return the tables of fairness: by class, and over devices."""
    part = result.fairness
    if part is None:
        return []
    gap = "Recall of the class with the largest budgets minus that of the class with the smallest."
    views = [
        table_of("Recall by device class", part.by_class, _CLASSES, _tiers(part.fixed_tiers)),
        table_of("Distribution over devices", part.over_devices, _spread(result.top_n)),
        table_of("Worst device class", part.worst_class, _WORST, num_labels=2),
        table_of("Gap between device classes", part.gap, _GAP, gap, num_labels=3),
    ]
    shown = {"metric", "by_class", "over_devices", "worst_class", "gap", "fixed_tiers"}  # metric: in the headings
    rest = {key: value for key, value in to_plain(part, top_n=result.top_n).items() if key not in shown}
    return [view for view in views if view.rows] + nested_views("Fairness", rest)


def _tiers(tiers: FixedTiersResult | None) -> str:
    if tiers is None:
        return ""
    chosen = ", ".join(f"{name} {format_share(share)}" for name, share in tiers.chosen.items())
    return f"Fixed tier of each class, out of {', '.join(map(format_share, tiers.tiers))} of the full table: {chosen}."


@drawing.in_both_forms
def fairness_by_class(result: RunResult) -> Plot | None:
    """Recall of every device class under each way of serving it: a line of dots a class."""
    part = result.fairness
    rows = [row for row in part.by_class if row.recall[PEEL] is not None] if part is not None else []
    methods = [name for name in METHODS if any(row.recall.get(name) is not None for row in rows)]
    if len(methods) < 2:
        return None
    figure, (axes,) = drawing.new_figure(1.3 + 0.45 * len(rows))
    y = np.arange(len(rows))[::-1]
    colors = dict(
        zip(
            METHODS,
            (BLUE, INK, MUTED, ORANGE, VERMILLION, GREEN),
            strict=True,
        )
    )
    words: list[str] = []
    known: list[float] = []
    for index, name in reversed(list(enumerate(methods))):  # the first on top
        recalls = [row.recall.get(name) for row in rows]
        values = np.array([None if one is None else one.value for one in recalls], np.float64)  # None: NaN
        axes.plot(
            values, y, linestyle="", marker=drawing.MARKERS[index], color=colors[name], label=METHODS[name],
            markersize=12 if name == PEEL else 6.5, markeredgecolor=PAPER, zorder=2 if name == PEEL else 3,
        )  # fmt: skip
        shown = [(value, float(y[i]), rows[i].device_class) for i, value in enumerate(values) if not np.isnan(value)]
        sayings = [f"{kind}, {METHODS[name]}: {value:.4f}" for value, _, kind in shown]
        drawing.hover(axes, [one[0] for one in shown], [one[1] for one in shown], sayings)
        margins = np.array([None if one is None else one.margin for one in recalls], np.float64)
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
    columns = 1 if drawing.is_narrow() else 3
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside upper left",
        ncols=columns,
        fontsize=drawing.LABEL_PT,
        frameon=False,
    )
    figure.set_figheight(figure.get_figheight() + drawing.LEGEND_IN * (-(-len(methods) // columns) - 2))
    return drawing.finish(
        figure, "fairness", "Recall by device class", f"Dots by device class: {'; '.join(reversed(words))}."
    )


def dot_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis for dots: near the values; from 0 where one is below half."""
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.01 * high, 1e-3)
    return (min(0.0, low - margin) if low < high / 2 else low - margin), high + margin
