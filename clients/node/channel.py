"""Device half of a channel: how contributions of a node's devices are combined on their way to the server; the clear
one adds them up for the server to read.

Some devices of one user group train within the deadline, and their contributions are added up. What a device would
upload is known only once it has trained. Those that turn out to be late are taken out by training the others once more:
every device has its own randomness, so the others do the same again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort, DeviceRates, RoundCost, never_within_deadline, spend
from clients.node.contents import MembersReply, StateUpdate
from clients.node.poisoning import Adversary
from clients.node.round_context import RoundContext, RoundMemory
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import FloatArray, IntArray, UserItems
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces, RoundCounts, RoundTotals
from fl_peel.exchange.release import TrainedDevices, owned
from fl_peel.mmap_arrays import rows_at
from fl_peel.ranking.top import MetricSums, recall_ndcg, top_rows
from fl_peel.training.update import GroupUpdate, LocalWork
from fl_peel.wire import Arrays, RoundReply, RoundRequest

SIGNAL_BYTES = 12
"""Bytes that a device uploads for each block in its top list: block number, shown, hit."""
METRIC_BYTES = 32
"""Loss, recall, NDCG and count."""


@dataclass(frozen=True)
class GroupDevices:
    """A group's devices that were reached: embeddings (N, d), train items, seeds (N,), rates; adversary, if any."""

    users: NDArray[np.float32]
    train: UserItems
    seeds: NDArray[np.uint64]
    rates: DeviceRates
    adversary: Adversary | None = None


@dataclass(frozen=True)
class Traffic:
    """The traffic of a device in a round whose sums are secure, whatever it trained: its upload has a fixed length.
    download_bytes: bytes besides the blocks; upload_bytes: all of it; exchanges: times it waits for the server.
    """

    download_bytes: int
    upload_bytes: int
    exchanges: int


@dataclass(frozen=True)
class GroupOutcome:
    """The outcome of a group's round. kept: (M,) positions of the devices that count; the next four are of those
    devices alone. users: (M, d); update: their sums; best: (M, L) top rows, or None; spent, stragglers,
    memory_dropouts: (N,), of all devices.
    """

    kept: IntArray
    users: NDArray[np.float32]
    update: GroupUpdate
    best: NDArray[np.int32] | None
    spent: RoundCost
    stragglers: NDArray[np.bool_]
    memory_dropouts: NDArray[np.bool_]


def train_within_deadline(
    context: RoundContext,
    ranked: RankedBlocks,
    memory: RoundMemory,
    devices: GroupDevices,
    traffic: Traffic | None = None,
) -> GroupOutcome:
    """Train the devices of one user group. traffic: None where devices upload what they touched."""
    scenario, how, list_length = context.cohort.scenario, context.how, context.list_length
    hiding, train, device = context.contents.hiding(), context.contents.train, scenario.engine.device
    deadline_s = scenario.refinement.deadline_s
    layout, rates = ranked.layout, devices.rates
    download = ranked.read_bytes(np.zeros_like(memory.first), memory.first)
    if hiding is not None:
        download = hiding.download_bytes(ranked, memory.first)
    if traffic is not None:
        download = download + traffic.download_bytes
        rates = replace(rates, latency_s=traffic.exchanges * rates.latency_s)
    samples = how.epochs * work_samples(ranked, memory, devices.train)
    out = memory.dropped_out
    kept = np.flatnonzero(~out & ~never_within_deadline(rates, download, samples, deadline_s))
    uploads = np.zeros(len(download), np.int64)
    while True:
        trained, held, items = memory.trained[kept], memory.last[kept], devices.train.select(kept)
        train_them = train if devices.adversary is None else partial(devices.adversary.select(kept).train, honest=train)
        users, update = train_them(
            LocalWork(ranked, trained, devices.users[kept], items, devices.seeds[kept], how, device)
        )
        best = None if list_length is None else top_rows(ranked, held, users, items, list_length, device)
        uploads[kept] = METRIC_BYTES + update.touched_pieces * (layout.id_dtype.itemsize + 4 * layout.slice_dim)
        if best is not None:
            uploads[kept] += SIGNAL_BYTES * (best >= 0).sum(axis=1)
        if hiding is not None:
            uploads[kept] = hiding.update_bytes(ranked, held, update.touched_pieces) + hiding.part_bytes(ranked)
        if traffic is not None:
            uploads[kept] = traffic.upload_bytes
        spent = spend(rates, download, samples, uploads, deadline_s)
        in_time = ~spent.late[kept]
        if in_time.all():
            return GroupOutcome(kept, users, update, best, spent, spent.late & ~out, out)
        kept = kept[in_time]


