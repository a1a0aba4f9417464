"""What the server keeps for every user group: its item table and what it knows about the table's blocks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks import BlockLayout
from fl_peel.config import Scenario
from fl_peel.controller import BlockStatistics
from fl_peel.grouping import UserGroups, item_groups, user_groups
from fl_peel.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.local_training import signals_of_group
from fl_peel.neighbourhood import Neighbourhood, item_covariance
from fl_peel.pretraining import PretrainedEmbeddings, fixed_threads
from fl_peel.ranking import top_rows
from fl_peel.selection import RankedBlocks, RowOrder, rank_blocks
from strategies.aggregation import BlockSums, ServerOptimizer, apply_mean
from strategies.robust import robust_update

FloatArray = NDArray[np.float32]


def make_layout(scenario: Scenario, pretrained: PretrainedEmbeddings, collected: UserItems) -> BlockLayout:
    """Item groups x slices, from what the server learned in pretraining."""
    blocks = scenario.blocks
    num_items = len(pretrained.items)
    item_group = item_groups(
        blocks.item_groups,
        num_items,
        count=blocks.count,
        popularity=collected.popularity(num_items),
        item_embeddings=pretrained.items,
        num_tiers=blocks.num_tiers,
        seed=scenario.seed,
    )
    return BlockLayout(item_group, pretrained.items.shape[1], blocks.num_slices)


def make_groups(scenario: Scenario, pretrained: PretrainedEmbeddings, has_data: NDArray[np.bool_]) -> UserGroups:
    """K-means over the users whose data was collected."""
    part = scenario.user_groups
    return user_groups(pretrained.users, has_data, count=part.count, min_size=part.min_size, seed=scenario.seed)


def by_block(layout: BlockLayout, per_item: NDArray[np.floating | np.integer]) -> FloatArray:
    """Mean over the items of each block, (I,) -> (B,)."""
    sums = np.bincount(layout.item_group, weights=per_item, minlength=layout.num_item_groups)
    return np.repeat(sums / layout.group_sizes, layout.num_slices).astype(np.float32)


def block_energy(layout: BlockLayout, table: FloatArray) -> FloatArray:
    """Mean squared length of each block's row pieces, (I, d) -> (B,)."""
    pieces = table.reshape(layout.num_items, layout.num_slices, layout.slice_dim)
    squares = np.einsum("isk,isk->is", pieces, pieces)  # (I, S)
    if layout.is_single:
        energy: FloatArray = squares.reshape(-1)
        return energy
    columns = [
        np.bincount(layout.item_group, weights=squares[:, s], minlength=layout.num_item_groups)
        for s in range(layout.num_slices)
    ]
    return (np.stack(columns, axis=1) / layout.group_sizes[:, None]).reshape(-1).astype(np.float32)


@dataclass
class UserGroupState:
    """One user group: its copy of the item table (I, d), what is known of its blocks, its optimizer."""

    table: FloatArray
    statistics: BlockStatistics
    optimizer: ServerOptimizer
    counted_interactions: NDArray[np.float64]
    counted_devices: NDArray[np.float64]

    def take(
        self,
        layout: BlockLayout,
        blocks: NDArray[np.int64],
        total: BlockSums,
        scenario: Scenario,
        buckets: list[BlockSums] | None = None,
    ) -> None:
        """Aggregate one round into the table and the statistics. blocks: (K,) as they were ranked when sent; buckets:
        the sums of sub-cohorts, where the table's update is to be robust.
        """
        order = RowOrder.of(layout, blocks)
        refinement = scenario.refinement
        denominator = refinement.aggregation.denominator
        if buckets is None:
            apply_mean(self.table, order.items, total, order.position, denominator, self.optimizer)
        else:
            update, changed = robust_update(buckets, order.position, denominator, refinement.aggregation.robust)
            rows = changed.any(axis=1)
            self.optimizer.apply(self.table, order.items[rows], update[rows], changed[rows])
        self._take_statistics(layout, blocks, order, total, scenario)

    def _take_statistics(
        self, layout: BlockLayout, blocks: NDArray[np.int64], order: RowOrder, total: BlockSums, scenario: Scenario
    ) -> None:
        statistics = self.statistics
        groups, slices = layout.item_group[order.items], layout.num_slices
        examples = np.bincount(groups, weights=total.row_examples, minlength=layout.num_item_groups)
        losses = np.bincount(groups, weights=total.row_loss / FIXED_POINT, minlength=layout.num_item_groups)
        mean_loss = np.divide(losses, examples, out=np.zeros_like(losses), where=examples > 0)
        known = np.repeat(examples > 0, slices)
        statistics.loss = np.where(known, np.repeat(mean_loss, slices), statistics.loss).astype(np.float32)
        holders = np.zeros(layout.num_blocks)
        holders[blocks] = total.holders
        # an interaction counts on every device that has some slice of the row: as many as hold the best-held one
        holders = np.repeat(holders.reshape(-1, slices).max(axis=1), slices)
        self.counted_interactions += np.repeat(examples, slices) / scenario.refinement.local.epochs
        self.counted_devices += holders
        sizes = np.repeat(layout.group_sizes, slices)
        rate = self.counted_interactions / (np.maximum(self.counted_devices, 1) * sizes)
        statistics.popularity = rate.astype(np.float32)
        statistics.energy = block_energy(layout, self.table)
        if total.exposed.any():
            hits, exposure = np.zeros(layout.num_blocks), np.zeros(layout.num_blocks)
            hits[blocks] = total.hits / FIXED_POINT
            exposure[blocks] = total.exposed * sizes[blocks]
            statistics.add_signals(hits, exposure, scenario.controller.memory)


