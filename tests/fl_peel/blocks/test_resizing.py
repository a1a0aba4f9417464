"""Stored embeddings that shrink and grow in place; a million budget changes; histograms of recall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.fleet.fleet import FleetBudgets, load_fleet, shipped_names
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.blocks.resizing import ElasticEmbedding, grow, listed, shrink
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes
from fl_peel.errors import ArtifactError, BudgetError
from fl_peel.ranking.bootstrap import Histogram
from fl_peel.scenario.settings import PRECISIONS
from tests.helpers.blocks import layouts, precisions, random_table, rows_of, seeds
from tests.helpers.examples import examples


def stored_of(layout, precision, blocks, table, user) -> StoredEmbedding:
    return StoredEmbedding.build(layout, precision, user, blocks, table)


@given(layouts, precisions, seeds, st.data())
@examples(80)
def test_shrinking_and_growing_give_what_choosing_from_scratch_gives(layout, precision, seed, data):
    """Whatever a device has seen; and what it reads is what is counted."""
    rng = np.random.default_rng(seed)
    table, user = random_table(rng, layout), rng.normal(size=layout.embedding_dim).astype(np.float32)
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), table)
    known = np.flatnonzero(rng.random(layout.num_items) < data.draw(st.sampled_from([0.0, 0.4, 1.0])))
    seen = rows_of(known.tolist())
    elastic = ElasticEmbedding(ranked, user, known, 3)
    whole = int(ranked.stored_bytes(np.array([layout.num_blocks]))[0])
    few, many = sorted(data.draw(st.tuples(*[st.integers(overhead_bytes(layout.slice_dim), whole)] * 2)))
    small, large = elastic.at(few), elastic.at(many)

    shrunk = shrink(large, layout, few)
    assert shrunk.to_bytes() == small.to_bytes()  # no message: from the device's own bytes alone

    # the server finds where the device's last block stands in the list
    place = int(np.flatnonzero(ranked.blocks == small.blocks[-1])[0]) + 1 if len(small.blocks) else 0
    grown, read = grow(small, layout, known, many, listed(layout, precision, ranked.blocks[place:], table), user)
    assert grown.to_bytes() == large.to_bytes()
    before, after = (ranked.serving_cutoffs(np.array([budget]), seen)[0] for budget in (few, many))
    assert ranked.after_last_without(before, ranked.unneeded(seen)).tolist() == [place]
    assert read == int(ranked.read_bytes(np.array([place]), after)[0])


def test_bytes_of_a_growth_by_hand():
    """Single items of two slices of 4 columns in int8: id 2, scale 2, codes 4. The device holds block 9, has seen item
    0 (blocks 0 and 1), and has room for one more: it passes over block 0, takes 3, closes the list at the id of 6.
    """
    layout = BlockLayout(np.arange(5, dtype=np.int32), 8, 2)
    table = np.ones((5, 8), np.float32)
    stored = stored_of(layout, "int8", np.array([9]), table, np.ones(8, np.float32))
    sent = []
    grown, read = grow(
        stored,
        layout,
        np.array([0]),
        44 + 16 + 2 * 8 + 7,
        noted(listed(layout, "int8", np.array([0, 3, 6, 4]), table), sent),
        np.ones(8, np.float32),
    )
    assert grown.blocks.tolist() == [9, 3]
    assert read == 8 + 8 + 2
    assert len(sent) == 3  # nothing behind it is asked for


def noted(blocks, into: list):
    """The same, one by one, each noted as it is read."""
    for block in blocks:
        into.append(block)
        yield block


def test_what_cannot_be_grown_or_shrunk_is_refused():
    layout = BlockLayout(np.arange(5, dtype=np.int32), 8, 2)
    stored = stored_of(layout, "int8", np.array([1]), np.ones((5, 8), np.float32), np.ones(8, np.float32))
    with pytest.raises(ArtifactError, match="block 2 takes 8 bytes, 5 came; ask for it again"):
        grow(stored, layout, np.zeros(0, int), 1000, [b"\x02\x00345"], np.ones(8, np.float32))
    with pytest.raises(BudgetError, match="budget 51 B does not hold header and user embedding"):
        shrink(stored, layout, overhead_bytes(4) - 1)  # 44 and a slice of the user embedding, 8
    assert len(shrink(stored, layout, overhead_bytes(4)).blocks) == 0
    other = BlockLayout(np.array([1, 0, 2, 3, 4], np.int32), 8, 2)
    for change in (
        lambda: shrink(stored, other, 1000),
        lambda: grow(stored, other, np.zeros(0, int), 1000, [], np.ones(8, np.float32)),
    ):
        with pytest.raises(ArtifactError, match=r"is of catalogue .*: download it anew"):
            change()


CHANGES = 1_000_000
SAMPLED = 40  # of them, stored for real


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_violation_in_a_million_budget_changes(precision):
    """A quarter of them at each precision; the lengths of a sample of real artefacts are what was counted."""
    rng = np.random.default_rng(PRECISIONS.index(precision))
    num_items, num_devices = 300, 500
    groups = np.concatenate([np.arange(120), rng.integers(0, 120, num_items - 120)])  # of unequal sizes
    layout = BlockLayout(groups.astype(np.int32), 16, 4)
    table = random_table(rng, layout)
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), table)
    seen = rows_of(*(np.flatnonzero(rng.random(num_items) < 0.3).tolist() for _ in range(num_devices)))
    whole = int(ranked.stored_bytes(np.array([len(ranked.blocks)]))[0])
    users = rng.normal(size=(num_devices, 16)).astype(np.float32)
    kept_before = None
    budgets_before = None
    for change in range(CHANGES // len(PRECISIONS) // num_devices):
        budgets = np.floor(rng.random(num_devices) ** 3 * 1.1 * whole).astype(np.int64)
        _, stored, kept = ranked.serving_cutoffs(budgets, seen)
        training = ranked.stored_bytes(ranked.cutoffs(budgets))
        holds, trains = (budgets >= overhead_bytes(columns) for columns in (4, 16))
        assert (stored <= budgets).all()
        assert (training[trains] <= budgets[trains]).all()
        if kept_before is not None:
            grown = budgets >= budgets_before
            assert (kept[grown] >= kept_before[grown]).all()
            assert (kept[~grown] <= kept_before[~grown]).all()
        kept_before, budgets_before = kept, budgets
        if change % (CHANGES // len(PRECISIONS) // num_devices // SAMPLED) == 0:
            i = int(rng.integers(num_devices))
            if holds[i]:
                real = len(ElasticEmbedding(ranked, users[i], seen.row(i)).at(int(budgets[i])).to_bytes())
                assert real == stored[i] <= budgets[i]


@pytest.mark.parametrize("name", shipped_names())
def test_no_violation_as_shipped_fleets_move(name):
    """Every step of ten rounds, and also the lowest budget within each round, which is what an update is cut to."""
    rng = np.random.default_rng(0)
    layout = BlockLayout(np.arange(2000, dtype=np.int32), 16, 1)
    ranked = rank_blocks(layout, "int8", rng.random(2000), random_table(rng, layout))
    budgets = FleetBudgets(load_fleet(name), 3, np.arange(500), layout.full_table_bytes)
    nothing = rows_of(*([] for _ in range(500)))
    for server_round in range(10):
        for budget in budgets.during(server_round):
            assert (ranked.serving_cutoffs(budget, nothing)[1] <= budget).all()


# ---------------------------------------------------------------- spread over devices


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 5), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
@examples(60)
def test_histograms_add_up_and_are_close_to_sorting(values, split, share):
    array = np.array(values)
    cut = min(split, len(array))
    cells, counted = np.zeros(len(array), np.int64), np.ones(len(array), bool)
    whole = Histogram.from_devices(cells, 1, array, counted)
    parts = [
        Histogram.from_devices(cells[part], 1, array[part], counted[part]) for part in (slice(cut), slice(cut, None))
    ]
    assert (parts[0].counts + parts[1].counts == whole.counts).all()
    assert (parts[0].sums + parts[1].sums == whole.sums).all()
    assert whole.counts.sum() == len(values)
    wanted = share * len(array)
    weights = np.clip(wanted - np.arange(len(array)), 0, 1)
    exact = float((np.sort(array) * weights).sum() / wanted)
    assert Histogram(whole.counts[0], whole.sums[0]).worst_mean(share) == pytest.approx(exact, abs=0.01 + 1e-6)
    assert whole.sums.sum() == np.rint(array * SUM_SCALE).sum()