def work_samples(ranked: RankedBlocks, memory: RoundMemory, train: UserItems) -> IntArray:
    """Training samples of one epoch, (N,): once as it begins, and once more where blocks were lost since."""
    rows = ranked.row_of_item[train.items]
    samples = _present(rows, train, ranked.num_present(memory.started))
    return samples + np.where(memory.interrupted, _present(rows, train, ranked.num_present(memory.trained)), 0)


def _present(rows: NDArray[np.int32], items: UserItems, num_present: IntArray) -> IntArray:
    """Items (N,) of each device whose row is among its first ``num_present`` (N,)."""
    return items.keep((rows >= 0) & (rows < np.repeat(num_present, items.counts()))).counts()


@dataclass(frozen=True)
class ChannelTerms:
    """The channel's terms for a device's round. traffic: bytes moved besides blocks, None where only blocks are moved.
    noise_devices: number of devices whose shares of noise make that of a sum, None where devices add none in shares.
    counts: whether a device says what it would contribute to, instead of its contribution.
    """

    traffic: Traffic | None = None
    noise_devices: int | None = None
    counts: bool = False


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
    contribution = owned(done.update) if terms.counts else contents.contribution(ranked, trained, terms.noise_devices)
    return MembersReply(contribution, counts, StateUpdate(kept, done.users, members, memory.last))


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


Reply = TypeVar("Reply")


class DeviceChannel(ABC, Generic[Reply]):
    """The device half of a channel, on one node in one round: one user group after the other, then the reply."""

    def __init__(self, cohort: Cohort, request: RoundRequest) -> None:
        self.context = RoundContext.from_request(cohort, request)

    def begin(self) -> RoundCounts:
        """Start the round before the first user group; return what is counted already."""
        return RoundCounts.nothing(len(self.context.cohort.fleet.names))

    @abstractmethod
    def members(self, group: int) -> IntArray:
        """Return the places (N,) of a user group's devices that are reached."""

    @abstractmethod
    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """The round of devices (N,), one at least: what is counted in the open, and what they will keep."""

    @abstractmethod
    def reply(self, counts: RoundCounts) -> Reply:
        """Return the reply of the node. counts: counts of the round, as far as they are sent in the open."""


def run_round(kind: Callable[..., DeviceChannel[Reply]], cohort: Cohort, request: RoundRequest, *more: Any) -> Reply:
    """One round of a node's devices through a kind of channel. more: of what that kind takes besides."""
    channel = kind(cohort, request, *more)
    world = channel.context
    counts, keeps = channel.begin(), list[StateUpdate]()
    layout, precision = world.cohort.layout(), world.cohort.scenario.blocks.precision
    for group, payload in world.request.groups.items():
        members = channel.members(group)
        if not len(members):
            continue
        counted, kept = channel.take(RankedBlocks.unpack(layout, precision, payload), group, members)
        counts += counted
        keeps += kept
    state = world.cohort.state()
    for one in keeps:  # last, so that a round that fails half-way leaves devices as they were
        one.remember(state)
    return channel.reply(world.contents.counted(counts))


class ClearDeviceChannel(DeviceChannel[RoundReply]):
    """The clear channel of a node. noise_devices: of groups that add shares of central noise, how many they are."""

    def __init__(self, cohort: Cohort, request: RoundRequest, noise_devices: Mapping[int, int] | None = None) -> None:
        super().__init__(cohort, request)
        self._noise_devices = noise_devices or {}
        self._groups = np.asarray(self.context.state.groups)
        self._reached = np.zeros(0, np.int64)
        self._contributions: dict[int, Arrays] = {}

    def begin(self) -> RoundCounts:
        """Determine which of the sampled devices are reached."""
        self._reached, clock = self.context.reached(self.context.cohort.places(self.context.request.devices))
        return replace(super().begin(), clock=clock)

    def members(self, group: int) -> IntArray:
        return np.asarray(self._reached[self._groups[self._reached] == group])

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """Train all devices of the group together, as the contents have it."""
        terms = ChannelTerms(noise_devices=self._noise_devices.get(group))
        contents, replies = self.context.contents, dict[int, MembersReply]()
        for number, some in contents.parts(self.context.cohort.devices[members]).items():
            replies[number] = train_members(self.context, ranked, members[some], terms)
        done = contents.joined(replies)
        self._contributions[group] = done.arrays
        return done.counts, [done.state_update]

    def reply(self, counts: RoundCounts) -> RoundReply:
        return RoundReply(self._contributions, counts)


clear_round = partial(run_round, ClearDeviceChannel)
"""One round for the sampled devices of this node, in the clear."""
