"""What a device keeps under a budget: ranked blocks, and the elastic embedding made of them.

PEEL, section III-D: a device keeps the blocks with the largest weights that fit its memory budget. Blocks are taken
in the order of their weights until the next one no longer fits, never skipping one to squeeze in a smaller: so the
blocks kept under a larger budget are always a superset, and shrinking needs nobody's help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.array_specs import ArrayChecker, ArraySpec, MessageContext
from fl_peel.blocks.layout import (
    BlockLayout,
    Codes,
    code_columns,
    code_dtype,
    dequantize,
    has_scales,
    quantize,
)
from fl_peel.blocks.stored import overhead_bytes, user_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.errors import BudgetError, MessageError
from fl_peel.scenario.settings import Precision


def ranking(weights: NDArray[np.floating], first: int | None = None) -> NDArray[np.int64]:
    """Block numbers by decreasing weight (B,) -> (B,); equal weights by block number. first: only so many of them."""
    keys = -weights.astype(np.float64)
    if first is None or not 0 < first < len(keys):
        return _ascending(keys)[:first]
    best = np.flatnonzero(keys <= np.partition(keys, first - 1)[first - 1])  # with all that are as good as the last
    return best[_ascending(keys[best])[:first]]


def _ascending(keys: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of numbers in ascending order, of equal ones in their own. A sort that keeps equal numbers in order takes
    twice as long: few numbers have an equal one, and these are put in order afterwards.
    """
    order = np.argsort(keys)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        shared = np.concatenate([[False], same]) | np.concatenate([same, [False]])
        order[shared] = order[shared][np.lexsort((order[shared], ordered[shared]))]
    return order


def prefix_length(layout: BlockLayout, precision: Precision, order: NDArray[np.int64], budget_bytes: int) -> int:
    """How many of the ranked blocks an artefact of ``budget_bytes`` holds."""
    widest = np.maximum.accumulate(order % layout.num_slices)
    stored = np.cumsum(layout.block_bytes(precision)[order]) + widest * user_bytes(layout.slice_dim)
    return int(np.searchsorted(stored, budget_bytes - overhead_bytes(layout.slice_dim), side="right"))


def smallest_budget_bytes(layout: BlockLayout, precision: Precision) -> int:
    """Bytes of an artefact with the smallest block alone: no budget below it can serve anything."""
    return overhead_bytes(layout.slice_dim) + int(layout.block_bytes(precision).min())


def check_budget(layout: BlockLayout, precision: Precision, budget_bytes: int, place: str) -> None:
    """Refuse a budget that cannot hold one block.

    Raises:
        BudgetError: naming ``place`` and the smallest budget that works.
    """
    smallest = smallest_budget_bytes(layout, precision)
    if budget_bytes < smallest:
        raise BudgetError(
            f"{place}: budget {budget_bytes} B is below one block ({smallest} B with header and user embedding, "
            f"{precision}); raise the budget, use more item groups or more slices"
        )


PACKED = {
    "blocks": ArraySpec(("K",), within="B", dtypes=("uint16", "uint32")),
    "codes": ArraySpec(("bytes",), dtypes=("uint8",)),
    "scales": ArraySpec(("scales",), dtypes=("float16",)),
}
"""Ranked blocks as they travel."""


