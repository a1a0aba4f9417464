"""Costs of rounds on the virtual clock: per round, per device class, and until a recall is reached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from fl_peel.columns import SUM_SCALE
from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.figures import read_fields
from strategies.figures.schema import ClassCosts, RoundClock, TimeToRecall
from strategies.rounds.record import RoundRecord

TARGETS = (0.9, 0.95, 0.99)
"""Shares of the best validation recall for which the time is reported."""
COVERAGE = 0.5
"""Recall is that of the latest rounds which together heard from this share of the devices: few are not enough."""


def round_clock(record: RoundRecord) -> RoundClock:
    """Return a round's virtual seconds, devices sampled, and those that dropped out by reason."""
    return read_fields(RoundClock, record.clock.total(), virtual_seconds=record.virtual_seconds)


def class_costs(records: Sequence[RoundRecord], devices: NDArray[np.int64]) -> list[ClassCosts]:
    """Per device class: seconds and joules of a device over the run, on average over its ``devices`` (C,); dropouts."""
    total = reduce(add, (record.clock for record in records), ClockCounts.zeros(len(devices)))
    return [
        read_fields(
            ClassCosts,
            total[i],
            virtual_seconds=float(total.time_us[i] / 1e6 / max(count, 1)),
            energy_j=float(total.energy_mj[i] / 1e3 / max(count, 1)),
            dropped=int(total.stragglers[i] + total.memory_dropouts[i]),
        )
        for i, count in enumerate(devices.tolist())
    ]


def time_to_recall(
    records: Sequence[RoundRecord], names: Sequence[str], devices: NDArray[np.int64]
) -> list[TimeToRecall]:
    """When validation recall@20 (:func:`recent_recall`) first reached each share of its best, over all and per class.

    Bytes and joules are of an average device of the class, up to and including that round. devices: (C,).
    """
    groups: list[tuple[str, NDArray[np.int64]]] = [("all", np.arange(len(names)))]
    groups += [(name, np.array([i])) for i, name in enumerate(names)] if len(names) > 1 else []
    return [row for name, index in groups for row in _times(records, name, index, int(devices[index].sum()))]


def _times(records: Sequence[RoundRecord], name: str, index: NDArray[np.int64], count: int) -> list[TimeToRecall]:
    clock = ClockCounts.joined([record.clock[index].total().reshaped(1) for record in records])  # (R,)
    moved = ClassCounts.joined([record.classes[index].total().reshaped(1) for record in records])
    seconds = np.cumsum([record.virtual_seconds for record in records])
    recall = recent_recall(clock.recall, clock.evaluated, COVERAGE * count)
    measured = np.flatnonzero(~np.isnan(recall))
    if not len(measured):
        return []
    rows = []
    for target in TARGETS:
        place = int(measured[recall[measured] >= target * recall[measured].max()][0])
        spent = slice(None, place + 1)
        rows.append(
            TimeToRecall(
                device_class=name,
                target_share=target,
                recall=float(recall[place]),
                server_round=records[place].server_round,
                virtual_seconds=float(seconds[place]),
                download_bytes=float(moved.download_bytes[spent].sum() / max(count, 1)),
                upload_bytes=float(moved.upload_bytes[spent].sum() / max(count, 1)),
                energy_j=float((clock.energy_mj[spent] / 1e3).sum() / max(count, 1)),
            )
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
