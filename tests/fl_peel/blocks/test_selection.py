"""What a device keeps under a budget: never above it, a superset under a larger one, nothing it does not need."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout, dequantize, quantize
from fl_peel.blocks.ranked_blocks import (
    RankedBlocks,
    pack_ranking,
    prefix_length,
    rank_blocks,
    ranking,
    smallest_budget_bytes,
)
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.errors import BudgetError
from tests.helpers.blocks import layouts, precisions, random_table, rows_of, seeds
from tests.helpers.examples import examples


def random_ranking(layout, precision, rng, budget=None) -> RankedBlocks:
    weights = rng.integers(0, 5, layout.num_blocks).astype(np.float32)  # many ties
    return rank_blocks(layout, precision, weights, random_table(rng, layout), budget)


def random_seen(layout, rng, num_devices) -> UserItems:
    """Each device has seen any number of items, often a whole item group of several."""
    rows = []
    for _ in range(num_devices):
        seen = rng.random(layout.num_items) < rng.choice([0.0, 0.2, 0.7, 1.0])
        seen |= np.isin(layout.item_group, rng.integers(0, layout.num_item_groups, 2)) & (rng.random() < 0.5)
        rows.append(rng.permutation(np.flatnonzero(seen)).tolist())
    return rows_of(*rows)


def budgets_for(layout, precision, rng, count) -> np.ndarray:
    """From below the overhead to above the whole table."""
    whole = overhead_bytes(layout.embedding_dim) + int(layout.block_bytes(precision).sum())
    return rng.integers(0, whole + 50, count).astype(np.int64)


# ---------------------------------------------------------------- order and prefix


def test_prefix_by_hand():
    # single items, d = 4, int8: header 44 + user 8 = 52; a block is 2 + 4 + 2 = 8 bytes
    layout = BlockLayout(np.arange(5, dtype=np.int32), 4, 1)
    order = np.array([3, 1, 0, 2, 4])
    lengths = [prefix_length(layout, "int8", order, budget) for budget in (0, 51, 52, 59, 60, 67, 68, 10_000)]
    assert lengths == [0, 0, 0, 0, 1, 1, 2, 5]
    assert smallest_budget_bytes(layout, "int8") == 60


# ---------------------------------------------------------------- what is sent and what is kept


@examples(150)
@given(layout=layouts, precision=precisions, seed=seeds, share=st.sampled_from([None, 0.3, 0.8]))
def test_unpacked_rows_are_the_coded_rows_in_their_place(layout, precision, seed, share):
    rng = np.random.default_rng(seed)
    weights, table = rng.random(layout.num_blocks), random_table(rng, layout)
    budget = None if share is None else int(overhead_bytes(layout.embedding_dim) + share * layout.full_table_bytes)
    packed = pack_ranking(layout, precision, weights, table, budget)
    ranked = RankedBlocks.unpack(layout, precision, packed)
    order = ranking(weights)
    assert (ranked.blocks == order[: len(ranked.blocks)]).all()
    if budget is not None:
        assert len(ranked.blocks) == prefix_length(layout, precision, order, budget)
    assert ranked.table.dtype == np.float32
    rank_of = {int(block): rank for rank, block in enumerate(ranked.blocks)}
    sent = len(ranked.blocks)
    pieces = ranked.table.reshape(-1, layout.num_slices, layout.slice_dim)
    present = set()
    for row, item in enumerate(ranked.items.tolist()):
        for s in range(layout.num_slices):
            block = int(layout.item_group[item]) * layout.num_slices + s
            rank = rank_of.get(block, sent)
            assert ranked.position[row, s] == rank
            mine = table[item].reshape(layout.num_slices, -1)[s : s + 1]
            decoded = dequantize(*quantize(mine, precision), precision, layout.slice_dim)[0]
            assert (pieces[row, s] == (decoded if rank < sent else 0)).all()
        present.add(item)
        assert ranked.row_of_item[item] == row
    assert present == {i for i in range(layout.num_items) if int(layout.item_group[i]) in {b // layout.num_slices
                       for b in rank_of}}  # fmt: skip
    assert (ranked.row_of_item >= 0).sum() == len(present)
    assert (np.diff(ranked.first_position) >= 0).all()


@examples(150)
@given(layout=layouts, precision=precisions, seed=seeds)
def test_cutoffs_fit_and_one_more_block_does_not(layout, precision, seed):
    rng = np.random.default_rng(seed)
    ranked = random_ranking(layout, precision, rng)
    budgets = budgets_for(layout, precision, rng, 20)
    cutoffs = ranked.cutoffs(budgets)
    sizes = layout.block_bytes(precision)[ranked.blocks]
    for budget, cutoff in zip(budgets.tolist(), cutoffs.tolist(), strict=True):
        room = budget - overhead_bytes(layout.embedding_dim)
        assert sizes[:cutoff].sum() <= max(room, 0)
        assert cutoff == len(sizes) or sizes[: cutoff + 1].sum() > room
        assert ranked.num_present(np.array([cutoff]))[0] == (ranked.position < cutoff).any(axis=1).sum()
    assert (ranked.stored_bytes(cutoffs) == ranked.cost[cutoffs] + overhead_bytes(layout.embedding_dim)).all()
    by_budget = np.argsort(budgets)
    assert (np.diff(cutoffs[by_budget]) >= 0).all()


# ---------------------------------------------------------------- serving: what was seen takes no room


def slow_serving(ranked: RankedBlocks, budget: int, seen: set[int]) -> tuple[int, list[int]]:
    """Go down the ranked list, pass over blocks all of whose items were seen, stop where one does not fit, with the
    columns of the user embedding up to it.
    """
    layout = ranked.layout
    stored, kept, widest = overhead_bytes(layout.slice_dim), [], 0
    if budget < stored:
        return 0, []
    for block in ranked.blocks.tolist():
        items = set(np.flatnonzero(layout.item_group == block // layout.num_slices).tolist())
        if items <= seen:
            continue
        wider = max(widest, block % layout.num_slices)
        size = int(layout.block_bytes(ranked.precision)[block]) + 2 * layout.slice_dim * (wider - widest)
        if stored + size > budget:
            break
        stored, widest = stored + size, wider
        kept.append(block)
    return stored, kept


@examples(150)
@given(layout=layouts, precision=precisions, seed=seeds, sent=st.sampled_from([None, 0.5]))
def test_serving_cutoffs_equal_the_readable_loop(layout, precision, seed, sent):
    rng = np.random.default_rng(seed)
    limit = None if sent is None else int(overhead_bytes(layout.embedding_dim) + sent * layout.full_table_bytes)
    ranked = random_ranking(layout, precision, rng, limit)
    budgets = budgets_for(layout, precision, rng, 8)
    budgets[:2] = [overhead_bytes(layout.slice_dim) - 1, overhead_bytes(layout.slice_dim)]
    seen = random_seen(layout, rng, 8)
    cutoffs, stored, kept = ranked.serving_cutoffs(budgets, seen)
    skipped = ranked.unneeded(seen)
    for i, budget in enumerate(budgets.tolist()):
        expected_bytes, expected_blocks = slow_serving(ranked, budget, set(seen.row(i).tolist()))
        assert stored[i] == expected_bytes
        assert kept[i] == len(expected_blocks)
        ranks = np.setdiff1d(np.arange(cutoffs[i]), skipped.row(i))
        assert ranked.blocks[ranks].tolist() == expected_blocks


@examples(150)
@given(layout=layouts, precision=precisions, seed=seeds)
def test_the_artefact_never_exceeds_the_budget_and_more_budget_keeps_a_superset(layout, precision, seed):
    """Of 8 budgets in every world, real bytes."""
    rng = np.random.default_rng(seed)
    ranked = random_ranking(layout, precision, rng)
    user = rng.normal(size=layout.embedding_dim).astype(np.float32)
    elastic = ElasticEmbedding(ranked, user, random_seen(layout, rng, 1).row(0))
    smaller: set[int] = set()
    for budget in np.sort(budgets_for(layout, precision, rng, 8)).tolist():
        kept = elastic.kept(budget).tolist()
        assert smaller <= set(kept)
        assert len(set(kept)) == len(kept)
        smaller = set(kept)
        if budget < overhead_bytes(layout.slice_dim):
            assert not kept
            with pytest.raises(BudgetError, match="header and user embedding"):
                elastic.at(budget)
            continue
        stored = elastic.at(budget)
        assert stored.blocks.tolist() == kept
        size = len(stored.to_bytes())
        assert size <= budget
        assert size == slow_serving(ranked, budget, set(elastic.seen.tolist()))[0]


def test_the_user_embedding_is_as_wide_as_the_widest_row_kept():
    """Two slices of 2 columns in int8, blocks of 6 bytes: with header and first slice 48. The second slice of the user
    embedding, 4 bytes more, comes with the first block that has it and that is needed.
    """
    layout = BlockLayout(np.arange(3, dtype=np.int32), 4, 2)
    ranked = rank_blocks(layout, "int8", np.array([9.0, 8.0, 7.0, 5.0, 6.0, 4.0]), np.ones((3, 4), np.float32))
    assert ranked.blocks.tolist() == [0, 1, 2, 4, 3, 5]
    budgets = np.array([53, 54, 63, 64, 63, 64, 75, 76])
    seen = rows_of(*[[]] * 4, *[[0]] * 4)
    cutoffs, stored, kept = ranked.serving_cutoffs(budgets, seen)
    assert cutoffs.tolist() == [0, 1, 1, 2, 4, 4, 5, 6]
    assert stored.tolist() == [48, 54, 54, 64, 60, 60, 70, 76]
    assert kept.tolist() == [0, 1, 1, 2, 2, 2, 3, 4]
    user = np.arange(4, dtype=np.float32)
    widths = [len(ElasticEmbedding(ranked, user, seen.row(i)).at(budget).user) for i, budget in enumerate(budgets)]
    assert widths == [2, 2, 2, 4, 2, 2, 4, 4]


def test_an_item_that_was_seen_twice_counts_once():
    layout = BlockLayout(np.array([0, 0, 1], np.int32), 4, 1)
    ranked = rank_blocks(layout, "int8", np.array([2.0, 1.0]), np.ones((3, 4), np.float32))
    elastic = ElasticEmbedding(ranked, np.ones(4, np.float32), np.array([0, 0]))
    assert elastic.kept(10_000).tolist() == [0, 1]
    assert elastic.top_n(10_000, 3).tolist() == [1, 2]


def test_reading_the_list_is_paid_for():
    """Blocks of 8 bytes, numbers included; the number of the one where a device closes the list; none at its end."""
    layout = BlockLayout(np.arange(5, dtype=np.int32), 4, 1)
    ranked = rank_blocks(layout, "int8", np.ones(5), np.ones((5, 4), np.float32))
    start, stop = np.array([0, 0, 2, 0, 5]), np.array([0, 3, 4, 5, 5])
    assert ranked.read_bytes(start, stop).tolist() == [2, 3 * 8 + 2, 2 * 8 + 2, 5 * 8, 0]


def test_a_device_knows_the_last_block_it_holds_and_not_what_it_passed_over_behind_it():
    layout = BlockLayout(np.arange(6, dtype=np.int32), 4, 1)
    ranked = rank_blocks(layout, "int8", -np.arange(6.0), np.ones((6, 4), np.float32))
    seen = rows_of([], [0, 3, 4], [0, 3, 4], [0], [0, 1, 2, 3, 4, 5])
    assert ranked.after_last_without(np.array([6, 5, 2, 1, 6]), ranked.unneeded(seen)).tolist() == [6, 3, 2, 0, 0]


@given(layouts, seeds)
def test_rows_of_blocks_are_counted_once(layout, seed):
    blocks = np.random.default_rng(seed).integers(0, layout.num_blocks, 2 * layout.num_blocks)
    assert layout.num_rows(blocks) == len(np.unique(layout.block_rows(blocks)[0]))


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 400))
def test_equal_weights_go_by_block_number(seed, count, first):
    """Whatever sorts them: some weights are equal, some are not."""
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(count) < 0.5, rng.integers(-2, 3, count), rng.random(count))
    wanted = sorted(range(count), key=lambda block: (-weights[block], block))
    assert ranking(weights).tolist() == wanted
    assert ranking(weights, first=first).tolist() == wanted[:first]


@given(layout=layouts, precision=precisions, seed=seeds, share=st.floats(0, 1))
def test_a_list_knows_the_row_pieces_and_the_largest_of_its_blocks(layout, precision, seed, share):
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(layout.num_blocks)[: int(share * layout.num_blocks)]
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), random_table(rng, layout))
    ranked = replace(ranked, blocks=blocks)  # nothing else is asked of it
    members = np.bincount(layout.item_group, minlength=layout.num_item_groups)
    pieces = [int(members[block // layout.num_slices]) for block in blocks]
    assert ranked.row_pieces.tolist() == [sum(pieces[:count]) for count in range(len(blocks) + 1)]
    assert ranked.largest_bytes == max((int(layout.block_bytes(precision)[block]) for block in blocks), default=0)
