"""Rivals on the pretrained tables: what each is, how well it ranks, and how they compete under a budget.

A rival gets what the server has after stage 1 (:class:`Material`) and the budgets to serve (:class:`Request`), and
yields for each what the devices would hold: one or more :class:`Option`. Several options for one request are settled on
validation, as every choice of every method is; the test is looked at for the chosen one. Ranking is that of PEEL
itself: the same compiled loop, fp16 user embedding, tables as they are decoded from what is stored, items a device
has interacted with are left out, and blocks that a device never needs take no room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.compression import StoredTable, stored_bytes
from fl_peel.blocks.layout import BlockLayout, dequantize, quantize
from fl_peel.blocks.ranked_blocks import RankedBlocks, RowOrder, ranked_as_numbered
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.events import Event, OnEvent, silent
from fl_peel.pretraining.central_training import (
    PretrainedEmbeddings,
    pretrain,
    pretraining_key,
    read_tables,
    write_tables,
)
from fl_peel.pretraining.clusters import fit_user_embeddings
from fl_peel.randomness import rng_for
from fl_peel.ranking.bootstrap import REPLICATES, Replicates
from fl_peel.ranking.top import MetricSums, evaluate, find_hits, hit_quality, top_rows
from fl_peel.scenario.method import ControllerPart
from fl_peel.scenario.settings import Precision, PretrainingConfig
from strategies.groups.start import shown_in_lists

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Lists = NDArray[np.int32]
Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
TOP_N = 20
NOTHING_FITS = "nothing fits in this budget"
CHUNK_USERS = 512
"""Users whose scores of all items are held at a time."""
Scores = Callable[[IntArray], FloatArray]
"""Function from places of users (M,) to scores of all items (M, I), which the caller may change; minus infinity where
an item has none.
"""


@dataclass(frozen=True)
class Request:
    """One row of the comparison: a precision and a budget."""

    precision: Precision
    share: float
    budget_bytes: int


UNLIMITED = Request("fp32", 1.0, 1 << 62)
"""Request for what lies on the server, whatever its size."""


@dataclass(frozen=True)
class GroupStarts:
    """The tables that user groups start with in PEEL. assignment: (U,) each device's group, by number; table: the item
    table (I, d) that a group starts with, to be called under ``fixed_threads(1)``; shown: as :attr:`Material.shown`,
    of a group, where the server has it from sums alone.
    """

    assignment: NDArray[np.integer]
    table: Callable[[int], FloatArray]
    shown: Callable[[int], NDArray[np.floating]] | None = None

    def members(self) -> dict[int, IntArray]:
        """Devices, ascending, of every group that has any."""
        return {group: np.flatnonzero(self.assignment == group) for group in np.unique(self.assignment).tolist()}


class SplitDevices:
    """Devices whose interactions are split."""

    splits: Splits

    @property
    def num_items(self) -> int:
        """Items, I."""
        return self.splits.num_items

    @cached_property
    def seen(self) -> UserItems:
        """Train and validation items, left out of the test ranking."""
        return self.splits.train.merged(self.splits.validation)

    def hidden(self, split: Split) -> UserItems:
        return self.seen if split == "test" else self.splits.train

    def wanted(self, split: Split) -> UserItems:
        return self.splits.test if split == "test" else self.splits.validation


@dataclass(frozen=True)
class Material(SplitDevices):
    """The material after stage 1. users (U, d): every device's, those that gave no data fitted on the device; starts:
    starts of the user groups, for rivals that start there; shown_by_sums: ``shown`` where no list is known.
    """

    given: UserItems
    has_data: NDArray[np.bool_]
    splits: Splits
    pretrained: PretrainedEmbeddings
    config: PretrainingConfig
    seed: int
    device: str = "cpu"
    cache_dir: str = ""
    on_event: OnEvent = field(default=silent, repr=False)
    starts: GroupStarts | None = field(default=None, repr=False)
    shown_by_sums: NDArray[np.floating] | None = field(default=None, repr=False)

    @cached_property
    def users(self) -> FloatArray:
        """Return the users' embeddings for the pretrained table."""
        return self.complete(self.pretrained.users, self.pretrained.items)

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """Collected interactions per item, (I,)."""
        return self.given.popularity(self.num_items)

    @cached_property
    def shown(self) -> NDArray[np.floating]:
        """Discounted places of items (I,) in the lists of users who gave data, as PEEL counts them for its blocks."""
        if self.shown_by_sums is not None:
            return self.shown_by_sums
        layout = BlockLayout(np.arange(self.num_items, dtype=np.int32), self.pretrained.items.shape[1], 1)
        everything = ranked_as_numbered(layout, self.pretrained.items)
        return shown_in_lists(everything, self.users, self.given, ControllerPart().list_length)

    def complete(self, users: FloatArray, items: FloatArray) -> FloatArray:
        """User embeddings (U, d) of a table (I, d): trained where data was collected, else fitted on the device."""
        alone = np.flatnonzero(~self.has_data)
        if not len(alone):
            return users
        whole = users.copy()
        whole[alone] = fit_user_embeddings(items, self.splits.train.select(alone))
        return whole

    def select_devices(self, devices: NDArray[np.int64]) -> Material:
        """The same tables, and these devices (N,) alone; ``given`` and ``popularity`` are theirs alone, too."""
        return replace(
            self,
            given=self.given.select(devices),
            has_data=np.ones(len(devices), np.bool_),
            splits=self.splits.select(devices),
            pretrained=replace(self.pretrained, users=self.users[devices]),
            starts=None,
        )

    def starting_with(self, table: FloatArray) -> Material:
        """Return the same material with another item table (I, d) for all, and the users' embeddings as they are."""
        pretrained = replace(self.pretrained, users=self.users, items=table)
        return replace(self, pretrained=pretrained, has_data=np.ones(len(self.users), np.bool_), starts=None)

    def retrained(self, config: PretrainingConfig, what: str) -> PretrainedEmbeddings:
        """Tables of another shape, trained in the same way on the same interactions; kept by content."""
        key = pretraining_key(self.given, self.num_items, config, self.seed, self.device)
        kept = read_tables(Path(self.cache_dir), key) if self.cache_dir else None
        if kept is None:
            kept = pretrain(self.given, self.num_items, config, seed=self.seed, device=self.device)
            if self.cache_dir:
                write_tables(Path(self.cache_dir), key, kept)
        self.on_event(Event("rivals", 0, 1, what))
        return kept


