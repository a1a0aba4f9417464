"""State that devices keep for ranking, and what happens to it when budgets move after training.

An *elastic* device re-selects whenever its budget moves: it drops blocks without a message, or reads on in its user
group's list, which it does not keep, from behind the last block it holds. A *rigid* device keeps what it chose until
that no longer fits; then it has nothing to serve from, until the next round lets it download anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.node.joining import PreviousHoldings
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.settings import PRECISIONS, Precision
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.columns import SUM_SCALE
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.exchange.counters import StepCounts, StepTraces
from fl_peel.ranking.top import Ranker
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
    before = PreviousHoldings.read(cohort) if request.keeps else None
    steps = StepCounts.zeros(num_steps, num_classes)
    traced: list[StepTraces] = []
    trace_steps: list[StepCounts] = []
    for group, payload in request.groups.items():
        index = np.flatnonzero(groups == group)
        if not len(index):
            continue
        members = places[index]
        who = _FollowedGroup(
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
        for number in np.unique(classes).tolist():
            steps[:, number].add(per_device[:, classes == number].total(axis=1))
        for i in np.flatnonzero(np.isin(cohort.devices[members], request.traced)):
            device, its_class = (np.full(num_steps, number) for number in (cohort.devices[members[i]], classes[i]))
            traced.append(StepTraces(device, its_class.astype(np.int64), np.arange(num_steps)))
            trace_steps.append(per_device[:, i])
    if before is not None:
        before.save(cohort)
    return MovingReply(steps, StepTraces.joined(traced), StepCounts.joined(trace_steps), cohort.fleet.clock.step_s)


@dataclass(frozen=True)
class _FollowedGroup:
    """The devices of one user group: ranked blocks, user embeddings (N, d), items seen and wanted; the engine's device;
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
        """Return what each device does at each step, (T, N), under ``budgets`` (T, N), and how far (N,) it has read by
        the end.
        """
        counted, table = self.wanted.counts() > 0, StepCounts.zeros(*budgets.shape)
        cutoffs, stored, kept, behind = self._chosen(budgets)
        num_bytes = self._block_bytes(stored)
        held, held_bytes = _before(kept), _before(num_bytes)
        changed, grew = kept != held, kept > held
        recall = self._recall(cutoffs, changed)
        table.devices[:] = 1
        table.counted[:] = counted
        table.budget_bytes[:] = budgets
        table.stored_bytes[:] = stored
        table.kept_blocks[:] = kept
        table.violations[:] = stored > budgets
        table.recall[:] = recall
        table.recall_square[:] = _squared(recall)
        later = table[1:]  # what devices choose at the first step they do not choose anew
        later.grew[:] = grew[1:]
        later.shrank[:] = kept[1:] < held[1:]
        later.missing_bytes[:] = np.maximum(num_bytes - held_bytes, 0)[1:]
        later.moved_bytes[:] = np.where(grew, self._read(_before(behind), cutoffs), 0)[1:]
        later.reselected[:] = (changed & counted)[1:]
        later.recall_before[:] = np.where(changed, _before(recall), 0)[1:]
        later.recall_after[:] = np.where(changed, recall, 0)[1:]
        self._rigid(table, num_bytes, self._read(np.zeros_like(cutoffs), cutoffs), steps_per_round)
        return table, cutoffs[-1]

    def _chosen(self, budgets: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Return what devices choose at each step under budgets (T, N): how far they read, bytes they store, blocks
        they keep, and the rank behind the last of these, (T, N) each. They choose anew where their budget changes.
        """
        anew = np.ones(budgets.shape, np.bool_)
        anew[1:] = budgets[1:] != budgets[:-1]
        skipped, (steps, who) = self.ranked.unneeded(self.seen), np.nonzero(anew)
        theirs = skipped.select(who)
        cutoffs, stored, kept = self.ranked.cutoffs_without(budgets[steps, who], theirs)
        behind = self.ranked.after_last_without(cutoffs, theirs)
        place = np.zeros(budgets.shape, np.int64)
        place[steps, who] = np.arange(len(who))
        last = np.take_along_axis(place, _latest(anew), axis=0)
        return cutoffs[last], stored[last], kept[last], behind[last]

    def _recall(self, cutoffs: IntArray, changed: NDArray[np.bool_]) -> IntArray:
        """Return the fixed-point recall (T, N) of devices that rank anew where what they keep has changed, (T, N); 0
        before, and for devices without test items.
        """
        recall = np.zeros(cutoffs.shape, np.int64)
        some = np.flatnonzero(changed.any(axis=1))
        ranker = Ranker(self.ranked, self.top_n, self.device)
        exact, _ = ranker.evaluate(np.ascontiguousarray(cutoffs[some].T), self.users, self.seen, self.wanted)
        recall[some] = np.where(changed[some], np.rint(exact.T * SUM_SCALE).astype(np.int64), 0)
        return np.take_along_axis(recall, _latest(changed), axis=0)

    def _rigid(self, table: StepCounts, num_bytes: IntArray, whole: IntArray, steps_per_round: int) -> None:
        """Return what rigid devices do, which hold what they chose until it no longer fits. num_bytes, whole: (T, N)
        bytes of blocks that they would choose at a step, and that are moved for it.
        """
        held, recall = np.zeros((2, num_bytes.shape[1]), np.int64)
        for step in range(len(num_bytes)):
            row = table[step]
            lost, empty = held + self._overhead > row.budget_bytes, held == 0
            held, recall = np.where(lost, 0, held), np.where(lost, 0, recall)
            if step % steps_per_round == 0:
                fetch = empty & (row.kept_blocks > 0)  # what is lost at this very moment is missed until the next round
                held, recall = np.where(fetch, num_bytes[step], held), np.where(fetch, row.recall, recall)
                if step:
                    row.rigid_moved_bytes[:] = np.where(fetch, whole[step], 0)
            row.rigid_recall[:] = recall
            row.rigid_empty[:] = held == 0
        table.rigid_square[:] = _squared(table.rigid_recall)

    def _read(self, start: IntArray, stop: IntArray) -> IntArray:
        """Bytes (N,) moved to devices that read the list from ``start`` to ``stop``, ranks (N,)."""
        everything = np.full_like(stop, len(self.ranked.blocks))
        return self.ranked.read_bytes(*((np.zeros_like(start), everything) if self.all_read else (start, stop)))

    @property
    def _overhead(self) -> int:
        return overhead_bytes(self.ranked.layout.embedding_dim)

    def _block_bytes(self, stored: IntArray) -> IntArray:
        return np.maximum(stored - self._overhead, 0)


def _before(values: IntArray) -> IntArray:
    """Values (T, N) of the step before, 0 before the first."""
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])


def _latest(there: NDArray[np.bool_]) -> IntArray:
    """Return the latest step, up to each, at which ``there`` is true, (T, N); the first step where it never was."""
    steps = np.arange(len(there))[:, None]
    return np.maximum.accumulate(np.where(there, steps, 0), axis=0)


def _squared(recall: IntArray) -> IntArray:
    """Return the square of a fixed-point recall, in fixed point too."""
    return np.rint((recall / SUM_SCALE) ** 2 * SUM_SCALE).astype(np.int64)
