"""Start of a timeline's period: devices read those parts of its tables that they lack.

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
from clients.node.joining import NEVER, PreviousHoldings
from clients.serving.evaluate import Holdings
from fl_peel.blocks.precision import has_scales
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.settings import PRECISIONS, Precision
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.exchange.counters import RefreshCounts
from fl_peel.wire import NEW, RESCALED, RefreshReply, RefreshRequest

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
        hidden = seen.select(members)
        for i, budget in enumerate(request.budgets.tolist()):
            held = Holdings.under(ranked, budget, 1.0, -1.0, own[members], hidden)
            short += int(held.short.sum())
            there = PresentBlocks(before, i, members, strange)
            sent = _sent_bytes(ranked, held.cutoffs, hidden, changed, there)
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
    ranked: RankedBlocks, cutoffs: IntArray, hidden: UserItems, changed: NDArray[np.uint8], there: PresentBlocks
) -> IntArray:
    """Bytes (N,) of what devices up to ``cutoffs`` (N,) need and do not hold as it is now: whole blocks, and new scales
    of those whose codes stay.
    """
    sent = np.zeros(len(cutoffs), np.int64)
    reach = int(cutoffs.max(initial=0))
    costs, places = np.diff(ranked.cost)[:reach], np.arange(reach)
    rows = ranked.layout.group_sizes[ranked.blocks[:reach] // ranked.layout.num_slices]
    scales = rows * SCALE_BYTES if has_scales(ranked.precision) else costs
    skipped = ranked.unneeded(hidden)
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
