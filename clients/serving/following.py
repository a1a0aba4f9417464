"""What devices keep for ranking, and what happens to it when budgets move after training.

An *elastic* device re-selects whenever its budget moves: it drops blocks without a message, or reads on in its user
group's list, which it does not keep, from behind the last block it holds. A *rigid* device keeps what it chose until
that no longer fits; then it has nothing to serve from, until the next round lets it download anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.before import Before
from clients.node.cohort import Cohort
from clients.round.memory import IntArray
from fl_peel.blocks.ranked import RankedBlocks
from fl_peel.blocks.settings import PRECISIONS, Precision
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.exchange.counters import StepCounts, StepTraces
from fl_peel.ranking.top import SUM_SCALE, evaluate
from fl_peel.wire import MovingReply, MovingRequest

FloatArray = NDArray[np.float64]


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
    num_classes, seen = len(cohort.fleet.names), cohort.seen.below(layout.num_items)
    before = Before.read(cohort) if request.keeps else None
    steps = StepCounts.zeros(num_steps, num_classes)
    traced: list[StepTraces] = []
    trace_steps: list[StepCounts] = []
    for group, payload in request.groups.items():
        index = np.flatnonzero(groups == group)
        if not len(index):
            continue
        members = places[index]
        who = _Followed(
            RankedBlocks.unpack(layout, precision, payload),
            np.asarray(state.users[members]),
            seen.select(members),
            cohort.splits.test.select(members),
            scenario.evaluation.top_n,
            scenario.engine.device,
            scenario.privacy.requests == "group-prefix",
        )
        per_device, cutoffs = who.over_time(budgets[:, index], steps_per_round)  # (T, N)
        if before is not None:
            before.cutoffs[members, before.own] = cutoffs
        classes = cohort.classes[members]
        for step in range(num_steps):
            steps[step].add(per_device[step].by_cell(classes, num_classes))
        for i in np.flatnonzero(np.isin(cohort.devices[members], request.traced)):
            device, its_class = (np.full(num_steps, number) for number in (cohort.devices[members[i]], classes[i]))
            traced.append(StepTraces(device, its_class.astype(np.int64), np.arange(num_steps)))
            trace_steps.append(per_device[:, i])
    if before is not None:
        before.save(cohort)
    return MovingReply(steps, StepTraces.joined(traced), StepCounts.joined(trace_steps), cohort.fleet.clock.step_s)


@dataclass(frozen=True)
class _Followed:
    """Devices of one user group: ranked blocks, user embeddings (N, d), items seen and wanted; the engine's device;
    whether they read the whole list whenever they read it, so that nobody sees what they want.
    """

    ranked: RankedBlocks
    users: NDArray[np.float32]
    seen: UserItems
    wanted: UserItems
    top_n: int
    device: str
    all_read: bool

    def over_time(self, budgets: IntArray, steps_per_round: int) -> tuple[StepCounts, IntArray]:
        """What each device does at each step, (T, N), under ``budgets`` (T, N), and how far (N,) it has read by the
        end.
        """
        num_steps, num_devices = budgets.shape
        counted = self.wanted.counts() > 0
        table = StepCounts.zeros(num_steps, num_devices)
        held, held_bytes, behind = np.zeros((3, num_devices), np.int64)  # blocks, their bytes, rank behind the last
        cutoffs, stored, kept, behind_now = np.zeros((4, num_devices), np.int64)
        recall, rigid_bytes, rigid_recall = np.zeros((3, num_devices), np.int64)
        for step in range(num_steps):
            row = table[step]
            budget = budgets[step]
            some = np.flatnonzero(budget != budgets[step - 1]) if step else np.arange(num_devices)
            if len(some):
                seen = self.seen.select(some)
                cutoffs, stored, kept, behind_now = (one.copy() for one in (cutoffs, stored, kept, behind_now))
                cutoffs[some], stored[some], kept[some] = self.ranked.serving_cutoffs(budget[some], seen)
                behind_now[some] = self.ranked.after_last_kept(cutoffs[some], seen)
            num_bytes = self._block_bytes(stored)
            changed, grew = kept != held, kept > held
            new_recall = recall.copy()
            new_recall[changed] = self._recall(np.flatnonzero(changed), cutoffs)
            if step:
                row.grew[:] = grew
                row.shrank[:] = kept < held
                row.missing_bytes[:] = np.maximum(num_bytes - held_bytes, 0)
                row.moved_bytes[:] = np.where(grew, self._read(behind, cutoffs), 0)
                row.reselected[:] = changed & counted
                row.recall_before[:] = np.where(changed, recall, 0)
                row.recall_after[:] = np.where(changed, new_recall, 0)
            recall, held, held_bytes = new_recall, kept, num_bytes
            behind = behind_now
            lost, empty = rigid_bytes + self._overhead > budget, rigid_bytes == 0
            rigid_bytes, rigid_recall = np.where(lost, 0, rigid_bytes), np.where(lost, 0, rigid_recall)
            if step % steps_per_round == 0:
                fetch = empty & (kept > 0)  # what is lost at this very moment is missed until the next round
                rigid_bytes, rigid_recall = (
                    np.where(fetch, num_bytes, rigid_bytes),
                    np.where(fetch, recall, rigid_recall),
                )
                if step:
                    row.rigid_moved_bytes[:] = np.where(fetch, self._read(np.zeros_like(cutoffs), cutoffs), 0)
            row.devices[:] = 1
            row.counted[:] = counted
            row.budget_bytes[:] = budget
            row.stored_bytes[:] = stored
            row.kept_blocks[:] = kept
            row.violations[:] = stored > budget
            row.recall[:] = recall
            row.recall_square[:] = _squared(recall)
            row.rigid_recall[:] = rigid_recall
            row.rigid_square[:] = _squared(rigid_recall)
            row.rigid_empty[:] = rigid_bytes == 0
        return table, cutoffs

    def _read(self, start: IntArray, stop: IntArray) -> IntArray:
        """Bytes (N,) moved to devices that read the list from ``start`` to ``stop``, ranks (N,)."""
        everything = np.full_like(stop, len(self.ranked.blocks))
        return self.ranked.read_bytes(*((np.zeros_like(start), everything) if self.all_read else (start, stop)))

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


def _squared(recall: IntArray) -> IntArray:
    """In fixed point, as recall is."""
    return np.rint((recall / SUM_SCALE) ** 2 * SUM_SCALE).astype(np.int64)


__all__ = ["follow"]
