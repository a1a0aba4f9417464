"""Open contents: block-wise means of what devices changed, and the blocks' statistics from what they counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MessageContext
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.exchange.open_sums import SIGNALS, UPDATES
from fl_peel.wire import Arrays
from strategies.groups.aggregation import BlockSums, apply_mean
from strategies.groups.state import UserGroupState
from strategies.rounds.channel import OpenedSum
from strategies.rounds.contents import ServerContents
from strategies.rounds.federation import for_groups
from strategies.rounds.record import SentRound


class OpenServerContents(ServerContents):
    """Contribution on the server side in the clear, for each user group: its sums, then its table, then its statistics.

    Override :meth:`apply` for an aggregation rule of your own.
    """

    def expects(self, sent: SentRound, group: int, devices: int) -> MessageContext | None:
        """Return the expected sums: those of the rows that were sent."""
        layout, blocks = self.federation.layout, sent.blocks[group]
        sizes = {
            "R": layout.num_rows(blocks),
            "d": layout.embedding_dim,
            "S": layout.num_slices,
            "K": len(blocks),
            "N": devices,
        }
        return MessageContext(sizes, arrays=UPDATES | (SIGNALS if sent.signals else {}))

    @property
    def aggregates_incrementally(self) -> bool:
        """Whether groups are aggregated one by one: yes, unless a rule of your own needs all of them together."""
        return type(self).take is OpenServerContents.take

    def take(self, sent: SentRound, sums: Mapping[int, Sequence[Arrays]], opened: Mapping[int, OpenedSum]) -> None:
        """Update the table and statistics of each user group with a contribution."""
        for_groups(lambda group: self.take_group(group, sent.blocks[group], sums[group]), sums)

    def take_group(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> None:
        """Update one user group. blocks: (K,) as they were ranked when sent; parts: sums that add up."""
        state, layout = self.federation.states[group], self.federation.layout
        order = RowOrder.from_blocks(layout, blocks)
        total = self.empty(order, blocks)
        for part in parts:
            total.add(part)
        self.apply(state, order, total)
        scenario = self.federation.scenario
        state.take_statistics(layout, blocks, order, total, scenario, all_rows=self._applies_its_own)
        state.drop_pages()

    def may_change(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> NDArray[np.integer]:
        """Return the rows that may have changed: those that some device changed, unless a rule of your own changes
        others."""
        items = super().may_change(group, blocks, parts)
        if self._applies_its_own or type(self).take_group is not OpenServerContents.take_group:
            return items
        rows = [part[name] for part in parts for name in ("rows", "wide_rows") if name in part]
        changed = np.zeros(len(items), np.bool_)
        for some in rows:
            changed[some] = True
        return items[changed]

    @property
    def _applies_its_own(self) -> bool:
        return type(self).apply is not OpenServerContents.apply

    def empty(self, order: RowOrder, blocks: NDArray[np.int64]) -> BlockSums:
        """Return sums over no devices."""
        layout = self.federation.layout
        return BlockSums.zeros(len(order.items), layout.num_slices, layout.embedding_dim, len(blocks))

    def apply(self, state: UserGroupState, order: RowOrder, total: BlockSums) -> None:
        """Add the mean update to the table. order: of the table's rows (R,); total: sums over the devices."""
        denominator = self.federation.scenario.refinement.aggregation.denominator
        apply_mean(state.table, order.items, total, order.position, denominator, state.optimizer)
