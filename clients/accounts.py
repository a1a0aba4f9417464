"""What a node's devices did in a round, added up per device class: integers, so that order and nodes cannot matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.group_round import GroupRound
from clients.moving import IntArray, RoundMemory
from fl_peel.wire import ClassColumn, ClockColumn


@dataclass(frozen=True)
class Accounts:
    """Sums per device class, filled as groups come in: classes (C, len(ClassColumn)), clock (C, len(ClockColumn))."""

    classes: IntArray
    clock: IntArray

    @staticmethod
    def empty(num_classes: int) -> Accounts:
        """Nothing yet."""
        return Accounts(
            np.zeros((num_classes, len(ClassColumn)), np.int64), np.zeros((num_classes, len(ClockColumn)), np.int64)
        )

    def count(self, column: ClockColumn, classes: NDArray[np.int16], amounts: NDArray[np.generic] | int = 1) -> None:
        """Add amounts (N,) to a column, each to the class of its device."""
        np.add.at(self.clock[:, column], classes, amounts)

    def group(self, done: GroupRound, memory: RoundMemory, classes: NDArray[np.int16], kept_before: IntArray) -> None:
        """Add a user group's round. classes: (N,); kept_before: (N,) blocks kept when last reached, -1 for never.

        Bytes, seconds and joules are of every device reached; the rest is of those whose update counts.
        """
        per_device = np.zeros((len(classes), len(ClassColumn)), np.int64)
        per_device[:, ClassColumn.DOWNLOAD] = done.spent.download_bytes
        per_device[:, ClassColumn.UPLOAD] = done.spent.upload_bytes
        kept = done.kept
        per_device[kept, ClassColumn.DEVICES] = 1
        per_device[kept, ClassColumn.BUDGET] = memory.budgets[kept]
        per_device[kept, ClassColumn.STORED] = memory.stored[kept]
        changed = ((kept_before >= 0) & (kept_before != memory.first)).astype(np.int64) + memory.dropped_blocks
        per_device[:, ClassColumn.RESELECTIONS] = changed
        per_device[:, ClassColumn.VIOLATIONS] = memory.violations
        np.add.at(self.classes, classes, per_device)
        self.count(ClockColumn.TIME_US, classes, done.spent.time_us)
        self.count(ClockColumn.ENERGY_MJ, classes, done.spent.energy_mj)
        self.count(ClockColumn.STRAGGLERS, classes, done.stragglers)
        self.count(ClockColumn.MEMORY_DROPOUTS, classes, done.memory_dropouts)
        self.count(ClockColumn.MEMORY_DROPS, classes, memory.dropped_blocks)
