"""One round of the sampled devices of one user group: choose, train, drop what memory or time forbids.

What a device would upload is known only once it has trained. Those that turn out to be late are taken out by training
the others once more: every device has its own randomness, so the others do the same again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clients.node.clock import DeviceRates, RoundCost, never_within_deadline, spend
from clients.round.memory import IntArray, RoundMemory
from clients.round.poisoning import Adversary
from clients.round.round_context import RoundContext
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.ranking.top import top_rows
from fl_peel.training.update import GroupUpdate
from fl_peel.training.work import LocalWork

SIGNAL_BYTES = 12
"""Bytes that a device uploads for each block in its top list: block number, shown, hit."""
METRIC_BYTES = 32
"""Loss, recall, NDCG and count."""


@dataclass(frozen=True)
class GroupDevices:
    """The devices of one group that were reached: user embeddings (N, d), train items, seeds (N,), rates; adversary:
    which of them are malicious, None where nobody is.
    """

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
