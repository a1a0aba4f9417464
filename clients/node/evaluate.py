"""Devices rank all items: under every budget, and with two tables beside one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.node.poisoning import malicious, pretended, target_items
from clients.node.round_context import extra_bytes
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.exchange.counters import OwnCounts
from fl_peel.ranking.bootstrap import NUM_BINS, Histogram, PairedSums, Replicates
from fl_peel.ranking.top import ListSums, MetricSums, Ranker, Tiles
from fl_peel.scenario.settings import PRECISIONS, Precision, torch_device
from fl_peel.wire import (
    EVERYBODY,
    OWN_BUDGET,
    UNLIMITED,
    Arrays,
    CompareReply,
    CompareRequest,
    DeviceFigures,
    EvaluateReply,
    EvaluateRequest,
    KeepReply,
    KeepRequest,
)


@dataclass(frozen=True)
class Holdings:
    """The holdings that devices serve from, (N,) each: blocks of the ranked list considered, bytes stored, budgets they
    are under (UNLIMITED where there is none), and whether the list ended before the budget did.
    """

    cutoffs: IntArray
    stored: IntArray
    budgets: IntArray
    short: NDArray[np.bool_]

    @staticmethod
    def under(
        ranked: RankedBlocks, budget: int, factor: float, room: float, own: IntArray, skipped: UserItems
    ) -> Holdings:
        """Blocks chosen for ``budget`` bytes (UNLIMITED: all; OWN_BUDGET: ``factor`` times the device's, ``own`` (N,)).

        room: with room >= 0, a device has them only if they fit into ``room`` times its own budget, else nothing;
        skipped: blocks that devices pass over, :meth:`fl_peel.blocks.ranked_blocks.RankedBlocks.unneeded`.
        """
        num_devices = len(own)
        if budget == UNLIMITED:
            cutoffs = np.full(num_devices, len(ranked.blocks), np.int64)
            stored, unlimited = ranked.stored_bytes(cutoffs), np.full(num_devices, UNLIMITED, np.int64)
            return Holdings(cutoffs, stored, unlimited, np.zeros(num_devices, np.bool_))
        budgets = scaled(own, factor) if budget == OWN_BUDGET else np.full(num_devices, budget, np.int64)
        cutoffs, stored, _ = ranked.cutoffs_without(budgets, skipped)
        short = (cutoffs == len(ranked.blocks)) & (len(ranked.blocks) < ranked.layout.num_blocks)
        if room >= 0:
            budgets = scaled(own, room)
            fits = stored <= budgets
            short &= fits  # with a longer list it would hold as much or more
            cutoffs, stored = np.where(fits, cutoffs, 0), np.where(fits, stored, 0)
        return Holdings(cutoffs, stored, budgets, short)

    @property
    def violations(self) -> IntArray:
        """Devices (N,) that store more than they may: 1, else 0."""
        return np.asarray((self.budgets != UNLIMITED) & (self.stored > self.budgets), np.int64)


def scaled(budgets: IntArray, factor: float) -> IntArray:
    """Budgets times a factor, in whole bytes."""
    return budgets if factor == 1 else np.floor(budgets * factor).astype(np.int64)


def evaluate_budgets(cohort: Cohort, request: EvaluateRequest) -> EvaluateReply:
    """Every hosted device ranks all items under each budget, with what it would have stored: blocks and their bytes."""
    scenario, state, layout = cohort.scenario, cohort.state("r"), cohort.layout()
    assert request.precision in PRECISIONS
    precision: Precision = request.precision
    groups = np.asarray(state.groups)
    num_groups, num_classes, num_budgets = (
        int(groups.max(initial=-1)) + 1,
        len(cohort.fleet.names),
        len(request.budgets),
    )
    wanted, exclude = _asked(cohort, request, request.split)
    parts = [_BudgetGroup(slice(0, num_budgets - request.on_validation), wanted, exclude)]
    if request.on_validation:
        parts.append(_BudgetGroup(slice(parts[0].places.stop, num_budgets), *_asked(cohort, request, "validation")))
    num_groups = max([num_groups, *(group + 1 for group in request.groups)])
    cells = num_classes * num_groups
    sums = MetricSums.zeros(num_budgets, cells)
    stored_max = np.zeros(num_budgets, np.int64)
    owned = OwnCounts.zeros(num_budgets, num_classes)
    spread = Histogram.zeros(num_budgets, num_classes, NUM_BINS)
    lengths = scenario.evaluation.list_lengths
    lists = ListSums.zeros(num_budgets, len(lengths), scenario.shown_bytes(layout.num_items))
    short = 0
    figures = _Figures.empty(len(groups), num_budgets)
    own_budgets = cohort.budgets.at(request.server_round)
    for group, payload in request.groups.items():
        members = np.arange(len(groups)) if group == EVERYBODY else np.flatnonzero(groups == group)
        if not len(members):
            continue
        figures.reached[members] = True
        ranked = RankedBlocks.unpack(layout, precision, payload)
        users = np.asarray(state.users[members])
        cell = cohort.classes[members].astype(np.int64) * num_groups + groups[members]
        own, classes = own_budgets[members], cohort.classes[members]
        where = scenario.engine.device
        tiles = Tiles.from_ranked(ranked) if len(parts) > 1 and torch_device(where) is None else None
        for part in parts:
            mine, hidden = part.wanted.select(members), part.exclude.select(members)
            skipped, counted = ranked.unneeded(hidden), mine.counts() > 0
            asked = zip(
                request.budgets[part.places].tolist(),
                request.factors[part.places].tolist(),
                request.rooms[part.places].tolist(),
                strict=True,
            )
            held = [Holdings.under(ranked, *one, own, skipped) for one in asked]
            cutoffs = np.array([one.cutoffs for one in held], np.int64).reshape(len(held), len(members)).T
            tops = Ranker(ranked, max(lengths), where, tiles).lists(cutoffs, users, hidden, mine)
            recall, ndcg = (tops.metric(name, scenario.evaluation.top_n) for name in ("recall", "ndcg"))
            lists.add(tops, lengths, part.places)
            if part is parts[0]:
                figures.recall[members, part.places], figures.ndcg[members, part.places] = recall, ndcg
                _write_artifacts(cohort, request, ranked, members, hidden)
            for place, one in enumerate(held):
                i, metrics = part.places.start + place, (recall[:, place], ndcg[:, place])
                per_device = OwnCounts(np.ones(len(members), np.int64), one.budgets, one.stored, one.violations)
                short += int(one.short.sum())
                owned[i].add(per_device.by_cell(classes, num_classes))
                stored_max[i] = max(stored_max[i], int(one.stored.max()))
                sums[i].add(MetricSums.from_devices(cell, cells, *metrics, counted))
                spread[i].add(Histogram.from_devices(classes, num_classes, metrics[0], counted))
    by_class = sums.reshaped(num_budgets, num_classes, num_groups)
    replicates = figures.replicates(cohort, wanted, request.replicates)
    single = figures.single(cohort, wanted, groups, request.per_device)
    return EvaluateReply(by_class, stored_max, owned, spread, replicates, single, short, lists)


@dataclass(frozen=True)
class _BudgetGroup:
    """The budgets that are about the same items: what is wanted under them, and what is hidden."""

    places: slice
    wanted: UserItems
    exclude: UserItems


def _asked(cohort: Cohort, request: EvaluateRequest, split: str) -> tuple[UserItems, UserItems]:
    """Return the items of a split that the counted devices want, and those that are hidden."""
    wanted, exclude = evaluation_items(cohort, split)
    if request.first > 0 or request.last >= 0:
        last = request.last if request.last >= 0 else cohort.population
        counted = (cohort.devices >= request.first) & (cohort.devices < last)
        wanted = wanted.keep(np.repeat(counted, wanted.counts()))
    return wanted, exclude


@dataclass(frozen=True)
class _Figures:
    """The figures of a node's devices, (N, X); reached: (N,) those whose user group was asked."""

    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    reached: NDArray[np.bool_]

    @staticmethod
    def empty(num_devices: int, num_budgets: int) -> _Figures:
        shape = (num_devices, num_budgets)
        return _Figures(np.zeros(shape), np.zeros(shape), np.zeros(num_devices, np.bool_))

    def replicates(self, cohort: Cohort, wanted: UserItems, count: int) -> Replicates:
        if not count:
            return Replicates.zeros(self.recall.shape[1], 0)
        counted = self.reached & (wanted.counts() > 0)
        return Replicates.from_devices(cohort.devices, self.recall, self.ndcg, counted, count)

    def single(self, cohort: Cohort, wanted: UserItems, groups: NDArray[np.int32], asked: bool) -> DeviceFigures:
        """Return the figures of each device that was reached if ``asked``, else those of no device."""
        some = np.flatnonzero(self.reached) if asked else np.zeros(0, np.int64)
        return DeviceFigures(
            cohort.devices[some],
            cohort.classes[some].astype(np.int64),
            groups[some].astype(np.int64),
            wanted.counts()[some],
            self.recall[some],
            self.ndcg[some],
        )


def _write_artifacts(
    cohort: Cohort,
    request: EvaluateRequest,
    ranked: RankedBlocks,
    members: NDArray[np.int64],
    hidden: UserItems,
) -> None:
    some = np.flatnonzero(np.isin(cohort.devices[members], request.artifacts))
    if not len(some):
        return
    folder, state = cohort.folder.parent.parent / "artifacts", cohort.state("r")
    budgets = request.budgets if request.stored < 0 else request.budgets[: request.stored]
    for i in some:
        folder.mkdir(parents=True, exist_ok=True)
        user, group = np.asarray(state.users[members[i]]), int(state.groups[members[i]])
        elastic = ElasticEmbedding(ranked, user, hidden.row(int(i)), group)
        for budget in budgets.tolist():
            if budget >= overhead_bytes(ranked.layout.slice_dim):
                name = f"device-{cohort.devices[members[i]]}-{request.label}-{budget}.peel"
                (folder / name).write_bytes(elastic.at(budget).to_bytes())


# ---- Items that devices should be recommended, and items that they should not


def evaluation_items(cohort: Cohort, split: str) -> tuple[UserItems, UserItems]:
    """Return the items that devices should be recommended, and those that they should not, of a split: test,
    validation, or targets of promotion.

    Devices that are malicious under any share of the scenario want nothing, and so do not count.
    """
    scenario, splits = cohort.scenario, cohort.splits
    exclude = (splits.train if split == "validation" else cohort.seen).below(splits.num_items)
    share = scenario.poisoning.largest_share
    if split == "targets":
        targets = target_items(scenario, splits.num_items)
        nothing = UserItems(np.zeros(splits.num_users + 1, np.int64), np.zeros(0, np.int32))
        wanted = pretended(nothing, np.ones(splits.num_users, np.bool_), targets)
        known = np.isin(wanted.users() * (1 << 32) + wanted.items, exclude.users() * (1 << 32) + exclude.items)
        wanted = wanted.keep(~known)
    else:
        wanted = splits.test if split == "test" else splits.validation
    if share > 0:
        wanted = wanted.keep(~np.repeat(malicious(scenario, cohort.devices, share), wanted.counts()))
    return wanted, exclude


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
    held = Holdings.under(ranked, OWN_BUDGET, 1.0, -1.0, budgets[members], ranked.unneeded(seen))
    wanted = cohort.splits.validation.select(members)
    ranker = Ranker(ranked, TOP_N, cohort.scenario.engine.device)
    recall, _ = ranker.evaluate(held.cutoffs[:, None], users, seen, wanted)
    return recall[:, 0], int(ranked.read_bytes(np.zeros_like(held.cutoffs), held.cutoffs).sum())


def keep(cohort: Cohort, request: KeepRequest) -> KeepReply:
    """Devices of groups ``accepted`` keep their user embedding; those of ``restored`` go back to the last kept."""
    state = cohort.state("r+")
    groups = np.asarray(state.groups)
    taken, back = np.isin(groups, request.accepted), np.isin(groups, request.restored)
    state.kept_users[taken] = state.users[taken]
    state.users[back] = state.kept_users[back]
    return KeepReply(int(taken.sum()), int(back.sum()))
