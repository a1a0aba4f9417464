"""User groups as stage 1 by sums leaves them: a table each, and what is known of its blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import ranked_as_numbered
from fl_peel.data.interactions import UserItems
from fl_peel.pretraining.spectral_steps import GroupStart
from fl_peel.pretraining.stage1 import SpectralStart
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.workers import fixed_threads
from fl_peel.weighting.block_statistics import BlockStatistics
from strategies.groups.aggregation import ServerOptimizer
from strategies.groups.group_tables import FloatArray, empty_tables, put_once, shelf_for
from strategies.groups.start import by_block, shown_in_lists
from strategies.groups.state import UserGroupState, block_energy, known_bytes

TEMPERATURE = 0.4
"""Temperature of the local loss, where the scenario gives none: scores are spread as far as
:mod:`fl_peel.pretraining.spectral_steps` says.
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
        everything = ranked_as_numbered(layout, group.table)
        popularity = by_block(layout, group.items)
        rate = (popularity / max(group.size, 1)).astype(np.float32)
        shown = shown_in_lists(everything, group.users, nothing, list_length) / sizes / max(len(group.users), 1)
        statistics = BlockStatistics(
            popularity=rate,
            shown=(shown * (1.0 - np.minimum(rate, 1.0)) + UNSEEN * rate).astype(np.float32),
            energy=block_energy(layout, group.table),
            **shared,
        )
        table[:] = group.table
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
