"""Tables and user groups as a run starts with them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, ranked_as_numbered
from fl_peel.data.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.pretraining.clusters import Interests, Neighbourhood, UserGroups, item_covariance, item_groups, user_groups
from fl_peel.pretraining.spectral import GroupStart
from fl_peel.pretraining.stage1 import SpectralStart
from fl_peel.ranking.top import top_rows
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.group import signals_of_group
from fl_peel.training.workers import fixed_threads
from fl_peel.weighting.block_statistics import BlockStatistics
from strategies.groups.state import (
    FloatArray,
    ServerOptimizer,
    UserGroupState,
    block_energy,
    empty_tables,
    known_bytes,
    put_once,
    shelf_for,
)

if TYPE_CHECKING:
    from fl_peel.pretraining.central_training import PretrainedEmbeddings


def make_layout(
    scenario: Scenario, num_items: int, popularity: NDArray[np.int64], items: FloatArray | None = None
) -> BlockLayout:
    """Item groups x slices. popularity: (I,) interactions that the server knows of; items: (I, d) embeddings, by which
    interest-popularity groups alone are made.

    Raises:
        ScenarioError: more item groups than items.
    """
    blocks = scenario.blocks
    item_group = item_groups(
        blocks.item_groups,
        num_items,
        count=blocks.count,
        popularity=popularity,
        interests=None if items is None else Interests(items, blocks.num_tiers, scenario.seed),
    )
    return BlockLayout(item_group, scenario.pretraining.embedding_dim, blocks.num_slices)


def make_groups(scenario: Scenario, pretrained: PretrainedEmbeddings, has_data: NDArray[np.bool_]) -> UserGroups:
    """K-means over the users whose data was collected."""
    part = scenario.user_groups
    return user_groups(pretrained.users, has_data, count=part.count, min_size=part.min_size, seed=scenario.seed)


def by_block(layout: BlockLayout, per_item: NDArray[np.floating | np.integer]) -> FloatArray:
    """Mean over the items of each block, (I,) -> (B,)."""
    sums = np.bincount(layout.item_group, weights=per_item, minlength=layout.num_item_groups)
    return np.repeat(sums / layout.group_sizes, layout.num_slices).astype(np.float32)


def starting_tables(
    scenario: Scenario, pretrained: PretrainedEmbeddings, groups: UserGroups, collected: UserItems
) -> Callable[[int], FloatArray]:
    """Return the function that gives each user group, by number, the item table (I, d) it starts with: a copy of the
    global one or, with ``user_groups.neighbour_weight``, its own correction of it
    (:mod:`fl_peel.pretraining.clusters`). To be called under ``fixed_threads(1)``, so that it is the same to the last
    bit.
    """
    weight, ridge = scenario.user_groups.neighbour_weight, scenario.user_groups.neighbour_ridge
    if not weight:
        return lambda group: pretrained.items.copy()
    neighbourhood = Neighbourhood(collected, len(pretrained.items))
    with fixed_threads(1):
        covariance = item_covariance(pretrained.items)

    def table(group: int) -> FloatArray:
        members = np.flatnonzero(groups.assignment == group)
        embeddings = pretrained.users[members]
        return neighbourhood.group_table(pretrained.items, covariance, embeddings, members, weight=weight, ridge=ridge)

    return table


@dataclass(frozen=True)
class CollectedUsers:
    """Users who gave data: embeddings (U, d) that their devices have, user groups, items that were collected."""

    embeddings: FloatArray
    groups: UserGroups
    items: UserItems


def starting_states(
    scenario: Scenario,
    layout: BlockLayout,
    tables: Callable[[int], FloatArray],
    users: CollectedUsers,
    folder: str = "",
) -> list[UserGroupState]:
    """Return every group with its starting table, and statistics from the collected interactions alone. tables: (I, d)
    of each group, by number; folder: as in :func:`empty_tables`.
    """
    num_items, groups, collected = layout.num_items, users.groups, users.items
    room = empty_tables(groups.num_groups, (num_items, layout.embedding_dim), folder)
    global_popularity = by_block(layout, collected.popularity(num_items) / max((collected.counts() > 0).sum(), 1))
    shelf = shelf_for(groups.num_groups * known_bytes(layout.num_blocks), folder)
    everybody = {"global_popularity": global_popularity}
    shared = put_once(shelf, everybody | BlockStatistics.unknown(layout.num_blocks))
    aggregation = scenario.refinement.aggregation

    def state(group: int) -> UserGroupState:
        members = np.flatnonzero(groups.assignment == group)
        mine = collected.select(members)
        table = tables(group)
        everything = ranked_as_numbered(layout, table)
        popularity = by_block(layout, mine.popularity(num_items))  # interactions per item
        shown = shown_in_lists(everything, users.embeddings[members], mine, scenario.controller.list_length)
        sizes = np.repeat(layout.group_sizes, layout.num_slices)
        statistics = BlockStatistics(
            popularity=(popularity / max(len(members), 1)).astype(np.float32),
            shown=(shown / sizes / max(len(members), 1)).astype(np.float32),
            energy=block_energy(layout, table),
            **shared,
        )
        room[group][:] = table
        group_state = UserGroupState(
            room[group],
            statistics,
            ServerOptimizer(aggregation.optimizer, aggregation.learning_rate),
            popularity.astype(np.float64) * sizes,
            np.full(layout.num_blocks, float(len(members))),
            shelf,
        )
        group_state.drop_pages()
        return group_state

    # sums of several BLAS threads depend on how many it takes, and that on what else runs: one each
    with fixed_threads(1), ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(state, range(groups.num_groups)))


def shown_in_lists(
    everything: RankedBlocks, users: FloatArray, seen: UserItems, list_length: int
) -> NDArray[np.float64]:
    """Discounted appearances (B,) of blocks in the users' top lists."""
    cutoffs = np.full(len(users), len(everything.blocks), np.int64)
    best = top_rows(everything, cutoffs, users, seen, list_length)
    nothing = UserItems(np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32))
    shown = np.zeros(len(everything.blocks))
    shown[everything.blocks] = signals_of_group(everything, cutoffs, users, best, nothing)[1] / FIXED_POINT
    return shown


