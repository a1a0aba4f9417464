"""Time until validation recall reached a share of its best."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.report.section import Section
from simulations.report.table_view import (
    TableColumn,
    TableView,
    format_bytes,
    format_count,
    format_decimals,
    format_metric,
    format_share,
    table_of,
)
from strategies.figures.schema import RunResult, TimeToRecall


def times(result: RunResult) -> Section:
    """Return the section."""
    return Section("times", "Time to recall", (time_table(result),))


_TIMES: Sequence[TableColumn[TimeToRecall]] = (
    TableColumn("class", lambda row: row.device_class, str),
    TableColumn("share of best", lambda row: row.target_share, format_share),
    TableColumn("validation Recall@20", lambda row: row.recall, format_metric),
    TableColumn("round", lambda row: row.server_round, format_count),
    TableColumn("virtual s", lambda row: row.virtual_seconds, format_decimals),
    TableColumn("down per device", lambda row: row.download_bytes, format_bytes),
    TableColumn("up per device", lambda row: row.upload_bytes, format_bytes),
    TableColumn("energy J", lambda row: row.energy_j, format_decimals),
)


def time_table(result: RunResult) -> TableView | None:
    """When validation recall first reached a share of its best."""
    note = "Bytes and energy per device of the class, mean, up to and including that round."
    rows = result.time_to_recall
    return table_of("Time to recall, on the virtual clock", rows, _TIMES, note) if rows else None