@dataclass(frozen=True)
class Option:
    """The tables that devices hold under one budget, decoded. seconds: spent for this budget alone, not shared with
    others; trials: settings that were looked at on validation to arrive at it. cutoffs, stored: (U,); users: (U, d').
    """

    request: Request
    ranked: RankedBlocks
    users: FloatArray
    stored: NDArray[np.int64]
    validation_cutoffs: NDArray[np.int64]
    test_cutoffs: NDArray[np.int64]
    seconds: float
    label: str = ""
    trials: int = 1


@dataclass(frozen=True)
class ListOption:
    """As :class:`Option`, where all that counts are the lists that come of it: one table a user group, or no table at
    all on the device. lists: (U, TOP_N) items of each split, best first, -1 where a device has fewer.
    """

    request: Request
    lists: Mapping[Split, Lists]
    stored: IntArray
    seconds: float
    label: str = ""
    trials: int = 1


class Rival(Protocol):
    """A way of fitting a budget; derive from this one, and define what differs."""

    group_aware: ClassVar[bool] = False
    """Whether it may serve each user group differently."""
    ceiling: ClassVar[bool] = False
    """Whether it is a line to look up to, on a server that has the data, and not a way of serving on devices."""

    @property
    def name(self) -> str:
        """Return its ``method`` in compare.json."""

    def options(self, material: Material, requests: Sequence[Request]) -> Iterator[Option | ListOption]:
        """Yield what devices hold, for each request that can be served at all; in any order."""

    def why_nothing(self, material: Material) -> str:
        """The note of a request without any option."""
        return NOTHING_FITS


