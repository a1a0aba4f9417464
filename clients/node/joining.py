"""Devices join and find their user group; in a timeline they have held something before."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort, DeviceState
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import check_budget
from fl_peel.data.interactions import IntArray
from fl_peel.errors import BudgetError, EngineError, MessageError
from fl_peel.pretraining.clusters import choose_group, fit_user_embeddings
from fl_peel.pretraining.spectral import embeddings, turned
from fl_peel.privacy.sources import randomized_groups, source_of
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision
from fl_peel.steps.base import nearest, unit_vectors
from fl_peel.training.update import TrainingMemory
from fl_peel.wire import OWN_BUDGET, JoinReply, JoinRequest

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class PreviousHoldings:
    """The previous holdings of the hosted devices, (N,) by place: user group, -1 where there is none; cutoffs: (N, X)
    how far they read under each budget (X,); ranks: (G, B) of every block in the list of each group, NEVER where it was
    not.
    """

    groups: IntArray
    cutoffs: IntArray
    ranks: NDArray[np.int32]
    budgets: IntArray

    @staticmethod
    def read(cohort: Cohort, budgets: IntArray | None = None) -> PreviousHoldings:
        """Read what was saved, for all devices that are or were hosted. budgets: (X,), used where nothing was saved
        yet.

        Raises:
            EngineError: what was saved is damaged.
        """
        count = len(cohort.devices)
        if not cohort.held_file.is_file():
            some = np.zeros(0, np.int64) if budgets is None else budgets
            nothing = np.zeros((count, len(some)), np.int64), np.zeros((0, 0), np.int32)
            return PreviousHoldings(np.full(count, -1, np.int64), *nothing, some)
        try:
            with np.load(cohort.held_file) as kept:
                known, some = len(kept["groups"]), kept["budgets"]
                count = max(count, known)
                groups, cutoffs = np.full(count, -1, np.int64), np.zeros((count, len(some)), np.int64)
                groups[:known], cutoffs[:known] = kept["groups"], kept["cutoffs"]
                return PreviousHoldings(groups, cutoffs, kept["ranks"], some)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise EngineError(
                f"{cohort.held_file}: the state of this node's devices is damaged; start the run again"
            ) from error

    def save(self, cohort: Cohort) -> None:
        cohort.held_file.parent.mkdir(parents=True, exist_ok=True)
        part = cohort.held_file.with_suffix(".part.npz")
        np.savez(part, **vars(self))
        part.replace(cohort.held_file)  # a node that dies meanwhile leaves what was

    @property
    def own(self) -> int:
        """Return the index of the devices' own budget, the one that moves.

        Raises:
            MessageError: devices remember nothing under it, as they do between the periods of a timeline alone.
        """
        places = np.flatnonzero(self.budgets == OWN_BUDGET)
        if not len(places):
            raise MessageError("these devices remember nothing that they held under their own budgets")
        return int(places[0])

    def held_blocks(self, places: IntArray, budget: int, blocks: IntArray) -> NDArray[np.bool_]:
        """Return which of these blocks (K,) the devices at ``places`` (N,) held, (N, K)."""
        held = np.zeros((len(places), len(blocks)), np.bool_)
        known = np.flatnonzero(blocks < self.ranks.shape[1])
        some = np.flatnonzero(self.groups[places] >= 0)
        ranks = self.ranks[self.groups[places[some]]][:, blocks[known]] if len(some) else np.zeros((0, len(known)))
        held[np.ix_(some, known)] = ranks < self.cutoffs[places[some], budget][:, None]
        return held

    def current_groups(self, former: IntArray) -> IntArray:
        """Return the present numbers (N,) of the devices' user groups, -1 for a group that no longer exists. former:
        (G,) previous numbers of the present groups, -1 for new ones.
        """
        current = np.full(max(int(self.groups.max(initial=-1)), int(former.max(initial=-1))) + 2, -1, np.int64)
        known = np.flatnonzero(former >= 0)
        current[former[known]] = known
        return np.where(self.groups >= 0, current[self.groups], -1)


def answered_groups(
    cohort: Cohort, places: IntArray, groups: NDArray[np.int32], centroids: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Return the user groups (N,) that devices at ``places`` (N,) answer with when asked."""
    epsilon = cohort.scenario.privacy.group_epsilon
    if epsilon is None:
        return groups
    return randomized_groups(groups, len(centroids), epsilon, source_of(cohort.scenario), cohort.devices[places])


def check_poorest(
    layout: BlockLayout,
    precision: Precision,
    ceilings: NDArray[np.integer] | NDArray[np.floating],
    classes: NDArray[np.int16],
    names: Sequence[str],
) -> None:
    """Refuse devices that can never hold anything. ceilings: bytes (N,) that the budgets of devices of these classes
    (N,) never exceed.

    Raises:
        BudgetError: a device's budget can never hold one block.
    """
    if len(ceilings):
        poorest = int(ceilings.argmin())
        check_budget(layout, precision, int(ceilings[poorest]), f"device profile {names[classes[poorest]]}")


