"""Comparison, by devices, of refined tables with the previous ones; they keep the refined ones or go back."""

from __future__ import annotations

import numpy as np

from clients.node.cohort import Cohort
from clients.round.memory import extra_bytes
from clients.serving.evaluate import Holdings
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.settings import PRECISIONS, Precision
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.ranking.paired import PairedSums
from fl_peel.ranking.top import Ranker
from fl_peel.wire import OWN_BUDGET, Arrays, CompareReply, CompareRequest, KeepReply, KeepRequest

TOP_N = 20


def compare(cohort: Cohort, request: CompareRequest) -> CompareReply:
    """Compare the refined tables with the previous ones, by user group, on the devices that are available and have
    validation items: recall@20 on these items under the devices' own budgets, with the blocks and user embedding of now
    less that with those they had before (kept).
    """
    assert request.precision in PRECISIONS
    state, wanted = cohort.state("r"), cohort.splits.validation
    groups = np.asarray(state.groups)
    budgets = cohort.budgets.at(request.server_round) - extra_bytes(cohort.scenario)
    asked = cohort.available(np.arange(len(groups)), request.server_round) & (wanted.counts() > 0)
    sums = PairedSums.zeros(request.num_groups)
    moved = 0
    for group in request.kept:
        members = np.flatnonzero((groups == group) & asked)
        if not len(members):
            continue
        recalls = []
        for payload, users in ((request.kept[group], state.kept_users), (request.current[group], state.users)):
            recall, down = _recall(cohort, request.precision, payload, members, np.asarray(users[members]), budgets)
            recalls.append(recall)
            moved += down
        sums.add(PairedSums.from_devices(groups[members], request.num_groups, recalls[1] - recalls[0]))
    return CompareReply(sums, moved)


def _recall(
    cohort: Cohort, precision: Precision, payload: Arrays, members: IntArray, users: np.ndarray, budgets: IntArray
) -> tuple[np.ndarray, int]:
    """Recall (N,) of the devices at ``members`` from these blocks, and bytes that they fetched for it."""
    ranked = RankedBlocks.unpack(cohort.layout(), precision, payload)
    seen: UserItems = cohort.splits.train.select(members)
    held = Holdings.under(ranked, OWN_BUDGET, 1.0, -1.0, budgets[members], seen)
    wanted = cohort.splits.validation.select(members)
    ranker = Ranker(ranked, TOP_N, cohort.scenario.engine.device)
    recall, _ = ranker.evaluate(held.cutoffs[:, None], users, seen, wanted)
    return recall[:, 0], int(ranked.read_bytes(np.zeros_like(held.cutoffs), held.cutoffs).sum())


def keep(cohort: Cohort, request: KeepRequest) -> KeepReply:
    """Devices of user groups ``accepted`` keep the user embedding they have; all those of ``restored`` go back to the
    one they kept last.
    """
    state = cohort.state("r+")
    groups = np.asarray(state.groups)
    taken, back = np.isin(groups, request.accepted), np.isin(groups, request.restored)
    state.kept_users[taken] = state.users[taken]
    state.users[back] = state.kept_users[back]
    return KeepReply(int(taken.sum()), int(back.sum()))