@dataclass(frozen=True)
class RankedBlocks:
    """The ranked blocks of one user group, as devices read them: already at block precision.

    A device reads the list from the front and keeps what fits; a node, which hosts many, is sent all that its largest
    budget holds.

    blocks: (K,) block numbers, best first.
    items: (R,) int32, the items with a block among them, by the rank of their best block.
    table: (R, d) float32, decoded; columns of blocks that were not sent are zero.
    position: (R, S) int32, rank of each block, K where it was not sent.
    """

    layout: BlockLayout
    precision: Precision
    blocks: NDArray[np.int64]
    items: NDArray[np.int32]
    table: NDArray[np.float32]
    position: NDArray[np.int32]

    @cached_property
    def first_position(self) -> NDArray[np.int32]:
        """Rank of each row's best block, shape (R,), ascending."""
        if self.layout.num_slices == 1:
            return np.ascontiguousarray(self.position[:, 0])
        return np.ascontiguousarray(self.position.min(axis=1))

    @cached_property
    def cost(self) -> NDArray[np.int64]:
        """Stored bytes of the first k blocks, shape (K + 1,)."""
        return np.concatenate([[0], np.cumsum(self.layout.block_bytes(self.precision)[self.blocks])])

    @cached_property
    def row_pieces(self) -> NDArray[np.int64]:
        """Row pieces in the first k blocks, shape (K + 1,)."""
        if self.layout.is_single:
            return np.arange(len(self.blocks) + 1)
        return np.concatenate([[0], np.cumsum(self.layout.group_sizes[self.blocks // self.layout.num_slices])])

    @cached_property
    def largest_bytes(self) -> int:
        """Stored bytes of the largest block."""
        return int(self.layout.block_bytes(self.precision)[self.blocks].max(initial=0))

    @cached_property
    def row_of_item(self) -> NDArray[np.int32]:
        """Table row of each item (I,), -1 for items without a block here."""
        rows = np.full(self.layout.num_items, -1, np.int32)
        rows[self.items] = np.arange(len(self.items), dtype=np.int32)
        return rows

    @cached_property
    def rank_of_block(self) -> NDArray[np.int64]:
        """Rank of each block (B,), -1 for blocks that were not sent."""
        ranks = np.full(self.layout.num_blocks, -1, np.int64)
        ranks[self.blocks] = np.arange(len(self.blocks))
        return ranks

    def read_bytes(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes moved to devices (N,) that read the list from rank ``start`` (N,) up to ``stop`` (N,): every block
        between, and the id of the one where they close it, unless the list ends there.
        """
        return self.cost[stop] - self.cost[start] + np.where(stop < len(self.blocks), self.layout.id_bytes, 0)

    def cutoffs(self, budget_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Blocks that fit each budget (N,), header and the whole user embedding, which devices train, paid first."""
        room = budget_bytes - overhead_bytes(self.layout.embedding_dim)
        return np.maximum(np.searchsorted(self.cost, room, side="right") - 1, 0)

    def num_present(self, cutoffs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows with at least one block kept, for each cutoff (N,)."""
        return np.searchsorted(self.first_position, cutoffs, side="left").astype(np.int64)

    def stored_bytes(self, cutoffs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of the first blocks up to each cutoff (N,), with header and the whole user embedding."""
        return self.cost[cutoffs] + overhead_bytes(self.layout.embedding_dim)

    def unneeded(self, seen: UserItems) -> UserItems:
        """Ranks, ascending, of the blocks all of whose items a device has already interacted with (each item once).

        Such items are never recommended again, so that serving needs none of their blocks.
        """
        sizes = self.layout.group_sizes
        num_slices = self.layout.num_slices
        users = seen.users()
        groups = self.layout.item_group[seen.items].astype(np.int64)
        key, count = np.unique(users * self.layout.num_item_groups + groups, return_counts=True)
        full = key[count == sizes[key % self.layout.num_item_groups]]
        who = np.repeat(full // self.layout.num_item_groups, num_slices)
        group = np.repeat(full % self.layout.num_item_groups, num_slices)
        ranks = self.rank_of_block[group * num_slices + np.tile(np.arange(num_slices), len(full))]
        who, ranks = who[ranks >= 0], ranks[ranks >= 0]
        order = np.lexsort((ranks, who))
        return UserItems.from_pairs(who[order], ranks[order], seen.num_users)

    def serving_cutoffs(
        self, budget_bytes: NDArray[np.int64], seen: UserItems
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Selection for ranking: as :meth:`cutoffs`, but blocks the device never needs take no room, nor columns of the
        user embedding that no block has which it keeps.

        Returns (cutoffs, stored_bytes, kept_blocks), each (N,). A budget too small for header and one slice of the
        user embedding stores nothing at all: 0 bytes.
        """
        return self.cutoffs_without(budget_bytes, self.unneeded(seen))

    def cutoffs_without(
        self, budget_bytes: NDArray[np.int64], skipped: UserItems
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The same of devices for which :meth:`unneeded` was found."""
        overhead, slice_bytes = overhead_bytes(self.layout.slice_dim), user_bytes(self.layout.slice_dim)
        num_devices = len(budget_bytes)
        cutoffs, kept_bytes, kept_blocks = (np.empty(num_devices, np.int64) for _ in range(3))
        room, wider, ranks = budget_bytes - overhead, self._wider(skipped), skipped.items.astype(np.int64)
        kernels.serving_cutoffs(
            room, self.cost, wider, slice_bytes, skipped.indptr, ranks, cutoffs, kept_bytes, kept_blocks
        )
        return cutoffs, np.where(room >= 0, kept_bytes + overhead, 0), kept_blocks

    def _wider(self, skipped: UserItems) -> NDArray[np.int64]:
        """Rank of the first block of the second slice or a later one that devices (N,) do not skip, of the third or a
        later one, and so on, (N, S - 1); K where there is none.
        """
        wider = np.empty((skipped.num_users, self.layout.num_slices - 1), np.int64)
        slices, whole = self.blocks % self.layout.num_slices, len(self.blocks)
        who = np.arange(skipped.num_users) * (whole + 1)
        passed = np.append(skipped.users() * (whole + 1) + skipped.items, -1)  # ascending, and one that is none of them
        for number in range(self.layout.num_slices - 1):
            ranks = np.append(np.flatnonzero(slices > number), whole)
            place = np.zeros_like(who)
            while (skips := passed[np.searchsorted(passed[:-1], who + ranks[place])] == who + ranks[place]).any():
                place[skips] += 1
            wider[:, number] = ranks[place]
        return wider

    def wider_user_bytes(self, cutoffs: NDArray[np.int64], skipped: UserItems) -> NDArray[np.int64]:
        """Return the bytes of the user embedding behind its first slice that devices (N,) hold which chose up to
        ``cutoffs`` (N,) of :meth:`cutoffs_without`.
        """
        slices = (self._wider(skipped) < cutoffs[:, None]).sum(axis=1)
        return np.asarray(slices * user_bytes(self.layout.slice_dim), np.int64)

    def after_last_without(self, cutoffs: NDArray[np.int64], skipped: UserItems) -> NDArray[np.int64]:
        """Rank behind the last block that devices (N,) hold which chose up to ``cutoffs`` (N,) of
        :meth:`cutoffs_without`: what they passed over last they do not know any more.
        """
        if not len(skipped.items):
            return cutoffs.copy()
        width, begin, users = len(self.blocks) + 1, skipped.indptr[:-1], skipped.users()
        who = np.arange(len(cutoffs)) * width
        before = np.searchsorted(users * width + skipped.items, who + cutoffs) - begin  # ranks passed below the cutoff
        # ranks that it passed without a gap have the same number of others before them
        others = users * width + skipped.items - (np.arange(len(users)) - begin[users])
        first = np.searchsorted(others, who + cutoffs - before)
        gapless = first < begin + before
        return np.where(gapless, skipped.items[np.minimum(first, len(users) - 1)], cutoffs).astype(np.int64)

    @staticmethod
    def unpack(layout: BlockLayout, precision: Precision, arrays: Mapping[str, NDArray[np.generic]]) -> RankedBlocks:
        """Decode what :func:`pack_blocks` packed.

        Raises:
            MessageError: it is not what could be packed.
        """
        check_packed(layout, precision, arrays)
        blocks = arrays["blocks"].astype(np.int64)
        order = RowOrder.from_blocks(layout, blocks)
        width = layout.slice_dim
        codes = arrays["codes"].view(code_dtype(precision)).reshape(-1, code_columns(width, precision))
        scales = arrays["scales"].astype(np.float16) if has_scales(precision) else np.zeros(0, np.float16)
        shape = len(order.items) * layout.num_slices, width
        if precision == "int8":
            table = np.empty(shape, np.float32) if layout.num_slices == 1 else np.zeros(shape, np.float32)
            places = order.rows * layout.num_slices + order.slices
            kernels.decode_int8(codes, scales.astype(np.float32), places, table)  # as dequantize does
        else:
            table = dequantize(_as_codes(codes), scales, precision, width)
            if layout.num_slices > 1:  # else pieces are rows, and in their order
                pieces, table = table, np.zeros(shape, np.float32)
                table[order.rows * layout.num_slices + order.slices] = pieces
        return RankedBlocks(
            layout,
            precision,
            blocks,
            order.items,
            table.reshape(len(order.items), layout.embedding_dim),
            order.position,
        )


@dataclass(frozen=True)
class RowOrder:
    """How ranked blocks (K,) fall into table rows.

    items: (R,) int32, the items with a block among them, by the rank of their best block; position: (R, S) int32,
    rank of each block, K where it is not among them; rows, slices: (T,), where each row piece goes.
    """

    items: NDArray[np.int32]
    position: NDArray[np.int32]
    rows: NDArray[np.int64]
    slices: NDArray[np.int64]

    @staticmethod
    def from_blocks(layout: BlockLayout, blocks: NDArray[np.int64]) -> RowOrder:
        """Order rows by their best block; items of one block stay in catalogue order."""
        if layout.is_single and layout.num_slices == 1:  # a block is an item is a row
            rows = np.arange(len(blocks))
            return RowOrder(blocks.astype(np.int32), rows.astype(np.int32)[:, None], rows, np.zeros_like(rows))
        items, slices, place = layout.block_rows(blocks)
        if layout.num_slices == 1:
            row_items = items.astype(np.int32)  # one piece a row, already in order of rank
            rows = np.arange(len(items))
        else:
            first = np.full(layout.num_items, len(items), np.int64)
            np.minimum.at(first, items, np.arange(len(items)))
            row_items = items[first[items] == np.arange(len(items))].astype(np.int32)
            row_of = np.empty(layout.num_items, np.int64)
            row_of[row_items] = np.arange(len(row_items))
            rows = row_of[items]
        position = np.full((len(row_items), layout.num_slices), len(blocks), np.int32)
        position[rows, slices] = place
        return RowOrder(row_items, position, rows, slices)


def _as_codes(array: NDArray[np.generic]) -> Codes:
    return array  # type: ignore[return-value]


def check_packed(layout: BlockLayout, precision: Precision, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Refuse what :func:`pack_blocks` cannot have packed.

    Raises:
        MessageError: an array is missing, or is of another type or length; a block that is not there, or is twice.
    """
    checked = ArrayChecker.from_context(MessageContext({"B": layout.num_blocks}, arrays=PACKED))
    checked.group(arrays, "ranked blocks")
    blocks = arrays["blocks"]
    if blocks.dtype != layout.id_dtype:
        raise MessageError(f"ranked blocks: numbers of type {blocks.dtype}, not {layout.id_dtype}")
    there = np.zeros(layout.num_blocks, np.bool_)
    there[blocks] = True
    if np.count_nonzero(there) < len(blocks):
        raise MessageError("ranked blocks: a block is there twice")
    pieces = len(blocks) if layout.is_single else int(layout.group_sizes[blocks // layout.num_slices].sum())
    dtype, columns = code_dtype(precision), code_columns(layout.slice_dim, precision)
    wanted = pieces * columns * dtype.itemsize, pieces if has_scales(precision) else 0
    if (len(arrays["codes"]), len(arrays["scales"])) != wanted:
        raise MessageError(
            f"ranked blocks: {len(arrays['codes'])} bytes of codes and {len(arrays['scales'])} scales, where "
            f"{len(blocks)} blocks in {precision} take {wanted[0]} and {wanted[1]}"
        )
    if dtype.kind == "f" and not np.isfinite(arrays["codes"].view(dtype)).all():
        raise MessageError("ranked blocks: not all numbers are finite")


def pack_blocks(
    layout: BlockLayout,
    precision: Precision,
    blocks: NDArray[np.int64],
    table: NDArray[np.float32],
) -> dict[str, NDArray[np.generic]]:
    """Encode ranked blocks (K,) of a table (I, d) for the wire. Their weights stay with the server: the order says all
    that a device needs.
    """
    if layout.is_single and layout.num_slices == 1:
        index = blocks
    else:
        items, slices, _ = layout.block_rows(blocks)
        index = items * layout.num_slices + slices  # (T,) row pieces
    pieces = table.reshape(-1, layout.slice_dim)
    coded, scales = quantize(pieces, precision, index)
    codes = np.ascontiguousarray(coded, dtype=code_dtype(precision))
    return {
        "blocks": blocks.astype(layout.id_dtype),
        "codes": codes.view(np.uint8).reshape(-1),
        "scales": scales,
    }


def pack_ranking(
    layout: BlockLayout,
    precision: Precision,
    weights: NDArray[np.floating],
    table: NDArray[np.float32],
    budget_bytes: int | None,
) -> dict[str, NDArray[np.generic]]:
    """What the server sends one user group: its best blocks, as many as ``budget_bytes`` holds (None: all).

    weights: (B,); table: (I, d), the group's item table.
    """
    if budget_bytes is None:
        return pack_blocks(layout, precision, ranking(weights), table)
    at_most = max(budget_bytes, 0) // int(layout.block_bytes(precision).min())
    order = ranking(weights, first=at_most)
    return pack_blocks(layout, precision, order[: prefix_length(layout, precision, order, budget_bytes)], table)


def ranked_as_numbered(layout: BlockLayout, table: NDArray[np.float32]) -> RankedBlocks:
    """All blocks of a table (I, d) in the order of their numbers and in fp32, as :func:`rank_blocks` has them; where
    blocks are rows, nothing is copied.

    Raises:
        ScenarioError: as for :func:`fl_peel.blocks.layout.quantize`.
    """
    if not (layout.is_single and layout.num_slices == 1 and np.isfinite(table).all()):
        return rank_blocks(layout, "fp32", -np.arange(layout.num_blocks, dtype=np.float64), table)
    blocks = np.arange(layout.num_blocks)
    order = RowOrder.from_blocks(layout, blocks)
    return RankedBlocks(layout, "fp32", blocks, order.items, np.ascontiguousarray(table), order.position)


def rank_blocks(
    layout: BlockLayout,
    precision: Precision,
    weights: NDArray[np.floating],
    table: NDArray[np.float32],
    budget_bytes: int | None = None,
) -> RankedBlocks:
    """Ranked blocks of one user group, as a device decodes them."""
    return RankedBlocks.unpack(layout, precision, pack_ranking(layout, precision, weights, table, budget_bytes))
