"""One round of some devices of one user group: they train within the deadline, and their contributions and counts are
added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.round.memory import RoundMemory
from clients.round.outcome import MembersReply, StateUpdate
from clients.round.poisoning import Adversary
from clients.round.round_context import RoundContext
from clients.round.within_deadline import GroupDevices, GroupOutcome, Traffic, train_within_deadline
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.columns import SUM_SCALE
from fl_peel.data.interactions import FloatArray, IntArray, UserItems
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces, RoundCounts, RoundTotals
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
    done = train_within_deadline(context, ranked, memory, devices, terms.traffic)
    kept = members[done.kept]
    # what nobody had used when tables were made is in none of them
    validation = cohort.splits.validation.select(kept).below(ranked.layout.num_items)
    if devices.adversary is not None:
        validation = devices.adversary.select(done.kept).claimed(validation)
    train = cohort.splits.train.select(kept)
    trained = TrainedDevices(
        cohort.devices[kept], memory.last[done.kept], done.users, done.update, done.best, train, validation
    )
    working_bytes = memory.working_bytes(ranked, working, done.kept, done.update.touched_pieces)
    counts = _counts(context, members, memory, done, working_bytes, working_bytes > working.allowed)
    if done.best is not None:
        counts = _with_metrics(counts, cohort.classes[kept], recall_ndcg(ranked, done.best, validation, 20), validation)
    return MembersReply(
        contents.contribution(ranked, trained, terms.noise_devices),
        counts,
        StateUpdate(kept, done.users, members, memory.last),
    )


def _counts(
    context: RoundContext,
    members: IntArray,
    memory: RoundMemory,
    done: GroupOutcome,
    working_bytes: IntArray,
    violated: NDArray[np.bool_],
) -> RoundCounts:
    """Return the counts of devices at ``members`` (N,). working_bytes: (N,) taken besides what is stored; violated:
    (N,) whether that is more than may be taken. Bytes moved and violations cover every device reached; devices,
    budgets, stored and peak bytes cover those whose update counts.
    """
    cohort, num_classes = context.cohort, len(context.cohort.fleet.names)
    classes = cohort.classes[members]
    counted = np.zeros(len(members), np.int64)
    counted[done.kept] = 1
    kept_before = np.asarray(context.state.kept_blocks[members])
    changed = ((kept_before >= 0) & (kept_before != memory.first)).astype(np.int64) + memory.dropped_blocks
    per_class = ClassCounts(
        devices=counted,
        budget_bytes=counted * memory.budgets,
        download_bytes=done.spent.download_bytes,
        upload_bytes=done.spent.upload_bytes,
        reselections=changed,
        violations=memory.violations,
        stored_bytes=counted * memory.stored,
        peak_bytes=counted * (memory.stored + working_bytes),
        working_violations=violated.astype(np.int64),
    ).by_cell(classes, num_classes)
    clock = ClockCounts.from_columns(
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
    shown = np.flatnonzero(np.isin(cohort.devices[members], context.request.traced))
    traces = DeviceTraces(
        cohort.devices[members[shown]],
        classes[shown].astype(np.int64),
        memory.budgets[shown],
        memory.stored[shown],
        memory.first[shown],
    )
    return RoundCounts(per_class, clock, totals, int(done.spent.time_us[done.kept].max(initial=0)), traces)


def _with_metrics(
    counts: RoundCounts, classes: NDArray[np.int16], per_device: tuple[FloatArray, FloatArray], validation: UserItems
) -> RoundCounts:
    """Return the counts with the metrics (N,) of devices of these classes (N,), by their validation items."""
    metrics = MetricSums.from_devices(classes, len(counts.clock.recall), *per_device, validation.counts() > 0)
    total = metrics.total()
    return replace(
        counts,
        clock=replace(counts.clock, recall=metrics.recall, evaluated=metrics.devices),
        totals=replace(counts.totals, recall=total.recall, ndcg=total.ndcg, evaluated=total.devices),
    )


def _number(value: np.integer) -> NDArray[np.int64]:
    return np.asarray(value, np.int64)