def check_working(
    layout: BlockLayout,
    scenario: Scenario,
    working: NDArray[np.integer] | NDArray[np.floating],
    classes: NDArray[np.int16],
    names: Sequence[str],
) -> None:
    """Refuse devices that can never train anything. working: bytes (N,) that devices of these classes (N,) may use
    while they train.

    Raises:
        BudgetError: a device's working memory holds neither a block that is read nor what one block's training takes.
    """
    if not len(working) or not scenario.refinement.rounds:
        return
    how = replace(scenario.refinement.local.config(1.0), clip_blocks=scenario.privacy.clipping.kind == "per-block")
    takes = TrainingMemory(layout.embedding_dim, layout.num_slices, how, scenario.controller.signal_length)
    one_block, one_interaction = layout.group_sizes.min(keepdims=True), np.ones(1, np.int64)
    reading = int(layout.block_bytes(scenario.blocks.precision).max())
    least = max(int(takes.most_bytes(one_block, one_interaction)[0]), reading)
    poorest = int(working.argmin())
    if working[poorest] < least:
        raise BudgetError(
            f"device profile {names[classes[poorest]]}: {int(working[poorest])} B of working memory are less than "
            f"training on one block takes ({least} B); raise memory.working_factor, or lower the share of its total "
            "that is budget"
        )


def join(cohort: Cohort, request: JoinRequest) -> JoinReply:
    """Give devices their user embedding and group: those that the server sends, or those found locally from the item
    table.

    Raises:
        BudgetError: a device's budget can never hold one block, or its working memory train it.
    """
    scenario = cohort.scenario
    layout = BlockLayout(request.item_group, scenario.pretraining.embedding_dim, scenario.blocks.num_slices)
    places = joining(cohort, request)
    users = np.zeros((len(places), layout.embedding_dim), np.float32)
    groups = np.full(len(places), -1, np.int32)
    known = cohort.places(request.devices) - request.first
    users[known], groups[known] = request.users, request.groups
    alone = np.flatnonzero(groups < 0)
    if len(request.maps) and not len(request.item_table):
        users, groups = _mapped(cohort, request)
    elif len(alone):
        some = places[alone]
        users[alone] = fit_user_embeddings(request.item_table, cohort.splits.train.select(some))
        groups[alone] = answered_groups(cohort, some, choose_group(users[alone], request.centroids), request.centroids)
        if len(request.maps):
            users[alone] = turned(users[alone], groups[alone], request.maps)
    if request.first == 0:
        _check_devices(cohort, layout)
        cohort.save_layout(layout)
    DeviceState.begin(cohort.folder, len(cohort.devices), request.first, users, groups)
    by_group = stated_ceilings(cohort, places, groups, len(request.centroids))
    return JoinReply("\n".join(cohort.fleet.names), cohort.devices[places], groups, by_group)


def _check_devices(cohort: Cohort, layout: BlockLayout) -> None:
    scenario, ceilings = cohort.scenario, cohort.ceilings
    factor = scenario.budget_factor  # what a fall leaves may be too little for some
    usual = ceilings if factor == 1 else (ceilings + 1) / factor
    check_poorest(layout, scenario.blocks.precision, usual, cohort.classes, cohort.fleet.names)
    working = cohort.budgets.working() if factor == 1 else (cohort.budgets.working() + 1) / factor
    check_working(layout, scenario, working, cohort.classes, cohort.fleet.names)


def joining(cohort: Cohort, request: JoinRequest) -> IntArray:
    """Places of the hosted devices that join now."""
    num_devices = len(cohort.devices)
    stop = num_devices if request.count < 0 else min(request.first + request.count, num_devices)
    return np.arange(request.first, stop)


def _mapped(cohort: Cohort, request: JoinRequest) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return embeddings (N, d) and groups (N,) of devices with a vector of stage 1; only the group leaves a device."""
    vectors = np.load(cohort.vectors_file, mmap_mode="r")
    users = np.zeros((len(vectors), request.maps.shape[2]), np.float32)
    groups = nearest(vectors, request.centroids)
    timeline = cohort.scenario.data.timeline
    if timeline is not None and len(request.former):
        last = PreviousHoldings.read(cohort).current_groups(request.former)[: len(groups)]
        groups = staying(np.asarray(vectors), request.centroids, groups, last, timeline.regroup_margin)
    groups = answered_groups(cohort, np.arange(len(groups)), groups, request.centroids)
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        users[members] = embeddings(vectors[members], request.maps[group]) + request.pull.sum(axis=0)
    return users, groups


def staying(
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    groups: NDArray[np.int32],
    last: IntArray,
    nearer: float,
) -> NDArray[np.int32]:
    """User groups (N,) of devices that were in ``last`` (N,), -1 for none, and are nearest to ``groups`` (N,): they
    change if that brings them nearer by a share of more than ``nearer`` of the squared distance, which is what another
    list to download must be worth. vectors: (N, K), of which the first c columns, at length 1, count; centroids:
    (G, c).
    """
    elsewhere = np.flatnonzero((last >= 0) & (last != groups))
    points = unit_vectors(vectors[elsewhere, : centroids.shape[1]]).astype(np.float64)
    there, here = (
        ((points - centroids[which[elsewhere]].astype(np.float64)) ** 2).sum(axis=1) for which in (groups, last)
    )
    stays = elsewhere[there >= (1 - nearer) * here]
    chosen = groups.copy()
    chosen[stays] = last[stays]
    return chosen


def stated_ceilings(cohort: Cohort, places: IntArray, groups: NDArray[np.int32], num_groups: int) -> NDArray[np.int64]:
    """The largest budget of each user group (G,) as devices at these places (N,), of these groups (N,), state it: their
    own, which names a lone device's class, or where requests are hidden what any device of the fleet may have.
    """
    if cohort.scenario.privacy.requests == "group-prefix":
        return np.full(num_groups, cohort.largest_budget, np.int64)
    by_group = np.zeros(num_groups, np.int64)
    np.maximum.at(by_group, groups, cohort.ceilings[places])
    return by_group