def whole_table(
    request: Request, stored: StoredTable, users: FloatArray, seconds: float, label: str = "", num_items: int = 0
) -> Option:
    """An option in which every device holds the same table."""
    items, rows = stored.decoded()
    num_items = max(num_items, int(items.max(initial=-1)) + 1, 1)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), rows.shape[1], 1)
    count = len(items)
    ranked = RankedBlocks(
        layout,
        "fp32",
        items.astype(np.int64),
        items,
        np.ascontiguousarray(rows, np.float32),
        np.arange(count, dtype=np.int32)[:, None],
    )
    everything = np.full(len(users), count, np.int64)
    sizes = np.full(len(users), stored_bytes(stored), np.int64)
    return Option(request, ranked, users, sizes, everything, everything, seconds, label)


def decoded_blocks(layout: BlockLayout, precision: Precision, table: FloatArray) -> FloatArray:
    """The table (I, d) as it comes back from storage as blocks of this layout and precision."""
    pieces = table.reshape(-1, layout.slice_dim)
    codes, scales = quantize(pieces, precision)
    return dequantize(codes, scales, precision, layout.slice_dim).reshape(table.shape)


def ranked_blocks(
    layout: BlockLayout, precision: Precision, blocks: NDArray[np.int64], decoded: FloatArray
) -> RankedBlocks:
    """Ranked blocks (K,) over an already decoded table (I, d)."""
    order = RowOrder.from_blocks(layout, blocks)
    table = np.zeros((len(order.items), layout.num_slices, layout.slice_dim), np.float32)
    pieces = decoded.reshape(layout.num_items, layout.num_slices, layout.slice_dim)
    table[order.rows, order.slices] = pieces[order.items[order.rows], order.slices]
    rows = table.reshape(len(order.items), layout.embedding_dim)
    return RankedBlocks(layout, precision, blocks, order.items, rows, order.position)


def block_option(request: Request, ranked: RankedBlocks, material: Material, seconds: float) -> Option:
    """An option of ranked blocks, of which each device keeps the prefix that fits it."""
    budgets = np.full(material.splits.num_users, request.budget_bytes, np.int64)
    validation, stored_before, _ = ranked.serving_cutoffs(budgets, material.splits.train)
    test, stored, _ = ranked.serving_cutoffs(budgets, material.seen)
    return Option(request, ranked, material.users, np.maximum(stored, stored_before), validation, test, seconds)


def distinct(values: Iterable[int]) -> list[int]:
    """Sorted, without zeros and repeats."""
    return sorted({value for value in values if value > 0})


