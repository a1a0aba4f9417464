"""Intervals of a study: of every figure, and of every ratio of two, device by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_peel.ranking.bootstrap import estimate, over
from simulations.report.tables.table_view import ABSENT, TableView, format_interval, format_share

METRICS = ("recall@20", "ndcg@20")
REPLICATES = "replicates"
"""Key of a row before its intervals are known: metric -> its mean in every replicate."""

Row = dict[str, Any]


def with_intervals(rows: Sequence[Row], num_devices: int) -> list[Row]:
    """Rows with ``recall@20_interval`` and ``ndcg@20_interval`` and, where validation chose them, ``peel_over``: PEEL's
    recall at that budget over theirs, each as chosen, with the ends of its paired interval. Of several seeds intervals
    are over devices and seeds (docs/statistics.md). num_devices: that have test items.
    """
    chosen = {row["share"]: row for row in rows if row["method"] == "peel" and row["chosen"]}
    lines = []
    for row in rows:
        peel = chosen.get(row["share"])
        paired = peel is not None and row["chosen"] and row is not peel
        ratio = ratio_of(peel, row, num_devices) if paired and peel is not None else None
        lines.append(with_interval(row, num_devices) | ({} if ratio is None else {"peel_over": ratio}))
    return lines


def with_interval(row: Mapping[str, Any], num_devices: int) -> Row:
    """A row with the ends of each metric's interval in place of its replicates."""
    more: Row = {}
    for metric in METRICS:
        if REPLICATES in row:
            ends = estimate(row[metric], _drawn(row, metric), num_devices, row.get(f"{metric}_by_seed", ()))
            if ends.low is not None:
                more[f"{metric}_interval"] = [ends.low, ends.high]
    return {key: value for key, value in row.items() if key != REPLICATES} | more


def ratio_of(one: Mapping[str, Any], other: Mapping[str, Any], num_devices: int) -> Row | None:
    """Recall of one row over another's, and the ends of its paired interval: {"value", "low", "high"}; None where one
    of them has no replicates, or the other finds nothing.
    """
    metric = "recall@20"
    if REPLICATES not in one or REPLICATES not in other or other[metric] <= 0:
        return None
    both = [row.get(f"{metric}_by_seed", ()) for row in (one, other)]
    by_seed = [a / b for a, b in zip(*both, strict=True)] if all(both[1]) else []
    ratios = over(_drawn(one, metric), _drawn(other, metric))
    estimated = estimate(one[metric] / other[metric], ratios, num_devices, by_seed)
    return {"value": estimated.value, "low": estimated.low, "high": estimated.high}


def ends_of(ratio: Mapping[str, Any] | None) -> list[float] | None:
    """Return the ends of a ratio's interval, where there is one."""
    return None if ratio is None or ratio["low"] is None else [ratio["low"], ratio["high"]]


def ratio_text(ratio: Mapping[str, Any] | None) -> str:
    """A ratio with its interval; a dash where there is none."""
    return ABSENT if ratio is None else format_interval(ratio["value"], ratio["low"], ratio["high"], 3)


def _drawn(row: Mapping[str, Any], metric: str) -> Any:
    return np.array(row[REPLICATES][metric], np.float64)  # None: NaN


def peel_over_view(rows: Sequence[Mapping[str, Any]]) -> TableView:
    """PEEL's recall over that of every method, by budget, with paired intervals."""
    shares = sorted({row["share"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows if "peel_over" in row))
    cells = {(row["method"], row["share"]): row["peel_over"] for row in rows if "peel_over" in row}

    body = tuple((method, *(ratio_text(cells.get((method, share))) for share in shares)) for method in methods)
    note = (
        "Test recall of PEEL relative to each method, both with settings chosen on validation for that budget. In "
        "brackets: paired 95 % intervals; above 1, PEEL is significantly better."
    )
    return TableView("PEEL relative to each method", ("method", *map(format_share, shares)), body, 1, note)


__all__ = [
    "METRICS",
    "REPLICATES",
    "Row",
    "ends_of",
    "peel_over_view",
    "ratio_of",
    "ratio_text",
    "with_interval",
    "with_intervals",
]