def starting_tables(
    scenario: Scenario, pretrained: PretrainedEmbeddings, groups: UserGroups, collected: UserItems
) -> Callable[[int], FloatArray]:
    """What gives each user group, by number, the item table (I, d) it starts with: a copy of the global one or, with
    ``user_groups.neighbour_weight``, its own correction of it (:mod:`fl_peel.neighbourhood`). To be called under
    ``fixed_threads(1)``, so that it is the same to the last bit.
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


def starting_states(
    scenario: Scenario,
    layout: BlockLayout,
    pretrained: PretrainedEmbeddings,
    groups: UserGroups,
    collected: UserItems,
) -> list[UserGroupState]:
    """Every group with its starting table, and statistics from the collected interactions alone."""
    num_items = layout.num_items
    tables = starting_tables(scenario, pretrained, groups, collected)
    as_numbered = -np.arange(layout.num_blocks, dtype=np.float64)
    global_popularity = by_block(layout, collected.popularity(num_items) / max((collected.counts() > 0).sum(), 1))
    aggregation = scenario.refinement.aggregation

    def state(group: int) -> UserGroupState:
        members = np.flatnonzero(groups.assignment == group)
        mine = collected.select(members)
        table = tables(group)
        everything = rank_blocks(layout, "fp32", as_numbered, table)
        popularity = by_block(layout, mine.popularity(num_items))  # interactions per item
        shown = _shown(everything, pretrained.users[members], mine, scenario.controller.list_length)
        sizes = np.repeat(layout.group_sizes, layout.num_slices)
        statistics = BlockStatistics(
            popularity=(popularity / max(len(members), 1)).astype(np.float32),
            shown=(shown / sizes / max(len(members), 1)).astype(np.float32),
            global_popularity=global_popularity,
            loss=np.zeros(layout.num_blocks, np.float32),
            energy=block_energy(layout, table),
        )
        return UserGroupState(
            table,
            statistics,
            ServerOptimizer(aggregation.optimizer, aggregation.learning_rate),
            popularity.astype(np.float64) * sizes,
            np.full(layout.num_blocks, float(len(members))),
        )

    # sums of several BLAS threads depend on how many it takes, and that on what else runs: one each
    with fixed_threads(1), ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(state, range(groups.num_groups)))


def _shown(everything: RankedBlocks, users: FloatArray, seen: UserItems, list_length: int) -> NDArray[np.float64]:
    """Discounted appearances (B,) of blocks in the users' top lists."""
    cutoffs = np.full(len(users), len(everything.blocks), np.int64)
    best = top_rows(everything, cutoffs, users, seen, list_length)
    nothing = UserItems(np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32))
    shown = np.zeros(len(everything.blocks))
    shown[everything.blocks] = signals_of_group(everything, cutoffs, users, best, nothing)[1] / FIXED_POINT
    return shown
