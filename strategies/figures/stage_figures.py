"""Costs of the stages of a run: steps of stage 1, rounds on the virtual clock, secure aggregation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from operator import add

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import SUM_SCALE
from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.figures import read_fields
from fl_peel.pretraining.stage1 import SpectralStart
from fl_peel.scenario.scenario import Scenario
from strategies.figures.schema import (
    ClassCosts,
    RoundClock,
    SecureAggregationResult,
    SecureBytes,
    SecureCounts,
    SecureRound,
    SecureSeconds,
    SecureSettings,
    Stage1Class,
    Stage1Filter,
    Stage1Result,
    Stage1Step,
    TimeToRecall,
    VoidGroup,
)
from strategies.nodes import Members
from strategies.rounds.federation import RoundRecord, SecureRecord
from strategies.rounds.step_channels import SumsRecord

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


def secure_report(scenario: Scenario, records: Sequence[SecureRecord]) -> SecureAggregationResult:
    """``report.json["secure_aggregation"]``; a device counts once in every round that it takes part in.

    bytes_per_device: of one device in one round, besides blocks, ``vector`` being the larger part of ``upload``;
    seconds: of one processor, in all; devices_per_second: that are in a sum, by these seconds.
    """
    counts = sum((read_fields(SecureCounts, record) for record in records), SecureCounts())
    shared = max(sum(record.shared for record in records), 1)
    seconds = SecureSeconds(
        float(sum(record.device_s for record in records)), float(sum(record.server_s for record in records))
    )
    spent = seconds.devices + seconds.server
    return SecureAggregationResult(
        settings=read_fields(SecureSettings, scenario.secure_aggregation),
        counts=counts,
        bytes_per_device=SecureBytes(
            download=sum(record.download_bytes for record in records) / shared,
            upload=sum(record.upload_bytes for record in records) / shared,
            vector=sum(record.vector_bytes for record in records) / shared,
        ),
        seconds=seconds,
        devices_per_second=counts.devices / spent if spent > 0 else None,
        rounds=tuple(
            SecureRound(
                server_round=record.server_round,
                counts=read_fields(SecureCounts, record),
                void=tuple(VoidGroup(group, why) for group, why in sorted(record.why_void.items())),
            )
            for record in records
        ),
    )


def stage1_result(
    records: Sequence[SumsRecord], start: SpectralStart, members: Members, seconds: float, epsilon: float | None = None
) -> Stage1Result:
    """Return the report's figures of stage 1. seconds: wall time; epsilon: None where there was no noise."""
    num_devices, num_classes = len(members.devices), len(members.class_names)
    classes = reduce(add, (record.counts.classes for record in records), ClassCounts.zeros(num_classes))
    clock = reduce(add, (record.counts.clock for record in records), ClockCounts.zeros(num_classes))
    moved = classes.total()
    passes = [  # of several sums of a step each device is in one
        sum(int(record.counts.classes.devices.sum()) for record in sums if not record.void)
        for (step, _), sums in groupby(records, key=lambda record: (record.step, record.time))
        if step == "pass"
    ]
    names = list(dict.fromkeys(record.step for record in records))
    devices = clock.sampled / max(len(records), 1)
    return Stage1Result(
        rounds=len(records),
        devices=float(np.mean(passes)),
        items=int((np.asarray(start.counts) > 0).sum()),
        bytes_down_mean=int(moved.download_bytes) / max(num_devices, 1),
        bytes_up_mean=int(moved.upload_bytes) / max(num_devices, 1),
        seconds=seconds,
        virtual_seconds=sum(record.virtual_seconds for record in records),
        epsilon=epsilon,
        filter=Stage1Filter(
            columns=len(start.values),
            count_exponent=start.count_exponent,
            value_exponent=start.value_exponent,
            recall=start.chosen,
        ),
        steps=tuple(step_row(name, [record for record in records if record.step == name]) for name in names),
        classes={
            name: Stage1Class(
                devices=int(devices[i]),
                excluded=float(clock.excluded[i] / max(int(clock.sampled[i]), 1)),
                download_bytes=float(classes.download_bytes[i] / max(devices[i], 1)),
                upload_bytes=float(classes.upload_bytes[i] / max(devices[i], 1)),
                energy_j=float(clock.energy_mj[i] / 1e3 / max(devices[i], 1)),
                virtual_seconds=float(clock.time_us[i] / 1e6 / max(devices[i], 1)),
            )
            for i, name in enumerate(members.class_names)
        },
    )


def step_row(name: str, records: Sequence[SumsRecord]) -> Stage1Step:
    """Return what a step took, over all of its records."""
    classes = [record.counts.classes.total() for record in records]
    clock = [record.counts.clock.total() for record in records]
    return Stage1Step(
        step=name,
        times=len(records),
        devices=sum(int(one.devices) for record, one in zip(records, classes, strict=True) if not record.void),
        unavailable=sum(int(one.unavailable) for one in clock),
        excluded=sum(int(one.excluded) for one in clock),
        stragglers=sum(int(one.stragglers) for one in clock),
        download_bytes=sum(int(one.download_bytes) for one in classes),
        upload_bytes=sum(int(one.upload_bytes) for one in classes),
        energy_j=sum(int(one.energy_mj) for one in clock) / 1e3,
        virtual_seconds=sum(record.virtual_seconds for record in records),
        void=sum(record.void for record in records) or None,
    )