def compete(rival: Rival, material: Material, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Serve every request, choose among options on validation, and measure the chosen one on the test, once.

    Returns a row per request: precision, share, budget_bytes, stored_bytes_max, validation, test, seconds, note;
    trials, the settings that were looked at on validation; and the test figures in the replicates of a bootstrap.
    """
    best: dict[Request, tuple[dict[str, float], Option | ListOption]] = {}
    seconds = dict.fromkeys(requests, 0.0)
    trials = dict.fromkeys(requests, 0)
    rows: dict[Request, dict[str, Any]] = {}
    for done, option in enumerate(rival.options(material, requests), start=1):
        request = option.request
        assert int(option.stored.max(initial=0)) <= request.budget_bytes, f"{rival.name}: above the budget"
        seconds[request] += option.seconds
        trials[request] += option.trials
        validation = quality(option, material, "validation")
        if request not in best or validation["recall@20"] > best[request][0]["recall@20"]:
            best[request] = (validation, option)
        material.on_event(Event(rival.name, min(done, len(requests)), len(requests), _text(option, validation)))
    for request in requests:
        start = time.perf_counter()
        if request in best:
            validation, option = best[request]
            on_test = device_quality(option, material, "test")
            rows[request] = _row(request, int(option.stored.max(initial=0)), seconds[request], option.label) | {
                "trials": trials[request],
                "validation": validation,
                "test": on_test.mean(),
                "replicates": replicates(on_test),
                "evaluation_seconds": time.perf_counter() - start,
            }
        else:
            rows[request] = empty_row(request, rival.why_nothing(material))
    material.on_event(Event(rival.name, len(requests), len(requests), ""))
    return [rows[request] for request in requests]


def _text(option: Option | ListOption, validation: dict[str, float]) -> str:
    recall = validation["recall@20"]
    return f"{option.request.precision}, {option.request.share:.3%}: validation recall@20 {recall:.4f} {option.label}"


def empty_row(request: Request, note: str = NOTHING_FITS) -> dict[str, Any]:
    """The row of a budget that can serve nothing."""
    nothing = {"recall@20": 0.0, "ndcg@20": 0.0}
    measured = {"validation": nothing, "test": nothing, "evaluation_seconds": 0.0}
    return _row(request, 0, 0.0, note) | {"trials": 0, **measured}


def _row(request: Request, stored: int, seconds: float, note: str) -> dict[str, Any]:
    return {
        "precision": request.precision,
        "share": request.share,
        "budget_bytes": request.budget_bytes,
        "stored_bytes_max": stored,
        "seconds": seconds,
        "note": note,
    }


@dataclass(frozen=True)
class DeviceQuality:
    """Recall@20 and NDCG@20 (N,) of these devices (N,); counted: those that have an item to find."""

    devices: NDArray[np.int64]
    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    counted: NDArray[np.bool_]

    def sums(self) -> MetricSums:
        """Return the sums over the devices that count, (1,) each."""
        return MetricSums.from_devices(np.zeros(len(self.devices), np.int64), 1, self.recall, self.ndcg, self.counted)

    def drawn(self, count: int) -> Replicates:
        """Sums of the devices that count under the weights of a bootstrap's replicates, (1, count)."""
        return Replicates.from_devices(self.devices, self.recall[:, None], self.ndcg[:, None], self.counted, count)

    def mean(self) -> dict[str, float]:
        return means(self.sums())


def device_quality(
    option: Option | ListOption, material: SplitDevices, split: Split, users: NDArray[np.int64] | None = None
) -> DeviceQuality:
    """Return the quality for each device (or each of the given ones) with at least one item to find."""
    wanted = material.wanted(split)
    chosen = np.flatnonzero(wanted.counts() > 0) if users is None else users
    if isinstance(option, ListOption):
        want = wanted.select(chosen)
        metrics = list_metrics(option.lists[split][chosen], want, material.num_items)
        return DeviceQuality(chosen, *metrics, want.counts() > 0)
    cutoffs = option.test_cutoffs if split == "test" else option.validation_cutoffs
    return chosen_quality(option.ranked, cutoffs, option.users, material.hidden(split), wanted, chosen)


def quality(
    option: Option | ListOption, material: Material, split: Split, users: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 over devices (or the given ones) with at least one item to find."""
    return device_quality(option, material, split, users).mean()


def top_lists(option: Option, material: Material, split: Split) -> Lists:
    """The TOP_N best items of every device (U, TOP_N), best first, -1 where it has fewer: what ``quality`` counts."""
    cutoffs = option.test_cutoffs if split == "test" else option.validation_cutoffs
    rows = top_rows(option.ranked, cutoffs, stored_user(option.users), material.hidden(split), TOP_N)
    if not len(option.ranked.items):
        return rows
    return np.where(rows >= 0, option.ranked.items[rows], np.int32(-1)).astype(np.int32)


def best_lists(scores_of: Scores, exclude: UserItems, num_items: int) -> Lists:
    """The TOP_N best items (U, TOP_N) without ``exclude``; -1 where there are fewer. Ties go to the smaller item."""
    lists = np.full((exclude.num_users, TOP_N), -1, np.int32)
    for start in range(0, exclude.num_users, CHUNK_USERS):
        users = np.arange(start, min(start + CHUNK_USERS, exclude.num_users))
        scores = scores_of(users)
        left_out = exclude.select(users)
        scores[left_out.users(), left_out.items] = -np.inf
        last = max(num_items - TOP_N, 0)
        least = np.partition(scores, last, axis=1)[:, last]  # the score of the last one in the list
        for place, user in enumerate(users):
            row = scores[place]
            among = np.flatnonzero((row >= least[place]) & (row > -np.inf))
            best = among[np.argsort(-row[among], kind="stable")][:TOP_N]
            lists[user, : len(best)] = best
    return lists


def lists_of(option: Option | ListOption, material: Material, split: Split) -> Lists:
    """The lists that an option serves on a split, (U, TOP_N)."""
    return option.lists[split] if isinstance(option, ListOption) else top_lists(option, material, split)


def list_metrics(lists: Lists, wanted: UserItems, num_items: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall@20 and NDCG@20 (N,) of lists of items (N, TOP_N); 0 where nothing is wanted."""
    return hit_quality(find_hits(lists, wanted, wanted.items.astype(np.int32), num_items), wanted)


def list_sums(lists: Lists, wanted: UserItems, num_items: int) -> MetricSums:
    """Metric sums, (1,) each, over the devices that have an item to find."""
    metrics = list_metrics(lists, wanted, num_items)
    return MetricSums.from_devices(np.zeros(len(lists), np.int64), 1, *metrics, wanted.counts() > 0)


def means(sums: MetricSums) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 of sums (1,)."""
    recall, ndcg = sums.mean()
    return {f"recall@{TOP_N}": float(recall[0]), f"ndcg@{TOP_N}": float(ndcg[0])}


def chosen_quality(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: FloatArray,
    exclude: UserItems,
    wanted: UserItems,
    chosen: NDArray[np.int64],
) -> DeviceQuality:
    """Return the quality for the chosen devices (M,); all other arguments are of all devices."""

    def part(some: NDArray[np.int64]) -> DeviceQuality:
        want = wanted.select(some)
        metrics = evaluate(ranked, cutoffs[some], users[some], exclude.select(some), want, TOP_N)
        return DeviceQuality(some, *metrics, want.counts() > 0)

    with ThreadPoolExecutor(max_workers=2) as pool:  # the compiled loops release the interpreter lock
        parts = list(pool.map(part, np.array_split(chosen, 8) if len(chosen) >= 256 else [chosen]))
    return DeviceQuality(
        *(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(DeviceQuality))
    )


def sample_of_groups(members: Mapping[int, IntArray], seed: int, what: str, size: int) -> list[int]:
    """Random user groups that hold at least so many devices together, if there are as many."""
    reached, chosen = 0, []
    for group in rng_for(seed, what).permutation(sorted(members)).tolist():
        if reached >= size:
            break
        chosen.append(group)
        reached += len(members[group])
    return chosen


# ---- Bootstrap replicates of a rival's figures on the test, under the weights that PEEL's have


Plain = dict[str, list[float | None]]


def replicates(quality: DeviceQuality) -> Plain:
    """Mean recall and NDCG of the devices that count, as :func:`in_json` has them."""
    return in_json(quality.drawn(REPLICATES))


def in_json(sums: Replicates, place: int = 0) -> Plain:
    """Means (B,) of one figure by metric; None in a replicate that drew no device."""
    return {
        f"{metric}@{TOP_N}": [None if np.isnan(mean) else mean for mean in means[place].tolist()]
        for metric, means in zip(("recall", "ndcg"), sums.means(), strict=True)
    }
