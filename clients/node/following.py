"""What devices keep for ranking: as budgets move after training, and as a period of a timeline starts.

An *elastic* device re-selects whenever its budget moves: it drops blocks without a message, or reads on in its user
group's list, which it does not keep, from behind the last block it holds. It is compared with a device that always
holds its *floor*: the blocks of the smallest budget that it will have, for which nothing is moved.

What a device holds is a beginning of its user group's list. Of this period's list it reads the blocks of the new
beginning that it does not hold, and those that are no longer as they were; blocks that it never needs, as it has used
all their items, it passes over. Between periods a node remembers of each device its group and how far it read, and the
lists themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.node.evaluate import Holdings
from clients.node.joining import NEVER, PreviousHoldings
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import has_scales
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.exchange.counters import RefreshCounts, StepCounts, StepTraces
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import Ranker
from fl_peel.scenario.settings import PRECISIONS, Precision
from fl_peel.wire import NEW, RESCALED, MovingReply, MovingRequest, RefreshReply, RefreshRequest

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
    replicates = Replicates.zeros(2, request.replicates)
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
        per_device, cutoffs = who.over_time(budgets[:, index])  # (T, N)
        # means over time, (N, 2): as devices follow their budgets, and at their floor
        recalls = np.stack([per_device.recall, per_device.floor_recall], axis=-1).mean(axis=0) / SUM_SCALE
        counted = per_device.counted[0] > 0
        replicates += Replicates.from_devices(
            cohort.devices[members], recalls, np.zeros_like(recalls), counted, request.replicates
        )
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
    joined = StepTraces.joined(traced), StepCounts.joined(trace_steps)
    return MovingReply(steps, *joined, replicates, cohort.fleet.clock.step_s)


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

    def over_time(self, budgets: IntArray) -> tuple[StepCounts, IntArray]:
        """Return what devices do at each step, (T, N), under ``budgets`` (T, N), and how far (N,) they have read."""
        counted, table = self.wanted.counts() > 0, StepCounts.zeros(*budgets.shape)
        cutoffs, stored, kept, behind, user = self._chosen(budgets)
        num_bytes: IntArray = np.maximum(stored - overhead_bytes(self.ranked.layout.slice_dim), 0)
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
        wider = np.maximum(user - _before(user), 0)
        later.moved_bytes[:] = np.where(grew, self._read(_before(behind), cutoffs) + wider, 0)[1:]
        later.reselected[:] = (changed & counted)[1:]
        later.recall_before[:] = np.where(changed, _before(recall), 0)[1:]
        later.recall_after[:] = np.where(changed, recall, 0)[1:]
        lowest = budgets.argmin(axis=0)[None]  # (1, N)
        table.floor_recall[:] = np.take_along_axis(recall, lowest, axis=0)
        table.floor_square[:] = _squared(table.floor_recall)
        table.floor_bytes[:] = np.take_along_axis(stored, lowest, axis=0)
        return table, cutoffs[-1]

    def _chosen(self, budgets: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """Return what devices choose at each step under budgets (T, N): how far they read, bytes they store, blocks
        they keep, the rank behind the last of these, and bytes of the user embedding behind its first slice, (T, N)
        each. They choose anew where their budget changes.
        """
        anew = np.ones(budgets.shape, np.bool_)
        anew[1:] = budgets[1:] != budgets[:-1]
        skipped, (steps, who) = self.ranked.unneeded(self.seen), np.nonzero(anew)
        theirs = skipped.select(who)
        cutoffs, stored, kept = self.ranked.cutoffs_without(budgets[steps, who], theirs)
        behind, user = self.ranked.after_last_without(cutoffs, theirs), self.ranked.wider_user_bytes(cutoffs, theirs)
        place = np.zeros(budgets.shape, np.int64)
        place[steps, who] = np.arange(len(who))
        last = np.take_along_axis(place, _latest(anew), axis=0)
        return cutoffs[last], stored[last], kept[last], behind[last], user[last]

    def _recall(self, cutoffs: IntArray, changed: NDArray[np.bool_]) -> IntArray:
        """Return the fixed-point recall (T, N) of devices that rank anew where they ``changed``; else 0."""
        recall = np.zeros(cutoffs.shape, np.int64)
        some = np.flatnonzero(changed.any(axis=1))
        ranker = Ranker(self.ranked, self.top_n, self.device)
        exact, _ = ranker.evaluate(np.ascontiguousarray(cutoffs[some].T), self.users, self.seen, self.wanted)
        recall[some] = np.where(changed[some], np.rint(exact.T * SUM_SCALE).astype(np.int64), 0)
        return np.take_along_axis(recall, _latest(changed), axis=0)

    def _read(self, start: IntArray, stop: IntArray) -> IntArray:
        """Bytes (N,) moved to devices that read the list from ``start`` to ``stop``, ranks (N,)."""
        everything = np.full_like(stop, len(self.ranked.blocks))
        return self.ranked.read_bytes(*((np.zeros_like(start), everything) if self.all_read else (start, stop)))


def _before(values: IntArray) -> IntArray:
    """Values (T, N) of the step before, 0 before the first."""
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])


def _latest(there: NDArray[np.bool_]) -> IntArray:
    """Return the latest step, up to each, at which ``there`` is true, (T, N); the first step where it never was."""
    steps = np.arange(len(there))[:, None]
    return np.maximum.accumulate(np.where(there, steps, 0), axis=0)


def _squared(recall: IntArray) -> IntArray:
    return np.rint((recall / SUM_SCALE) ** 2 * SUM_SCALE).astype(np.int64)


AT_ONCE = 1 << 24
"""Pairs of a device and a block that are looked at together."""
SCALE_BYTES = 2
"""Bytes of a row's scale, in half precision."""


