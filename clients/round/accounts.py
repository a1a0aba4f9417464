"""Counts of a node's devices in a round, added up per device class: integers, so that order and nodes cannot matter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clients.round.memory import RoundMemory
from clients.round.within_deadline import GroupOutcome
from fl_peel.exchange.counters import ClassCounts, ClockCounts


def class_counts(
    done: GroupOutcome,
    memory: RoundMemory,
    working_bytes: NDArray[np.int64],
    allowed: NDArray[np.int64],
    classes: NDArray[np.int16],
    kept_before: NDArray[np.integer],
    num_classes: int,
) -> ClassCounts:
    """Count what devices (N,) of one user group hold and move. working_bytes, allowed: (N,) taken besides what is
    stored, and what may be taken; kept_before: (N,) blocks kept when last reached, -1 for never. Bytes moved and
    violations cover every device reached; devices, budgets, stored and peak bytes cover those whose update counts.
    """
    counted = np.zeros(len(classes), np.int64)
    counted[done.kept] = 1
    changed = ((kept_before >= 0) & (kept_before != memory.first)).astype(np.int64) + memory.dropped_blocks
    per_device = ClassCounts(
        devices=counted,
        budget_bytes=counted * memory.budgets,
        download_bytes=done.spent.download_bytes,
        upload_bytes=done.spent.upload_bytes,
        reselections=changed,
        violations=memory.violations,
        stored_bytes=counted * memory.stored,
        peak_bytes=counted * (memory.stored + working_bytes),
        working_violations=(working_bytes > allowed).astype(np.int64),
    )
    return per_device.by_cell(classes, num_classes)


def clock_counts(classes: NDArray[np.int16], num_classes: int, **amounts: NDArray[np.generic]) -> ClockCounts:
    """Add up some columns (N,) of single devices, by name, per class; the others are zero."""
    per_device = ClockCounts.zeros(len(classes))
    for name, values in amounts.items():
        getattr(per_device, name)[:] = values
    return per_device.by_cell(classes, num_classes)


__all__ = ["class_counts", "clock_counts"]
