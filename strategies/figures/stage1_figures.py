"""Cost of stage 1 for devices, step by step and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np

from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.pretraining.stage1 import SpectralStart
from strategies.figures.schema import Stage1Class, Stage1Filter, Stage1Result, Stage1Step
from strategies.nodes.members import Members
from strategies.steps.clear_steps import SumsRecord


def stage1_result(
    records: Sequence[SumsRecord], start: SpectralStart, members: Members, seconds: float, epsilon: float | None = None
) -> Stage1Result:
    """Return the report's figures of stage 1. seconds: wall time; epsilon: privacy loss of the contributions, None
    where there was no noise.
    """
    num_devices, num_classes = len(members.devices), len(members.class_names)
    classes = reduce(add, (record.counts.classes for record in records), ClassCounts.zeros(num_classes))
    clock = reduce(add, (record.counts.clock for record in records), ClockCounts.zeros(num_classes))
    moved = classes.total()
    passes = [int(record.counts.classes.devices.sum()) for record in records if record.step == "pass"]
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
            count_exponent=start.count_exponent, value_exponent=start.value_exponent, recall=start.chosen
        ),
        steps=tuple(_step(name, [record for record in records if record.step == name]) for name in names),
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


def _step(name: str, records: Sequence[SumsRecord]) -> Stage1Step:
    classes = [record.counts.classes.total() for record in records]
    clock = [record.counts.clock.total() for record in records]
    return Stage1Step(
        step=name,
        times=len(records),
        devices=sum(int(one.devices) for one in classes),
        unavailable=sum(int(one.unavailable) for one in clock),
        excluded=sum(int(one.excluded) for one in clock),
        stragglers=sum(int(one.stragglers) for one in clock),
        download_bytes=sum(int(one.download_bytes) for one in classes),
        upload_bytes=sum(int(one.upload_bytes) for one in classes),
        energy_j=sum(int(one.energy_mj) for one in clock) / 1e3,
        virtual_seconds=sum(record.virtual_seconds for record in records),
    )
