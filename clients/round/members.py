"""One round of some devices of one user group: they train within the deadline, and their contributions and counts are
added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.round.accounts import class_counts, clock_counts
from clients.round.memory import RoundMemory, WorkingMemory
from clients.round.outcome import MembersReply, StateUpdate
from clients.round.poisoning import Adversary
from clients.round.round_context import RoundContext
from clients.round.within_deadline import GroupDevices, GroupOutcome, Traffic, train_within_deadline
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.columns import SUM_SCALE
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.exchange.counters import DeviceTraces, RoundCounts, RoundTotals
from fl_peel.exchange.trained_devices import TrainedDevices
from fl_peel.mmap_arrays import rows_at
from fl_peel.ranking.top import MetricSums, recall_ndcg


@dataclass(frozen=True)
class ChannelTerms:
    """The channel's terms for a device's round. traffic: bytes moved besides blocks, None where only blocks are moved.
    noise_devices: number of devices whose shares of noise make that of a sum, None where devices add none in shares.
    """

    traffic: Traffic | None = None
    noise_devices: int | None = None


CLEAR = ChannelTerms()


def train_members(
    context: RoundContext, ranked: RankedBlocks, members: IntArray, terms: ChannelTerms = CLEAR
) -> MembersReply:
    """One round for some devices of one user group, by their places (N,). No device's state changes yet."""
    cohort, contents = context.cohort, context.contents
    working = context.working(members)
    memory = context.memory(ranked, members, working)
    devices = GroupDevices(
        rows_at(context.state.users, members),
        cohort.splits.train.select(members),
        context.seeds[members],
        cohort.rates.select(members),
        Adversary.among(cohort, members),
    )
    done = train_within_deadline(
        ranked,
        memory,
        devices,
        context.how,
        list_length=context.list_length,
        deadline_s=cohort.scenario.refinement.deadline_s,
        traffic=terms.traffic,
        hiding=contents.hiding(),
        train=contents.train,
        device=cohort.scenario.engine.device,
    )
    kept = members[done.kept]
    # what nobody had used when tables were made is in none of them
    validation = cohort.splits.validation.select(kept).below(ranked.layout.num_items)
    if devices.adversary is not None:
        validation = devices.adversary.select(done.kept).claimed(validation)
    train = cohort.splits.train.select(kept)
    trained = TrainedDevices(
        cohort.devices[kept], memory.last[done.kept], done.users, done.update, done.best, train, validation
    )
    return MembersReply(
        contents.contribution(ranked, trained, terms.noise_devices),
        _counts(context, ranked, done, memory, working, members, validation),
        StateUpdate(kept, done.users, members, memory.last),
    )


def _counts(
    context: RoundContext,
    ranked: RankedBlocks,
    done: GroupOutcome,
    memory: RoundMemory,
    working: WorkingMemory,
    members: IntArray,
    validation: UserItems,
) -> RoundCounts:
    """Return the counts of devices at ``members`` (N,). validation: validation counts of those that count."""
    cohort, num_classes = context.cohort, len(context.cohort.fleet.names)
    classes, kept = cohort.classes[members], members[done.kept]
    clock = clock_counts(
        classes,
        num_classes,
        time_us=done.spent.time_us,
        energy_mj=done.spent.energy_mj,
        stragglers=done.stragglers,
        memory_dropouts=done.memory_dropouts,
        memory_drops=memory.dropped_blocks,
    )
    learned = done.update.examples > 0
    totals = replace(
        RoundTotals.zeros(),
        trained=_number(learned.sum()),
        loss=_number(np.rint(done.update.loss[learned] * SUM_SCALE).astype(np.int64).sum()),
    )
    if done.best is not None:
        per_device = recall_ndcg(ranked, done.best, validation, 20)
        metrics = MetricSums.from_devices(cohort.classes[kept], num_classes, *per_device, validation.counts() > 0)
        clock = replace(clock, recall=metrics.recall, evaluated=metrics.devices)
        total = metrics.total()
        totals = replace(totals, recall=total.recall, ndcg=total.ndcg, evaluated=total.devices)
    kept_before = np.asarray(context.state.kept_blocks[members])
    working_bytes = memory.working_bytes(ranked, working, done.kept, done.update.touched_pieces)
    shown = np.flatnonzero(np.isin(cohort.devices[members], context.request.traced))
    traces = DeviceTraces(
        cohort.devices[members[shown]],
        classes[shown].astype(np.int64),
        memory.budgets[shown],
        memory.stored[shown],
        memory.first[shown],
    )
    return RoundCounts(
        class_counts(done, memory, working_bytes, working.allowed, classes, kept_before, num_classes),
        clock,
        totals,
        int(done.spent.time_us[done.kept].max(initial=0)),
        traces,
    )


def _number(value: np.integer) -> NDArray[np.int64]:
    return np.asarray(value, np.int64)


__all__ = ["CLEAR", "ChannelTerms", "train_members"]