TEMPERATURE = 0.4
"""Temperature of the local loss, where the scenario gives none: scores are spread as far as
:mod:`fl_peel.pretraining.spectral` says.
"""


UNSEEN = 0.03
"""Share of an item's popularity in the group that is added to its shown rate: it ranks the items that no sampled user
is shown.
"""


def spectral_states(
    scenario: Scenario, layout: BlockLayout, start: SpectralStart, num_devices: int, folder: str = ""
) -> list[UserGroupState]:
    """Return every user group with its table and statistics, from sums alone. num_devices: number of all devices;
    folder: as in :func:`empty_tables`.

    What devices would be shown is estimated from users drawn from the group's moments, less what they have already.
    """
    global_popularity = by_block(layout, start.counts / max(num_devices, 1))
    sizes = np.repeat(layout.group_sizes, layout.num_slices)
    tables = empty_tables(len(start.groups), (layout.num_items, layout.embedding_dim), folder)
    shelf = shelf_for(len(start.groups) * known_bytes(layout.num_blocks), folder)
    everybody = {"global_popularity": global_popularity}
    shared = put_once(shelf, everybody | BlockStatistics.unknown(layout.num_blocks))
    aggregation, list_length = scenario.refinement.aggregation, scenario.controller.list_length

    def state(group: GroupStart, table: FloatArray) -> UserGroupState:
        nothing = UserItems(np.zeros(len(group.users) + 1, np.int64), np.zeros(0, np.int32))
        table[:] = group.table
        everything = ranked_as_numbered(layout, table)
        popularity = by_block(layout, group.items)
        rate = (popularity / max(group.size, 1)).astype(np.float32)
        shown = shown_in_lists(everything, group.users, nothing, list_length) / sizes / max(len(group.users), 1)
        statistics = BlockStatistics(
            popularity=rate,
            shown=(shown * (1.0 - np.minimum(rate, 1.0)) + UNSEEN * rate).astype(np.float32),
            energy=block_energy(layout, table),
            **shared,
        )
        group_state = UserGroupState(
            table,
            statistics,
            ServerOptimizer(aggregation.optimizer, aggregation.learning_rate),
            popularity.astype(np.float64) * sizes,
            np.full(layout.num_blocks, float(group.size)),
            shelf,
        )
        group_state.drop_pages()
        return group_state

    with fixed_threads(1), ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(state, start.groups, tables))
