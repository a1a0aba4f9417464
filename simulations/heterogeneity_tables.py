"""The tables of a study of devices: the fleet, time to recall, fairness, elasticity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulations.report_schema import RunResult
from simulations.report_tables import ABSENT, TableView, format_bytes, format_metric, format_share, nested_views

METHODS = {
    "peel": "elastic (PEEL)",
    "full_table_refined": "full table, refined",
    "full_table_global": "full table, global",
    "fixed_tiers": "fixed tiers",
    "excluding_small": "small devices excluded",
    "trained_without_small": "trained without them",
}
Columns = Sequence[tuple[str, str, Callable[[Any], str]]]
"""Key of a record, heading, how it is written."""


def _count(value: float) -> str:
    return f"{value:,}"


def _decimals(value: float) -> str:
    return f"{value:,.2f}"


def _text(value: object) -> str:
    return str(value)


def method_name(key: str) -> str:
    """A way of serving devices in words: 'peel' -> 'elastic (PEEL)'."""
    return METHODS.get(key, key)


_FLEET: Columns = (
    ("class", "class", _text),
    ("population_share", "of devices", format_share),
    ("budget_median", "budget", format_bytes),
    ("share_median", "of full table", format_share),
    ("changes_per_round", "changes/round", _decimals),
    ("samples_per_s", "samples/s", lambda value: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"),
    ("uplink_mbps", "up Mbit/s", lambda value: f"{value:,.4g}"),
    ("downlink_mbps", "down Mbit/s", lambda value: f"{value:,.4g}"),
    ("available", "available", format_share),
)
_TIMES: Columns = (
    ("class", "class", _text),
    ("target_share", "of its best", format_share),
    ("validation recall@20", "validation Recall@20", format_metric),
    ("server_round", "round", _count),
    ("virtual_seconds", "virtual s", _decimals),
    ("download_bytes", "down a device", format_bytes),
    ("upload_bytes", "up a device", format_bytes),
    ("energy_j", "energy J", _decimals),
)
_CLASSES: Columns = (
    ("class", "class", _text),
    ("devices", "devices", _count),
    ("budget_bytes", "mean budget", format_bytes),
    ("peel", "elastic", format_metric),
    ("full_table_refined", "full, refined", format_metric),
    ("full_table_global", "full, global", format_metric),
    ("ratio_full_table_global", "elastic / global", lambda value: f"{value:.3f}"),
    ("fixed_tiers", "fixed tiers", format_metric),
    ("excluding_small", "small excluded", format_metric),
    ("trained_without_small", "trained without", format_metric),
)
_SPREAD: Columns = (
    ("method", "served", method_name),
    ("recall@20", "Recall@20", format_metric),
    ("worst_10_percent", "worst 10%", format_metric),
    ("worst_25_percent", "worst 25%", format_metric),
    ("worst_50_percent", "worst 50%", format_metric),
    ("zero_share", "without a hit", format_share),
)
_WORST: Columns = (
    ("against", "against", method_name),
    ("class", "worst class", _text),
    ("ratio", "elastic / full", lambda value: f"{value:.3f}"),
)
_GAP: Columns = (
    ("method", "served", method_name),
    ("largest", "largest budgets", _text),
    ("smallest", "smallest budgets", _text),
    ("gap", "gap", lambda value: f"{value:+.4f}"),
)
_FALLS: Columns = (
    ("factor", "budgets", format_share),
    ("budget_bytes_mean", "mean budget", format_bytes),
    ("elastic", "elastic", format_metric),
    ("rigid", "rigid", format_metric),
    ("trained_for", "trained for it", format_metric),
    ("elastic_to_trained_for", "elastic / trained", lambda value: f"{value:.3f}"),
    ("full_table_refined", "full, refined", format_metric),
    ("budget_violations", "violations", _count),
)
_FOLLOWED: Columns = (
    ("class", "class", _text),
    ("devices", "devices", _count),
    ("reselections_per_device_hour", "changes / h", _decimals),
    ("growth_bytes_per_device_hour", "grown / h", format_bytes),
    ("rigid_bytes_per_device_hour", "rigid / h", format_bytes),
    ("recall_before", "before", format_metric),
    ("recall_after", "after", format_metric),
    ("recall", "elastic", format_metric),
    ("rigid_recall", "rigid", format_metric),
    ("rigid_empty_share", "empty", format_share),
)


def fleet_table(result: RunResult) -> TableView | None:
    """The classes of the fleet that the run drew its devices from."""
    everything: Mapping[str, Any] = result
    fleet = everything.get("fleet")
    if not fleet:
        return None
    note = f"Fleet {fleet['source']}: medians over {fleet['devices']:,} devices drawn and {fleet['rounds']:,} rounds."
    return _table("The fleet", fleet["classes"], _FLEET, note)


def time_table(result: RunResult) -> TableView | None:
    """When validation recall first reached a share of its best."""
    everything: Mapping[str, Any] = result
    rows = everything.get("time_to_recall")
    note = "Bytes and energy of an average device of the class, up to and including that round."
    return _table("Time to recall, on the virtual clock", rows, _TIMES, note) if rows else None


def fairness_tables(result: RunResult) -> list[TableView]:
    """By class, and over devices."""
    part: Mapping[str, Any] = result.get("fairness", {})
    gap = "Recall of the class with the largest budgets less that of the one with the smallest."
    known = {
        "by_class": ("By device class", _CLASSES, _tiers(part.get("fixed_tiers"))),
        "over_devices": ("Over devices", _SPREAD, ""),
        "worst_class": ("The worst class", _WORST, ""),
        "gap": ("The gap between classes", _GAP, gap),
    }
    return _tables("Fairness", {key: value for key, value in part.items() if key != "fixed_tiers"}, known)


def _tiers(told: Mapping[str, Any] | None) -> str:
    if not told:
        return ""
    chosen = ", ".join(f"{name} {format_share(share)}" for name, share in told["chosen"].items())
    return f"Fixed tiers, each class's of {', '.join(map(format_share, told['tiers']))} of the full table: {chosen}."


def elasticity_tables(result: RunResult) -> list[TableView]:
    """What a fall leaves, and devices followed over time; the single moments are in the figure."""
    part = {key: value for key, value in result.get("elasticity", {}).items() if key != "over_time"}
    note = "Rigid devices keep their blocks while they fit, then have nothing until the next round."
    followed = (
        "Per device and hour: re-selections, bytes that elastic devices grew by, bytes that rigid ones loaded anew. "
        "Recall before and after re-selections, and over all times; empty: share of time with no block at all."
    )
    known = {
        "falls": ("When all budgets fall at once", _FALLS, note),
        "by_class": ("Devices followed after training", _FOLLOWED, f"{followed} {note}"),
    }
    return _tables("Elasticity", part, known)


def _tables(title: str, part: Mapping[str, Any], known: Mapping[str, tuple[str, Columns, str]]) -> list[TableView]:
    """Tables of known lists of records; whatever else there is as it comes."""
    mine = {key: part[key] for key in known if _has(part.get(key), known[key][1])}
    views = [_table(known[key][0], rows, known[key][1], known[key][2]) for key, rows in mine.items()]
    rest = {key: value for key, value in part.items() if key not in mine}
    return [*views, *(nested_views(title, rest) if rest else [])]


def _has(rows: object, columns: Columns) -> bool:
    """Whether these are records with at least the first three of the columns."""
    if not (isinstance(rows, list) and rows and isinstance(rows[0], Mapping)):
        return False
    return set(rows[0]) >= {key for key, _, _ in columns[:3]}


def _table(title: str, rows: Sequence[Mapping[str, Any]], columns: Columns, note: str = "") -> TableView:
    """Columns that no record has are left out."""
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    body = tuple(tuple(ABSENT if row.get(key) is None else write(row[key]) for key, _, write in shown) for row in rows)
    return TableView(title, tuple(heading for _, heading, _ in shown), body, 1, note)


__all__ = ["elasticity_tables", "fairness_tables", "fleet_table", "time_table"]
