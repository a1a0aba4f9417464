"""The tables of a study of devices: the fleet, time to recall, fairness, elasticity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fl_peel.json_codec import to_plain
from simulations.report.tables.labels import method_name
from simulations.report.tables.table_view import (
    ABSENT,
    TableView,
    format_bytes,
    format_metric,
    format_share,
    nested_views,
)
from strategies.figures.schema import (
    EXCLUDING_SMALL,
    FIXED_TIERS,
    FULL_GLOBAL,
    FULL_REFINED,
    PEEL,
    TRAINED_WITHOUT,
    ClassFairness,
    ClassFollowed,
    ClassGap,
    Fall,
    FixedTiersResult,
    FleetClassRow,
    RunResult,
    Spread,
    TimeToRecall,
    WorstClass,
)

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table: its heading, what it shows of a row (None: nothing), and how that is written."""

    heading: str
    value: Callable[[Row], Any]
    write: Callable[[Any], str]


def _count(value: float) -> str:
    return f"{value:,}"


def _decimals(value: float) -> str:
    return f"{value:,.2f}"


def _rate(value: float) -> str:
    return f"{value:,.4g}"


def _per_second(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else _rate(value)


def _three(value: float) -> str:
    return f"{value:.3f}"


_FLEET: Sequence[Column[FleetClassRow]] = (
    Column("class", lambda row: row.device_class, str),
    Column("share of devices", lambda row: row.population_share, format_share),
    Column("budget", lambda row: row.budget_median, format_bytes),
    Column("share of full table", lambda row: row.share_median, format_share),
    Column("changes/round", lambda row: row.changes_per_round, _decimals),
    Column("samples/s", lambda row: row.samples_per_s, _per_second),
    Column("up Mbit/s", lambda row: row.uplink_mbps, _rate),
    Column("down Mbit/s", lambda row: row.downlink_mbps, _rate),
    Column("available", lambda row: row.available, format_share),
)
_TIMES: Sequence[Column[TimeToRecall]] = (
    Column("class", lambda row: row.device_class, str),
    Column("share of best", lambda row: row.target_share, format_share),
    Column("validation Recall@20", lambda row: row.recall, format_metric),
    Column("round", lambda row: row.server_round, _count),
    Column("virtual s", lambda row: row.virtual_seconds, _decimals),
    Column("down per device", lambda row: row.download_bytes, format_bytes),
    Column("up per device", lambda row: row.upload_bytes, format_bytes),
    Column("energy J", lambda row: row.energy_j, _decimals),
)
_CLASSES: Sequence[Column[ClassFairness]] = (
    Column("class", lambda row: row.device_class, str),
    Column("devices", lambda row: row.devices, _count),
    Column("mean budget", lambda row: row.budget_bytes, format_bytes),
    Column("elastic", lambda row: row.recall[PEEL], format_metric),
    Column("refined full table", lambda row: row.recall.get(FULL_REFINED), format_metric),
    Column("global full table", lambda row: row.recall.get(FULL_GLOBAL), format_metric),
    Column("elastic / global", lambda row: row.ratio.get(FULL_GLOBAL), _three),
    Column("fixed tiers", lambda row: row.recall.get(FIXED_TIERS), format_metric),
    Column("small devices excluded", lambda row: row.recall.get(EXCLUDING_SMALL), format_metric),
    Column("trained without small", lambda row: row.recall.get(TRAINED_WITHOUT), format_metric),
)
_WORST: Sequence[Column[WorstClass]] = (
    Column("relative to", lambda row: row.against, method_name),
    Column("worst class", lambda row: row.device_class, str),
    Column("elastic / full", lambda row: row.ratio, _three),
)
_GAP: Sequence[Column[ClassGap]] = (
    Column("served by", lambda row: row.method, method_name),
    Column("largest budgets", lambda row: row.largest, str),
    Column("smallest budgets", lambda row: row.smallest, str),
    Column("gap in recall", lambda row: row.gap, lambda value: f"{value:+.4f}"),
)
_FALLS: Sequence[Column[Fall]] = (
    Column("budgets", lambda row: row.factor, format_share),
    Column("mean budget", lambda row: row.budget_bytes_mean, format_bytes),
    Column("elastic", lambda row: row.elastic, format_metric),
    Column("rigid", lambda row: row.rigid, format_metric),
    Column("trained for this budget", lambda row: row.trained_for, format_metric),
    Column("elastic / trained", lambda row: row.elastic_to_trained_for, _three),
    Column("refined full table", lambda row: row.full_table_refined, format_metric),
    Column("violations", lambda row: row.budget_violations, _count),
)
_FOLLOWED: Sequence[Column[ClassFollowed]] = (
    Column("class", lambda row: row.device_class, str),
    Column("devices", lambda row: row.figures.devices, _count),
    Column("changes / h", lambda row: row.figures.reselections_per_device_hour, _decimals),
    Column("growth / h", lambda row: row.figures.growth_bytes_per_device_hour, format_bytes),
    Column("rigid / h", lambda row: row.figures.rigid_bytes_per_device_hour, format_bytes),
    Column("before", lambda row: row.figures.recall_before, format_metric),
    Column("after", lambda row: row.figures.recall_after, format_metric),
    Column("elastic", lambda row: row.figures.recall, format_metric),
    Column("rigid", lambda row: row.figures.rigid_recall, format_metric),
    Column("rigid empty", lambda row: row.figures.rigid_empty_share, format_share),
)


def _spread(top_n: int) -> Sequence[Column[Spread]]:
    return (
        Column("served by", lambda row: row.method, method_name),
        Column(f"Recall@{top_n}", lambda row: row.recall, format_metric),
        Column("worst 10%", lambda row: row.worst_10_percent, format_metric),
        Column("worst 25%", lambda row: row.worst_25_percent, format_metric),
        Column("worst 50%", lambda row: row.worst_50_percent, format_metric),
        Column("recall 0", lambda row: row.zero_share, format_share),
    )


def fleet_table(result: RunResult) -> TableView | None:
    """The classes of the fleet that the run drew its devices from."""
    fleet = result.fleet
    if fleet is None:
        return None
    note = f"Fleet {fleet.source}: medians over {fleet.devices:,} sampled devices and {fleet.rounds:,} rounds."
    return _table("The fleet", fleet.classes, _FLEET, note)


def time_table(result: RunResult) -> TableView | None:
    """When validation recall first reached a share of its best."""
    note = "Bytes and energy per device of the class, mean, up to and including that round."
    rows = result.time_to_recall
    return _table("Time to recall, on the virtual clock", rows, _TIMES, note) if rows else None


def fairness_tables(result: RunResult) -> list[TableView]:
    """Return the tables of fairness: by class, and over devices."""
    part = result.fairness
    if part is None:
        return []
    gap = "Recall of the class with the largest budgets minus that of the class with the smallest."
    views = [
        _table("Recall by device class", part.by_class, _CLASSES, _tiers(part.fixed_tiers)),
        _table("Distribution over devices", part.over_devices, _spread(result.top_n)),
        _table("Worst device class", part.worst_class, _WORST, num_labels=2),
        _table("Gap between device classes", part.gap, _GAP, gap, num_labels=3),
    ]
    shown = {"metric", "by_class", "over_devices", "worst_class", "gap", "fixed_tiers"}  # metric: in the headings
    rest = {key: value for key, value in to_plain(part, top_n=result.top_n).items() if key not in shown}
    return [view for view in views if view.rows] + nested_views("Fairness", rest)


def _tiers(tiers: FixedTiersResult | None) -> str:
    if tiers is None:
        return ""
    chosen = ", ".join(f"{name} {format_share(share)}" for name, share in tiers.chosen.items())
    return f"Fixed tier of each class, out of {', '.join(map(format_share, tiers.tiers))} of the full table: {chosen}."


def elasticity_tables(result: RunResult) -> list[TableView]:
    """Return the tables of elasticity: what a fall leaves, and devices followed over time; the single moments are in
    the figure.
    """
    part = result.elasticity
    if part is None:
        return []
    note = "Rigid devices keep their blocks while they fit, and store nothing after that until the next round."
    summary = (
        "Per device and hour: re-selections, bytes sent to growing elastic devices, bytes that rigid ones downloaded "
        "again. Recall before and after re-selections, and over all times; rigid empty: share of time without any "
        "block."
    )
    by_class = part.followed.by_class if part.followed is not None else ()
    views = [
        _table("Drop of all budgets at once", part.falls, _FALLS, note),
        _table("Devices followed after training", by_class, _FOLLOWED, f"{summary} {note}"),
    ]
    shown = {"metric", "falls", "by_class", "over_time"}
    rest = {key: value for key, value in to_plain(part, top_n=result.top_n).items() if key not in shown}
    return [view for view in views if view.rows] + nested_views("Elasticity", rest)


def _table(
    title: str, rows: Sequence[Row], columns: Sequence[Column[Row]], note: str = "", num_labels: int = 1
) -> TableView:
    """Columns of which no row has anything are left out."""
    shown = [column for column in columns if any(column.value(row) is not None for row in rows)]
    body = tuple(tuple(_cell(column, row) for column in shown) for row in rows)
    return TableView(title, tuple(column.heading for column in shown), body, num_labels, note)


def _cell(column: Column[Row], row: Row) -> str:
    value = column.value(row)
    return ABSENT if value is None else column.write(value)


__all__ = ["elasticity_tables", "fairness_tables", "fleet_table", "time_table"]
