"""What rounds cost on the virtual clock: per round, per device class, and until a recall is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.ranking import SUM_SCALE
from fl_peel.wire import ClassColumn, ClockColumn
from strategies.peel import RoundRecord

TARGETS = (0.9, 0.95, 0.99)
"""Shares of the best validation recall for which the time is reported."""
COVERAGE = 0.5
"""Recall is that of the latest rounds which together heard from this share of the devices: few say little."""


def round_counts(record: RoundRecord) -> dict[str, float]:
    """What a round's row gains: virtual seconds, devices sampled, and those that dropped out by reason."""
    total = record.clock.sum(axis=0)
    return {
        "virtual_seconds": record.virtual_seconds,
        "sampled": int(total[ClockColumn.SAMPLED]),
        "unavailable": int(total[ClockColumn.UNAVAILABLE]),
        "excluded": int(total[ClockColumn.EXCLUDED]),
        "stragglers": int(total[ClockColumn.STRAGGLERS]),
        "memory_dropouts": int(total[ClockColumn.MEMORY_DROPOUTS]),
        "memory_drops": int(total[ClockColumn.MEMORY_DROPS]),
    }


def class_costs(records: Sequence[RoundRecord], devices: NDArray[np.int64]) -> list[dict[str, float]]:
    """Per device class: seconds and joules of a device over the run, on average over its ``devices`` (C,); dropouts."""
    total = (
        np.sum([record.clock for record in records], axis=0)
        if records
        else np.zeros((len(devices), len(ClockColumn)), np.int64)
    )
    return [
        {
            "virtual_seconds": float(row[ClockColumn.TIME_US] / 1e6 / max(count, 1)),
            "energy_j": float(row[ClockColumn.ENERGY_MJ] / 1e3 / max(count, 1)),
            "dropped": int(row[ClockColumn.STRAGGLERS] + row[ClockColumn.MEMORY_DROPOUTS]),
            "stragglers": int(row[ClockColumn.STRAGGLERS]),
            "memory_dropouts": int(row[ClockColumn.MEMORY_DROPOUTS]),
            "memory_drops": int(row[ClockColumn.MEMORY_DROPS]),
            "unavailable": int(row[ClockColumn.UNAVAILABLE]),
            "excluded": int(row[ClockColumn.EXCLUDED]),
        }
        for row, count in zip(total, devices.tolist(), strict=True)
    ]


def time_to_recall(
    records: Sequence[RoundRecord], names: Sequence[str], devices: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """When validation recall@20 (:func:`recent_recall`) first reached each share of its best, over all and per class.

    Bytes and joules are of an average device of the class, up to and including that round. devices: (C,).
    """
    groups: list[tuple[str, NDArray[np.int64]]] = [("all", np.arange(len(names)))]
    groups += [(name, np.array([i])) for i, name in enumerate(names)] if len(names) > 1 else []
    return [row for name, index in groups for row in _times(records, name, index, int(devices[index].sum()))]


def _times(records: Sequence[RoundRecord], name: str, index: NDArray[np.int64], count: int) -> list[dict[str, Any]]:
    clock = np.array([record.clock[index].sum(axis=0) for record in records]).reshape(len(records), len(ClockColumn))
    sums = np.array([record.classes[index].sum(axis=0) for record in records]).reshape(len(records), len(ClassColumn))
    seconds = np.cumsum([record.virtual_seconds for record in records])
    recall = recent_recall(clock[:, ClockColumn.RECALL], clock[:, ClockColumn.EVALUATED], COVERAGE * count)
    measured = np.flatnonzero(~np.isnan(recall))
    if not len(measured):
        return []
    rows = []
    for target in TARGETS:
        reached = measured[recall[measured] >= target * recall[measured].max()]
        place = int(reached[0])
        spent = {
            "download_bytes": sums[: place + 1, ClassColumn.DOWNLOAD],
            "upload_bytes": sums[: place + 1, ClassColumn.UPLOAD],
            "energy_j": clock[: place + 1, ClockColumn.ENERGY_MJ] / 1e3,
        }
        rows.append(
            {
                "class": name,
                "target_share": target,
                "validation recall@20": float(recall[place]),
                "server_round": records[place].server_round,
                "virtual_seconds": float(seconds[place]),
                **{key: float(values.sum() / max(count, 1)) for key, values in spent.items()},
            }
        )
    return rows


def recent_recall(recall: NDArray[np.int64], evaluated: NDArray[np.int64], fewest: float) -> NDArray[np.float64]:
    """Mean recall (R,) over as many of the latest rounds as have ``fewest`` devices together; NaN where too few had.

    recall: (R,) fixed-point sums; evaluated: (R,) devices they are of.
    """
    result = np.full(len(recall), np.nan)
    devices, total = np.concatenate([[0], np.cumsum(evaluated)]), np.concatenate([[0], np.cumsum(recall)])
    for last in range(1, len(devices)):
        first = int(np.searchsorted(devices[:last], devices[last] - max(fewest, 1), side="right")) - 1
        if first >= 0:
            heard = devices[last] - devices[first]
            result[last - 1] = (total[last] - total[first]) / SUM_SCALE / heard
    return result


__all__ = ["COVERAGE", "TARGETS", "class_costs", "recent_recall", "round_counts", "time_to_recall"]