def refresh(cohort: Cohort, request: RefreshRequest) -> RefreshReply:
    """Let every participating device read what it lacks, under each budget as if it had always had this one."""
    assert request.precision in PRECISIONS
    precision: Precision = request.precision
    layout, num_classes, num_budgets = cohort.layout(), len(cohort.fleet.names), len(request.budgets)
    groups = np.asarray(cohort.state("r").groups, np.int64)
    before = PreviousHoldings.read(cohort, request.budgets)
    last = before.current_groups(request.former)
    own, seen = cohort.budgets.at(request.server_round), cohort.seen.below(layout.num_items)
    total = RefreshCounts.zeros(num_budgets, num_classes)
    now_groups, now_cutoffs, short = before.groups.copy(), before.cutoffs.copy(), 0
    ranks = np.full((max([*request.groups, -1]) + 1, layout.num_blocks), NEVER, np.int32)
    for group, payload in request.groups.items():
        ranked = RankedBlocks.unpack(layout, precision, payload)
        ranks[group, ranked.blocks] = np.arange(len(ranked.blocks))
        members = np.flatnonzero((groups == group) & cohort.joining)
        changed = request.changed[group if len(request.changed) > 1 else 0, ranked.blocks]
        moved = (before.groups[members] >= 0) & (last[members] != group)
        strange = moved & (len(request.changed) > 1)  # another group's table: nothing of it is held
        skipped = ranked.unneeded(seen.select(members))
        for i, budget in enumerate(request.budgets.tolist()):
            held = Holdings.under(ranked, budget, 1.0, -1.0, own[members], skipped)
            short += int(held.short.sum())
            there = PresentBlocks(before, i, members, strange)
            sent = _sent_bytes(ranked, held.cutoffs, skipped, changed, there)
            ones = np.ones(len(members), np.int64)
            per_device = RefreshCounts(ones, sent, held.stored, held.violations, moved * ones, sent * moved)
            total[i].add(per_device.by_cell(cohort.classes[members], num_classes))
            now_cutoffs[members, i] = held.cutoffs
        now_groups[members] = group
    if len(before.ranks) and not len(ranks):
        ranks = before.ranks
    PreviousHoldings(now_groups, now_cutoffs, ranks, before.budgets).save(cohort)
    return RefreshReply(total, short)


@dataclass(frozen=True)
class PresentBlocks:
    """The blocks that the devices at ``members`` (N,) hold when a period begins, under a budget by its number. strange:
    (N,) whose blocks are of another table.
    """

    before: PreviousHoldings
    budget: int
    members: IntArray
    strange: NDArray[np.bool_]

    def held(self, some: IntArray, blocks: IntArray) -> NDArray[np.bool_]:
        """Return which of the blocks (K,) some (M,) of the devices hold, (M, K)."""
        return self.before.held_blocks(self.members[some], self.budget, blocks) & ~self.strange[some][:, None]


def _sent_bytes(
    ranked: RankedBlocks, cutoffs: IntArray, skipped: UserItems, changed: NDArray[np.uint8], there: PresentBlocks
) -> IntArray:
    """Bytes (N,) of what devices up to ``cutoffs`` (N,) need and do not hold as it is now: whole blocks, and new scales
    of those whose codes stay. skipped: blocks that they never need.
    """
    sent = np.zeros(len(cutoffs), np.int64)
    reach = int(cutoffs.max(initial=0))
    costs, places = np.diff(ranked.cost)[:reach], np.arange(reach)
    rows = ranked.layout.group_sizes[ranked.blocks[:reach] // ranked.layout.num_slices]
    scales = rows * SCALE_BYTES if has_scales(ranked.precision) else costs
    step = max(1, AT_ONCE // max(reach, 1))
    for first in range(0, len(cutoffs), step):
        some = np.arange(first, min(first + step, len(cutoffs)))
        needed = places[None, :] < cutoffs[some][:, None]
        passed = skipped.select(some)
        inside = passed.keep(passed.items < reach)
        needed[inside.users(), inside.items] = False
        had = there.held(some, ranked.blocks[:reach])
        lacking = (changed[None, :reach] == NEW) | ~had
        rescaled = ~lacking & (changed[None, :reach] == RESCALED)
        sent[some] = (needed & lacking) @ costs + (needed & rescaled) @ scales
    return sent
