"""Intervals of a comparison: of every figure, and of PEEL over each method at each budget, device by device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_peel.ranking.bootstrap import Estimate, estimate, over
from simulations.report.tables.view import ABSENT, TableView, format_interval, format_share
from simulations.studies.compare.rows import METRICS, Row

REPLICATES = "replicates"
"""Key of a row before its intervals are known: metric -> its mean in every replicate."""


def with_intervals(rows: Sequence[Row], num_devices: int) -> list[Row]:
    """Rows with ``recall@20_interval`` and ``ndcg@20_interval`` and, where validation chose them, ``peel_over``: PEEL's
    recall at that budget over theirs, each as chosen, with the ends of its paired interval. Of several seeds intervals
    are over devices and seeds (docs/statistics.md). num_devices: that have test items.
    """
    chosen = {row["share"]: row for row in rows if row["method"] == "peel" and row["chosen"]}
    found = []
    for row in rows:
        more: Row = {}
        for metric in METRICS:
            if REPLICATES in row:
                ends = estimate(row[metric], _drawn(row, metric), num_devices, row.get(f"{metric}_by_seed", ()))
                if ends.low is not None:
                    more[f"{metric}_interval"] = [ends.low, ends.high]
        peel = chosen.get(row["share"])
        if peel is not None and row["chosen"] and row is not peel:
            ratio = _peel_over(peel, row, num_devices)
            if ratio is not None:
                more["peel_over"] = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
        found.append({key: value for key, value in row.items() if key != REPLICATES} | more)
    return found


def _peel_over(peel: Row, other: Row, num_devices: int) -> Estimate | None:
    metric = "recall@20"
    if REPLICATES not in peel or REPLICATES not in other or other[metric] <= 0:
        return None
    both = [row.get(f"{metric}_by_seed", ()) for row in (peel, other)]
    by_seed = [a / b for a, b in zip(*both, strict=True)] if all(both[1]) else []
    ratios = over(_drawn(peel, metric), _drawn(other, metric))
    return estimate(peel[metric] / other[metric], ratios, num_devices, by_seed)


def _drawn(row: Row, metric: str) -> Any:
    return np.array(row[REPLICATES][metric], np.float64)  # None: NaN


def peel_over_view(rows: Sequence[Mapping[str, Any]]) -> TableView:
    """PEEL's recall over that of every method, by budget, with paired intervals."""
    shares = sorted({row["share"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows if "peel_over" in row))
    cells = {(row["method"], row["share"]): row["peel_over"] for row in rows if "peel_over" in row}

    def text(method: str, share: float) -> str:
        ratio = cells.get((method, share))
        return ABSENT if ratio is None else format_interval(ratio["value"], ratio["low"], ratio["high"], 3)

    body = tuple((method, *(text(method, share) for share in shares)) for method in methods)
    note = (
        "PEEL's recall on the test over that of each method, each as validation chose it for that budget. In brackets: "
        "95 % intervals, each device compared with itself: wholly above 1, PEEL is better beyond chance."
    )
    return TableView("PEEL over each method", ("method", *map(format_share, shares)), body, 1, note)


__all__ = ["REPLICATES", "peel_over_view", "with_intervals"]
