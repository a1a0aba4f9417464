"""What devices keep for ranking, and what happens to it when budgets move after training.

An *elastic* device re-selects whenever its budget moves: it drops blocks without a message, or asks for those it
lacks. A *rigid* device keeps what it chose until that no longer fits; then it has nothing to serve from, until the
next round lets it download anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.cohort import Cohort
from clients.moving import IntArray
from fl_peel.interactions import UserItems
from fl_peel.ondevice import overhead_bytes
from fl_peel.precision import PRECISIONS, Precision
from fl_peel.ranking import SUM_SCALE, evaluate
from fl_peel.selection import RankedBlocks
from fl_peel.wire import OWN_BUDGET, UNLIMITED, MovingReply, MovingRequest, StepColumn

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """What devices serve from, (N,) each: blocks of the ranked list considered, bytes stored, budgets they are under
    (UNLIMITED where there is none).
    """

    cutoffs: IntArray
    stored: IntArray
    budgets: IntArray

    @staticmethod
    def under(ranked: RankedBlocks, budget: int, factor: float, room: float, own: IntArray, seen: UserItems) -> Held:
        """Blocks chosen for ``budget`` bytes (UNLIMITED: all; OWN_BUDGET: ``factor`` times the device's, ``own`` (N,)).

        room: with room >= 0, a device has them only if they fit into ``room`` times its own budget, else nothing.
        """
        num_devices = len(own)
        if budget == UNLIMITED:
            cutoffs = np.full(num_devices, len(ranked.blocks), np.int64)
            return Held(cutoffs, ranked.stored_bytes(cutoffs), np.full(num_devices, UNLIMITED, np.int64))
        budgets = scaled(own, factor) if budget == OWN_BUDGET else np.full(num_devices, budget, np.int64)
        cutoffs, stored, _ = ranked.serving_cutoffs(budgets, seen)
        if room >= 0:
            budgets = scaled(own, room)
            fits = stored <= budgets
            cutoffs, stored = np.where(fits, cutoffs, 0), np.where(fits, stored, 0)
        return Held(cutoffs, stored, budgets)

    @property
    def violations(self) -> IntArray:
        """Devices (N,) that store more than they may: 1, else 0."""
        return np.asarray((self.budgets != UNLIMITED) & (self.stored > self.budgets), np.int64)


def scaled(budgets: IntArray, factor: float) -> IntArray:
    """Budgets times a factor, in whole bytes."""
    return budgets if factor == 1 else np.floor(budgets * factor).astype(np.int64)


def follow(cohort: Cohort, request: MovingRequest) -> MovingReply:
    """Follow devices over time: their budgets, what they keep, what that moves over the network, and their recall."""
    scenario, state, layout = cohort.scenario, cohort.state("r"), cohort.layout()
    assert request.precision in PRECISIONS
    precision: Precision = request.precision
    places = cohort.places(request.devices)
    steps_per_round = cohort.fleet.clock.steps_per_round
    num_steps = request.rounds * steps_per_round
    times = [request.server_round + step / steps_per_round for step in range(num_steps)]
    budgets = np.stack([cohort.budgets.at(time)[places] for time in times])  # (T, M) bytes
    groups = np.asarray(state.groups)[places]
    steps = np.zeros((num_steps, len(cohort.fleet.names), len(StepColumn)), np.int64)
    traces: list[NDArray[np.int64]] = []
    for group, payload in request.groups.items():
        index = np.flatnonzero(groups == group)
        if not len(index):
            continue
        members = places[index]
        who = _Followed(
            RankedBlocks.unpack(layout, precision, payload),
            np.asarray(state.users[members]),
            cohort.seen.select(members),
            cohort.splits.test.select(members),
            scenario.evaluation.top_n,
            scenario.engine.device,
        )
        per_device = who.over_time(budgets[:, index], steps_per_round)  # (T, N, columns)
        classes = cohort.classes[members]
        for step in range(num_steps):
            np.add.at(steps[step], classes, per_device[step])
        for i in np.flatnonzero(np.isin(cohort.devices[members], request.traced)):
            head = np.tile([cohort.devices[members[i]], classes[i]], (num_steps, 1))
            traces.append(np.hstack([head, np.arange(num_steps)[:, None], per_device[:, i]]))
    width = 3 + len(StepColumn)
    return MovingReply(
        steps, np.concatenate(traces) if traces else np.zeros((0, width), np.int64), cohort.fleet.clock.step_s
    )


@dataclass(frozen=True)
class _Followed:
    """Devices of one user group: ranked blocks, user embeddings (N, d), items seen and wanted; the engine's device."""

    ranked: RankedBlocks
    users: NDArray[np.float32]
    seen: UserItems
    wanted: UserItems
    top_n: int
    device: str

    def over_time(self, budgets: IntArray, steps_per_round: int) -> IntArray:
        """What each device does at each step, (T, N, len(StepColumn)), under ``budgets`` (T, N)."""
        num_steps, num_devices = budgets.shape
        counted = self.wanted.counts() > 0
        table = np.zeros((num_steps, num_devices, len(StepColumn)), np.int64)
        before = (np.zeros(num_devices, np.int64),) * 2  # blocks kept, their bytes
        recall = np.zeros(num_devices, np.int64)
        rigid_bytes, rigid_recall = np.zeros(num_devices, np.int64), np.zeros(num_devices, np.int64)
        for step in range(num_steps):
            row = table[step]
            budget = budgets[step]
            cutoffs, stored, kept = self.ranked.serving_cutoffs(budget, self.seen)
            num_bytes = self._block_bytes(stored)
            changed = kept != before[0] if step else np.ones(num_devices, np.bool_)
            new_recall = recall.copy()
            new_recall[changed] = self._recall(np.flatnonzero(changed), cutoffs)
            if step:
                grown = np.where(kept > before[0], kept - before[0], 0)
                missing = np.where(kept > before[0], num_bytes - before[1], 0)
                row[:, StepColumn.GREW] = grown > 0
                row[:, StepColumn.SHRANK] = kept < before[0]
                row[:, StepColumn.MISSING] = missing
                row[:, StepColumn.MOVED] = missing - grown * self.ranked.layout.id_bytes
                row[:, StepColumn.RESELECTED] = changed & counted
                row[:, StepColumn.RECALL_BEFORE] = np.where(changed, recall, 0)
                row[:, StepColumn.RECALL_AFTER] = np.where(changed, new_recall, 0)
            recall, before = new_recall, (kept, num_bytes)
            rigid_stored = np.where(rigid_bytes > 0, rigid_bytes + self._overhead, 0)
            lost = rigid_stored > budget
            empty = rigid_bytes == 0
            rigid_bytes, rigid_recall = np.where(lost, 0, rigid_bytes), np.where(lost, 0, rigid_recall)
            if step % steps_per_round == 0:
                fetch = empty & (kept > 0)  # what is lost at this very moment is missed until the next round
                rigid_bytes, rigid_recall = (
                    np.where(fetch, num_bytes, rigid_bytes),
                    np.where(fetch, recall, rigid_recall),
                )
                if step:
                    row[:, StepColumn.RIGID_MOVED] = np.where(fetch, num_bytes - kept * self.ranked.layout.id_bytes, 0)
            row[:, StepColumn.DEVICES] = 1
            row[:, StepColumn.COUNTED] = counted
            row[:, StepColumn.BUDGET] = budget
            row[:, StepColumn.STORED] = stored
            row[:, StepColumn.KEPT] = kept
            row[:, StepColumn.VIOLATIONS] = stored > budget
            row[:, StepColumn.RECALL] = recall
            row[:, StepColumn.RIGID_RECALL] = rigid_recall
            row[:, StepColumn.RIGID_EMPTY] = rigid_bytes == 0
        return table

    @property
    def _overhead(self) -> int:
        return overhead_bytes(self.ranked.layout.embedding_dim)

    def _block_bytes(self, stored: IntArray) -> IntArray:
        return np.maximum(stored - self._overhead, 0)

    def _recall(self, index: IntArray, cutoffs: IntArray) -> IntArray:
        """Fixed-point recall of some of the devices; 0 for those without test items."""
        seen, wanted = self.seen.select(index), self.wanted.select(index)
        recall, _ = evaluate(self.ranked, cutoffs[index], self.users[index], seen, wanted, self.top_n, self.device)
        return np.rint(recall * SUM_SCALE).astype(np.int64)


__all__ = ["Held", "follow", "scaled"]
