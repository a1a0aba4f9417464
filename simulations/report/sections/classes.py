"""Device classes under their own budgets, and the fleet they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.report import drawing
from simulations.report.drawing import Plot
from simulations.report.labels import METHODS
from simulations.report.section import Chart, Section
from simulations.report.table_view import (
    ABSENT,
    TableColumn,
    TableView,
    format_bytes,
    format_decimals,
    format_kilobytes,
    format_margin,
    format_metric,
    format_share,
    table_of,
)
from simulations.report.theme import BLUE, INK, ORANGE, PAPER, VERMILLION, darker
from strategies.figures.schema import FULL_GLOBAL, FULL_REFINED, FleetClassRow, RunResult

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
    return TableView("Device classes", columns, rows, note=note)


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
