"""Device classes under their own budgets and the fleet they are drawn from; their quality, against systems whose tables
are not elastic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_peel.json_codec import to_plain
from simulations.report import drawing
from simulations.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PAPER, VERMILLION, Plot, darker
from simulations.report.render import Chart, Section
from simulations.report.table_view import (
    ABSENT,
    METHODS,
    TableColumn,
    TableView,
    format_bytes,
    format_count,
    format_decimals,
    format_kilobytes,
    format_margin,
    format_metric,
    format_point,
    format_share,
    format_thousandths,
    method_name,
    nested_views,
    table_of,
)
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
    FleetClassRow,
    RunResult,
    Spread,
    WorstClass,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def classes(result: RunResult) -> Section:
    """Return the section: the fleet, and every class under its own budgets beside its full tables."""
    caption = (
        f"Recall@{result.top_n} under each class's own, changing budgets, with its number of devices and mean budget. "
        "Diamonds and squares: the same devices with full tables; compare within a class, since classes have different "
        "users. Thin lines: 95 % intervals over devices."
    )
    return Section(
        "classes",
        "Device classes",
        (
            fleet_table(result),
            Chart(lambda: fleet_budgets(result), "Range of budgets of each class of the fleet."),
            device_classes_view(result),
            Chart(lambda: recall_by_class(result), caption),
        )
        if result.device_classes
        else (),
    )


def device_classes_view(result: RunResult) -> TableView:
    """Each device class under its own moving budget; a dash for what devices withhold."""
    counters_shown = result.privacy is None or not result.privacy.withholds
    own = own_full_tables(result)
    against = [name for name in (FULL_REFINED, FULL_GLOBAL) if any(name in one for one in own.values())]

    def counted(text: str) -> str:
        return text if counters_shown else ABSENT

    rows = tuple(
        (
            name,
            f"{row.devices:,}",
            format_kilobytes(row.budget_bytes_mean),
            format_margin(row.recall),
            *(format_metric(own.get(name, {}).get(table)) for table in against),
            counted(f"{row.reselections:,}"),
            f"{row.budget_violations:,} / {counted(f'{row.working_violations:,}')}",
            counted(format_kilobytes(row.peak_bytes_mean)),
            counted(format_bytes(row.download_bytes)),
            counted(format_bytes(row.upload_bytes)),
            counted(f"{row.costs.virtual_seconds:,.1f}"),
            counted(f"{row.costs.energy_j:,.1f}"),
            counted(f"{row.costs.dropped:,}"),
        )
        for name, row in result.device_classes.items()
    )
    columns = (
        *("device class", "devices", "budget KB", f"Recall@{result.top_n}"),
        *(METHODS[table] for table in against),
        *("re-selections", "violations"),
        "peak KB",
        *("down", "up", "virtual s", "energy J", "dropped"),
    )
    note = (
        "±: half the width of the 95 % interval over devices. Violations: of budgets / of working memory, over all "
        "rounds. Peak: stored bytes plus the memory of block selection and training."
    )
    if against:
        note += f" Full tables: Recall@{result.top_n} of the same devices with full tables."
    if not counters_shown:
        note += " A dash: not reported by devices during rounds (privacy.counters); the rest comes from the evaluation."
    return TableView("Device classes", columns, rows, note=note, terminal=True)


def own_full_tables(result: RunResult) -> dict[str, dict[str, float]]:
    """Recall of the devices of each class, were they served by full tables, by class and table; where measured."""
    rows = result.fairness.by_class if result.fairness is not None else ()
    return {
        row.device_class: {
            table: recall.value
            for table in (FULL_REFINED, FULL_GLOBAL)
            if (recall := row.recall.get(table)) is not None
        }
        for row in rows
    }


def _rate(value: float) -> str:
    return f"{value:,.4g}"


def _per_second(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else _rate(value)


_FLEET: Sequence[TableColumn[FleetClassRow]] = (
    TableColumn("class", lambda row: row.device_class, str),
    TableColumn("share of devices", lambda row: row.population_share, format_share),
    TableColumn("budget", lambda row: row.budget_median, format_bytes),
    TableColumn("share of full table", lambda row: row.share_median, format_share),
    TableColumn("changes/round", lambda row: row.changes_per_round, format_decimals),
    TableColumn("samples/s", lambda row: row.samples_per_s, _per_second),
    TableColumn("up Mbit/s", lambda row: row.uplink_mbps, _rate),
    TableColumn("down Mbit/s", lambda row: row.downlink_mbps, _rate),
    TableColumn("available", lambda row: row.available, format_share),
)


def fleet_table(result: RunResult) -> TableView | None:
    """The classes of the fleet that the run drew its devices from."""
    fleet = result.fleet
    if fleet is None:
        return None
    note = f"Fleet {fleet.source}: medians over {fleet.devices:,} sampled devices and {fleet.rounds:,} rounds."
    return table_of("The fleet", fleet.classes, _FLEET, note)


@drawing.in_both_forms
def fleet_budgets(result: RunResult) -> Plot | None:
    """The fleet: share of the full table that budgets of each class range over, on a log scale."""
    rows = [row for row in result.fleet.classes if row.share_high > 0] if result.fleet is not None else []
    if not rows:
        return None
    figure, (axes,) = drawing.new_figure(0.9 + 0.36 * len(rows))
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
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(lambda value, _: format_share(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("budgets over all rounds, % of the full table: median, 10th to 90th percentile (log)")
    axes.grid(visible=False, axis="y")
    alt = "Budget ranges of device classes: " + "; ".join(
        f"{row.device_class} {format_share(row.share_low)} to {format_share(row.share_high)}" for row in rows
    )
    return drawing.finish(figure, "fleet", "The fleet", f"{alt}.")


@drawing.in_both_forms
def recall_by_class(result: RunResult) -> Plot | None:
    """Recall of each device class under its own budgets, a bar each, with marks for full tables."""
    bars = [(name, row, row.recall) for name, row in result.device_classes.items() if row.recall is not None]
    if not bars:
        return None
    figure, (axes,) = drawing.new_figure(1.15 + 0.44 * len(bars))
    y = [float(place) for place in np.arange(len(bars))[::-1]]
    values = [recall.value for *_, recall in bars]
    recalls = [recall for *_, recall in bars]
    axes.barh(y, values, height=0.7, color=BLUE)
    drawing.error_bars(axes, y, recalls, INK, across=True)
    names = [
        f"{_shorten(name)}\n{row.devices:,} devices, {format_bytes(row.budget_bytes_mean)}" for name, row, _ in bars
    ]
    axes.set_yticks(y, names)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"Recall@{result.top_n} under each class's own budgets")
    _name_bars(axes, values, y)
    own = own_full_tables(result)
    top = max([*values, *(recall.high or 0.0 for recall in recalls)])
    labels, words = [], []
    for (table, color), marker in zip(MARKED.items(), ("D", "s"), strict=True):
        of_classes = [own.get(name, {}).get(table) for name, *_ in bars]
        known = [(value, place) for value, place in zip(of_classes, y, strict=True) if value is not None]
        if known:
            x, places = zip(*known, strict=True)
            style: dict[str, Any] = {"color": color, "markeredgecolor": PAPER, "markersize": 7, "zorder": 5}
            axes.plot(x, places, marker, label=METHODS[table], **style)
            top = max(top, *x)
            words.append(f"{METHODS[table]} {min(x):.4f} to {max(x):.4f}")
            labels.append(METHODS[table])
    drawing.hover(axes, values, y, [_class_words(name, recall.value, own.get(name, {})) for name, _, recall in bars])
    axes.set_xlim(0, top * 1.12 if top else 1)
    if labels:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=1 if drawing.is_narrow() else 2, frameon=False,
            fontsize=drawing.LABEL_PT, borderaxespad=0.2, title="same devices with the", alignment="left",
            title_fontsize=drawing.LABEL_PT,
        )  # fmt: skip
    low, high = min(bars, key=lambda bar: bar[2].value), max(bars, key=lambda bar: bar[2].value)
    alt = (
        f"Bar chart of Recall@{result.top_n} for {len(bars)} device classes: from {low[2].value:.4f} ({low[0]}) "
        f"to {high[2].value:.4f} ({high[0]}){'; the same devices with the ' * bool(words)}{', '.join(words)}."
    )
    return drawing.finish(figure, "classes", "Recall by device class", alt)


MARKED = {FULL_REFINED: VERMILLION, FULL_GLOBAL: ORANGE}
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
            fontsize=drawing.LABEL_PT,
            fontweight="bold",
            color=PAPER if inside else INK,
        )


def _shorten(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


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
    colors = dict(zip(METHODS, (BLUE, INK, MUTED, ORANGE, VERMILLION, GREEN), strict=True))
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
