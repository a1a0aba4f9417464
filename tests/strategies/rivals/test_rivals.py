"""Rivals: bytes are those of real files, tables those of textbook methods, searches find what is planted."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.compression import (
    ENCODINGS,
    DenseTable,
    FactorTable,
    SparseTable,
    dense_bytes,
    factor_bytes,
    largest_dim,
    largest_rank,
    most_entries,
    number_type,
    place_bytes,
    sparse_bytes,
    stored_bytes,
    to_bytes,
)
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.blocks.stored import StoredEmbedding, overhead_bytes
from fl_peel.data.interactions import collected, split
from fl_peel.kernels.rivals import pooled_epoch
from fl_peel.pretraining.central_training import pretrain
from fl_peel.pretraining.clusters import user_groups
from fl_peel.pretraining.losses import BatchLoss
from fl_peel.scenario.settings import PRECISIONS, LocalTraining
from strategies.rivals import compressed as pep_module
from strategies.rivals import server
from strategies.rivals.base import (
    NOTHING_FITS,
    SPLITS,
    UNLIMITED,
    GroupStarts,
    Material,
    Request,
    best_lists,
    block_option,
    compete,
    decoded_blocks,
    quality,
    ranked_blocks,
    whole_table,
)
from strategies.rivals.central import (
    CentralTraining,
    PrunedTable,
    Rates,
    grid,
    refine_centrally,
    train_nested,
)
from strategies.rivals.compressed import Pep, entries_about
from strategies.rivals.rule import Costs, Rule, SearchSettings, evolve
from strategies.rivals.server import (
    CachedList,
    Ease,
    FullTable,
    ItemNeighbours,
    ease_weights,
    keep_popular_items,
    neighbour_weights,
)
from strategies.rivals.table_rivals import (
    FixedTiers,
    MagnitudePruning,
    SmallerDimension,
    TruncatedSvd,
    UniformWidth,
    best_items,
    narrowed,
    score_metric,
    singular_factors,
)
from tests.helpers.examples import examples
from tests.helpers.planted import planted_interactions
from tests.strategies.rivals.conftest import CONFIG, read_head

FULL_BYTES = 4 * 60 * 8


def random_table(seed, num_items, dim):
    return np.random.default_rng(seed).normal(size=(num_items, dim)).astype(np.float32)


def requests(*shares, precisions=("fp32", "int8", "int4"), overhead=60):
    """Shares of the full table on top of the 44 bytes of header and 16 of user embedding, which are all a tiny table
    would be allowed otherwise."""
    return [Request(p, share, overhead + round(share * FULL_BYTES)) for p in precisions for share in shares]


def test_rows_of_one_width_are_what_peel_keeps_with_one_slice(material):
    """The bytes of an artefact of one slice, as many of the first items by exposure, scored by the same columns."""
    (request,) = requests(0.5, precisions=("int8",))
    for share, dim in ((1.0, 8), (0.5, 4)):
        (option,) = UniformWidth(dims=(share,)).options(material, [request])
        table, users = narrowed(material, dim)
        layout, order = BlockLayout(np.arange(60, dtype=np.int32), dim, 1), best_items(material, "exposure")
        weights = np.empty(60)
        weights[order] = np.arange(60, 0, -1.0)
        ranked = rank_blocks(layout, "int8", weights, table)
        cutoffs, stored, _ = ranked.serving_cutoffs(np.full(120, request.budget_bytes), material.seen)
        np.testing.assert_array_equal(option.test_cutoffs, cutoffs)
        assert (stored <= option.stored).all()
        assert option.stored.max() <= request.budget_bytes
        np.testing.assert_array_equal(option.ranked.table, ranked.table)
        np.testing.assert_array_equal(option.ranked.items, ranked.items)
        np.testing.assert_array_equal(option.users, users)
    assert not list(UniformWidth(dims=(1.0,)).options(material, [Request("int8", 0.0, 60)]))


# bytes


@examples(30)
@given(num_items=st.integers(1, 40), dim=st.integers(1, 9), precision=st.sampled_from(PRECISIONS))
def test_bytes_of_dense_tables_and_factors_are_those_of_the_file(num_items, dim, precision):
    table = random_table(0, num_items, dim)
    dense = DenseTable.from_table(table, precision)
    data = to_bytes(dense, np.ones(dim, np.float32))
    assert len(data) == stored_bytes(dense) == dense_bytes(num_items, dim, precision)
    assert read_head(data) == ("dense", precision, [dim])
    product = FactorTable(dense, DenseTable.from_table(random_table(1, dim, 5), precision))
    data = to_bytes(product, np.ones(5, np.float32))
    assert len(data) == stored_bytes(product) == factor_bytes(num_items, dim, 5, precision)
    assert read_head(data) == ("factors", precision, [dim, 5])
    assert np.frombuffer(data, "<f2", 5, 44).tolist() == [1.0] * 5


def read_sparse(data):
    """Another reader of the file: what a device would do with its bytes alone."""
    encoding, precision, (num_items, dim, entries, filled) = read_head(data)
    value = {"fp32": "<f4", "fp16": "<f2", "int8": "i1", "int4": "u1"}[precision]
    scale_bytes = 2 * dim if precision in ("int8", "int4") else 0
    code_bytes = (entries + 1) // 2 if precision == "int4" else entries * np.dtype(value).itemsize
    places = data[44 + 2 * dim : len(data) - scale_bytes - code_bytes]
    codes = np.frombuffer(data[len(data) - scale_bytes - code_bytes : len(data) - scale_bytes], value)
    scales = np.frombuffer(data[len(data) - scale_bytes :], "<f2")

    def take(count, below):
        nonlocal places
        part = np.frombuffer(places, number_type(below), count).astype(np.int64)
        places = places[count * number_type(below).itemsize :]
        return part

    if encoding == "bitmap":
        rows, columns = np.divmod(np.flatnonzero(np.unpackbits(take(-1, 256).astype(np.uint8))), dim)
        places = b""
    elif encoding == "pairs":
        rows, columns = take(entries, num_items), take(entries, dim)
    else:
        owners = take(filled, num_items) if encoding == "rows" else np.arange(num_items)
        rows, columns = np.repeat(owners, take(len(owners), dim + 1)), take(entries, dim)
    assert not places
    if precision == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=1).ravel()[: len(rows)].astype(np.int64) - 8
    values = codes.astype(np.float32)
    if scale_bytes:
        values = values * scales.astype(np.float32)[columns]
    table = np.zeros((num_items, dim), np.float32)
    table[rows, columns] = values
    return table


@examples(60)
@given(
    num_items=st.sampled_from([1, 7, 300]),
    dim=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    rows_share=st.sampled_from([0.02, 1.0]),
    precision=st.sampled_from(PRECISIONS),
)
def test_bytes_of_sparse_tables_are_those_of_a_file_that_says_it_all(num_items, dim, density, rows_share, precision):
    rng = np.random.default_rng(7)
    table = random_table(1, num_items, dim)
    kept = (rng.random(table.shape) < density) & (rng.random((num_items, 1)) < rows_share)
    stored = SparseTable.from_table(table, kept, precision)
    data = to_bytes(stored, np.zeros(dim, np.float32))
    filled = int(kept.any(axis=1).sum())
    assert len(data) == stored_bytes(stored) == sparse_bytes(int(kept.sum()), filled, num_items, dim, precision)
    items, rows = stored.decoded()
    assert items.tolist() == np.flatnonzero(kept.any(axis=1)).tolist()
    back = read_sparse(data)
    np.testing.assert_array_equal(back[items], rows)
    assert (back[~kept] == 0).all()
    # an entry is off by at most half a step of its column's grid, or by fp16 rounding
    step = {"fp32": 0.0, "fp16": 0.004, "int8": 0.51 * 5 / 127, "int4": 0.51 * 5 / 7}[precision]
    assert np.abs(back - table)[kept].max(initial=0) <= step


def test_each_encoding_is_the_cheapest_somewhere():
    # 1000 x 64 entries, (entries, rows): a few anywhere; many in all rows; some in a few rows; half of all
    places = {(10, 10): "pairs", (3000, 900): "counts", (300, 10): "rows", (32_000, 1000): "bitmap"}
    for (entries, filled), name in places.items():
        assert min(ENCODINGS, key=lambda e: place_bytes(e, entries, filled, 1000, 64)) == name
    # by hand: pairs 10 x (2 + 1); counts 1000 + 3000; rows 10 x (2 + 1) + 300; bitmap 64000 / 8
    assert place_bytes("pairs", 10, 10, 1000, 64) == 30
    assert place_bytes("counts", 3000, 900, 1000, 64) == 4000
    assert place_bytes("rows", 300, 10, 1000, 64) == 330
    assert place_bytes("bitmap", 32_000, 1000, 1000, 64) == 8000


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_largest_that_fits_fits_and_the_next_does_not(precision):
    for budget in (500, 1000, 5000, 20_000):
        dim = largest_dim(100, precision, budget, 64)
        assert dim == 0 or dense_bytes(100, dim, precision) <= budget
        assert dim == 64 or dense_bytes(100, dim + 1, precision) > budget
        rank = largest_rank(100, 16, precision, budget)
        assert rank == 0 or factor_bytes(100, rank, 16, precision) <= budget
        assert rank == 16 or factor_bytes(100, rank + 1, 16, precision) > budget
        order = np.random.default_rng(0).permutation(1600)
        count = most_entries(order, 100, 16, precision, budget)
        filled = len(np.unique(order[: count + 1] // 16))
        assert count == 0 or sparse_bytes(count, len(np.unique(order[:count] // 16)), 100, 16, precision) <= budget
        assert count == 1600 or sparse_bytes(count + 1, filled, 100, 16, precision) > budget


# textbook methods


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_factors_are_the_truncated_svd(rank):
    table = random_table(0, 30, 6)
    left, right = singular_factors(table)
    u, s, v = np.linalg.svd(table.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(left[:, :rank] @ right[:rank], (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_by_scores_are_the_truncated_svd_of_the_scores(rank):
    table, users = random_table(0, 30, 6), random_table(1, 50, 6) * np.array([5, 1, 1, 1, 0.2, 0.2], np.float32)
    left, right = singular_factors(table, score_metric(users))
    u, s, v = np.linalg.svd(users.astype(np.float64) @ table.T, full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
    np.testing.assert_allclose(users @ (left[:, :rank] @ right[:rank]).T, wanted, atol=2e-3)


def test_factors_by_scores_of_few_users_can_be_stored():
    """Fewer users than columns leave directions that no score sees; what the inverse makes of them is not stored."""
    table, users = random_table(0, 30, 8), random_table(1, 3, 8)
    left, right = singular_factors(table, score_metric(users))
    assert max(np.abs(left).max(), np.abs(right).max()) < 100
    np.testing.assert_allclose(users @ (left @ right).T, users @ table.T, atol=1e-3)


def test_pruning_keeps_the_largest_entries(material):
    budget = 500
    (option,) = MagnitudePruning().options(material, [Request("fp16", 0.1, budget)])
    table = material.pretrained.items
    count = int((option.ranked.table != 0).sum())
    largest = np.sort(np.abs(table).ravel())[::-1]
    kept = np.abs(option.ranked.table[option.ranked.table != 0])
    assert kept.min() >= largest[count - 1] - 1e-3
    assert int(option.stored[0]) <= budget
    # one entry more would cost at least 3 bytes
    assert int(option.stored[0]) + 8 > budget


def test_smaller_dimension_trains_the_widest_that_fits(material):
    # int8: 44 + 2d + 60 (d + 2) <= 660 -> d = 8 (660 - 44 - 120 = 496 = 62 x 8); fp32: 44 + 242 > 285
    options = list(SmallerDimension().options(material, [Request("int8", 0.5, 660), Request("fp32", 0.1, 285)]))
    assert [option.label for option in options] == ["8 dimensions"]
    assert int(options[0].stored[0]) == 660
    assert quality(options[0], material, "validation")["recall@20"] > 0.5


def test_every_prefix_of_nested_tables_ranks_well(material):
    tables = train_nested(material.given, 60, CONFIG, [2, 4, 8], seed=0)
    request = Request("fp32", 1.0, 10_000)

    def recall(width):
        items = np.ascontiguousarray(tables.items[:, :width])
        users = np.ascontiguousarray(tables.users[:, :width])
        return quality(whole_table(request, DenseTable.from_table(items, "fp32"), users, 0.0), material, "validation")[
            "recall@20"
        ]

    # two tastes need two directions; 20 of 60 items at random would find a third
    assert recall(2) > 0.5
    assert recall(8) > 0.5


def test_fixed_tiers_leave_a_larger_budget_unused(material):
    # tiers of 1, 2 and 4 columns in fp32: 44 + 242, + 484, + 968
    rows = compete(
        FixedTiers(), material, [Request("fp32", s, b) for s, b in ((0.1, 286), (0.2, 527), (0.3, 9999), (0.05, 285))]
    )
    assert [row["stored_bytes_max"] for row in rows] == [286, 286, 1012, 0]
    assert rows[3]["note"] == NOTHING_FITS


# learned pruning


@pytest.mark.parametrize("count", [400, 60, 7])
def test_pep_reaches_the_sparsity_asked_for(material, count):
    loss_of = BatchLoss(material.given, 60, CONFIG)
    pruned = PrunedTable(material.users, material.pretrained.items, loss_of, 0.01)
    pruned.train([count] * 3, [torch.Generator().manual_seed(n) for n in range(3)])
    with torch.no_grad():
        assert int((pruned.table(count) != 0).sum()) == count
    # thresholds were learned: those of items and dimensions differ now
    assert float(pruned.log_rows.detach().std()) > 0
    assert float(pruned.log_columns.detach().std()) > 0


def test_pep_trains_while_it_prunes(material):
    """With 60 of 480 entries left, the loss of what is left falls."""
    loss_of = BatchLoss(material.given, 60, CONFIG)
    pruned = PrunedTable(material.users, material.pretrained.items, loss_of, 0.01)
    (batch,) = loss_of.batches(torch.Generator())  # everybody

    def loss():
        with torch.no_grad():
            return float(loss_of(pruned.users[batch.users], pruned.table(60), batch, torch.Generator()))

    before = loss()
    pruned.train([60] * 20, [torch.Generator().manual_seed(n) for n in range(20)])
    assert loss() < before - 0.05


def test_pep_serves_the_largest_budgets_first(material):
    wanted = requests(0.05, 0.3, precisions=("fp16", "int8"))
    options = list(Pep(epochs=1, rates=(0.1,), retraining=()).options(material, wanted))
    about = [entries_about(option.request, 60, 8) for option in options]
    assert about == sorted(about, reverse=True)
    assert len(options) == 4


def test_what_pep_leaves_is_retrained_from_where_it_began(material, monkeypatch):
    """The other entries stay zero; with no steps, what is left has its first values; with steps, their loss falls."""
    (request,) = requests(0.3, precisions=("fp16",))

    def options(steps):
        pep = Pep(epochs=1, rates=(0.1,), retraining=(1.0,), steps=steps)
        return list(pep.options(material, [request]))

    pruned, first = options(0)
    _, trained = options(60)
    kept = pruned.ranked.table != 0
    assert ((trained.ranked.table != 0) <= kept).all()
    began = material.pretrained.items[first.ranked.items].astype(np.float16)
    np.testing.assert_array_equal(first.ranked.table[kept], began[kept])
    assert not np.array_equal(trained.ranked.table, first.ranked.table)
    loss_of = BatchLoss(material.given, 60, CONFIG)
    (batch,) = loss_of.batches(torch.Generator())  # everybody
    losses = []
    for option in (first, trained):
        table = np.zeros((60, 8), np.float32)
        table[option.ranked.items] = option.ranked.table
        users = torch.from_numpy(option.users)[batch.users]
        losses.append(float(loss_of(users, torch.from_numpy(table), batch, torch.Generator())))
    assert losses[1] < losses[0] - 0.05
    # trained as what it is: the loss sees the entries kept and no other
    seen = []
    monkeypatch.setattr(
        pep_module, "descend", lambda users, parts, compose, *rest, **more: seen.append(compose) or 0 / 0
    )
    with pytest.raises(ZeroDivisionError):
        options(0)
    mask = seen[0]([torch.ones(60, 8)]).numpy()
    np.testing.assert_array_equal(mask[pruned.ranked.items], kept)
    assert mask.sum() == kept.sum()
    assert "retrained at 1" in trained.label


# RULE


def test_a_subset_that_fits_passes_over_what_does_not():
    # costs in order 5, 4, 1, 1 with room for 7: 5, then 4 is too large, 1, 1
    genes = Costs(np.array([4, 1, 5, 1])).fitted(np.array([2, 0, 1, 3]), 7)
    assert genes.tolist() == [False, True, True, True]


def test_a_subset_pays_for_the_user_embedding_up_to_its_last_slice():
    # three slices, 2 bytes each behind the first: block 0 takes 1, block 5 of the last slice 1 + 4, block 4 then 1
    costs, order = Costs(np.ones(6, np.int64), 3, 2), np.array([0, 5, 4, 3, 1, 2])
    assert costs.fitted(order, 6).tolist() == [True, False, False, False, False, True]
    assert costs.fitted(order, 5).tolist() == [True, False, False, True, True, False]  # 5 and 4 are too wide
    assert costs.fitted(order, 9).sum() == 5
    assert costs.fitted(order, 10).all()


def test_its_subsets_leave_no_room_for_columns_that_no_block_has():
    layout = BlockLayout(np.arange(50, dtype=np.int32), 16, 4)
    costs = Costs.from_layout(layout, "int8")
    narrow = costs.fitted(np.arange(0, 200, 4), 80)
    user = np.ones(16, np.float32)
    stored = StoredEmbedding.build(layout, "int8", user, np.flatnonzero(narrow), np.ones((50, 16), np.float32))
    assert len(stored.to_bytes()) == 80 + overhead_bytes(4)


def test_evolution_finds_planted_blocks():
    """20 of 200 blocks are worth something, no order tells which; 20 fit. Random subsets hold 2 of them."""
    rng = np.random.default_rng(0)
    worth = np.zeros(200)
    worth[rng.permutation(200)[:20]] = 1.0
    costs = Costs(np.full(200, 10))
    search = SearchSettings(population=40, generations=40, ranked=10)
    best, ranked = evolve(costs, 205, [np.arange(200)], lambda genes: float(worth[genes].sum()), search, seed=1)
    assert best.sum() == 20
    random = [worth[rng.permutation(200)[:20]].sum() for _ in range(ranked)]
    assert worth[best].sum() > max(random) + 2


def test_rule_beats_random_blocks_on_validation(material):
    wanted = requests(0.1, 0.3, precisions=("int8",))
    rows = compete(Rule(search=SearchSettings(population=16, generations=4, ranked=4)), material, wanted)
    for request, row in zip(wanted, rows, strict=True):
        layout = Rule().layout(material, request, wanted)
        decoded = decoded_blocks(layout, "int8", material.pretrained.items)
        recalls = []
        for seed in range(20):
            order = np.random.default_rng(seed).permutation(layout.num_blocks)
            option = block_option(request, ranked_blocks(layout, "int8", order, decoded), material, 0.0)
            recalls.append(quality(option, material, "validation")["recall@20"])
        assert row["validation"]["recall@20"] > max(recalls)
        assert row["seconds"] > 0
        assert row["note"] == f"{layout.num_blocks} blocks, {row['trials']} subsets ranked"


# choosing, measuring


def test_options_are_chosen_on_validation_and_the_rest_is_not_told(material):
    request = Request("fp32", 1.0, 10_000)
    good = whole_table(request, DenseTable.from_table(material.pretrained.items, "fp32"), material.users, 1.0, "good")
    bad = whole_table(request, DenseTable.from_table(-material.pretrained.items, "fp32"), material.users, 2.0, "bad")

    class Both:
        name = "both"

        def options(self, material, requests):
            yield from (bad, good, bad)

    (row,) = compete(Both(), material, [request])
    assert row["note"] == "good"
    assert row["seconds"] == 5.0  # all that was tried for it
    assert row["trials"] == 3
    assert row["test"] == quality(good, material, "test")


def test_no_rival_is_above_any_budget(material):
    shares = (0.0, 0.1, 0.3)
    rivals = [SmallerDimension(), TruncatedSvd(), MagnitudePruning(), Pep(epochs=1, rates=(0.1,)), FixedTiers()]
    for rival in [*rivals, Rule(search=SearchSettings(population=8, generations=1, ranked=1))]:
        wanted = requests(*shares, precisions=("int8",))
        rows = compete(rival, material, wanted)
        assert [(row["precision"], row["share"]) for row in rows] == [(r.precision, r.share) for r in wanted]
        assert all(0 <= row["stored_bytes_max"] <= row["budget_bytes"] for row in rows)
        assert all((row["stored_bytes_max"] == 0) == (row["test"]["recall@20"] == 0) for row in rows)


def test_an_option_above_the_budget_is_a_bug_that_shows(material):
    class Greedy:
        name = "greedy"

        def options(self, material, requests):
            table = DenseTable.from_table(material.pretrained.items, "fp32")
            yield whole_table(requests[0], table, material.users, 0.0)

    with pytest.raises(AssertionError, match="greedy: above the budget"):
        compete(Greedy(), material, [Request("fp32", 0.1, 500)])


def test_devices_without_collected_data_are_served_too():
    data = planted_interactions(3, 60, 30, 2, 12)
    splits = split(data, seed=0, validation_share=0.2, test_share=0.25)
    some, has_data = collected(splits.train, seed=0, share=0.5, mode="users")
    pretrained = pretrain(some, 60, CONFIG, seed=0)
    material = Material(some, has_data, splits, pretrained, CONFIG, 0)
    assert (pretrained.users[~has_data] == 0).all()
    assert (np.linalg.norm(material.users[~has_data], axis=1) > 0).all()
    option = whole_table(
        Request("fp32", 1.0, 9999), DenseTable.from_table(pretrained.items, "fp32"), material.users, 0.0
    )
    alone = np.flatnonzero(~has_data & (splits.test.counts() > 0))
    assert quality(option, material, "test", alone)["recall@20"] > 0.5


# central refinement


def test_a_step_of_central_training_is_the_gradient():
    """Two items, the user has the first: the negative is always the second. BPR: d/du = -g (i - j) / t."""
    table = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    users = np.array([[0.5, 1.0]], np.float32)
    t, rate, user_rate = 0.5, 0.1, 0.2
    gap = (0.5 - 2.0) / t
    g = 1 / (1 + np.exp(gap))
    expected_user = users[0] + user_rate * g / t * (table[0] - table[1])
    expected_table = table + rate * g / t * np.array([users[0], -users[0]])
    for softmax in (False, True):  # with one negative they are the same
        new_table, new_users = table.copy(), users.copy()
        args = np.array([0, 1]), np.array([0]), np.array([0]), np.array([0]), 1, 1
        loss = pooled_epoch(new_table, new_users, *args, rate, user_rate, 0.0, softmax, t, np.zeros((1, 1), np.float32))
        assert loss == pytest.approx(np.log1p(np.exp(-gap)), rel=1e-5)
        np.testing.assert_allclose(new_users[0], expected_user, rtol=1e-5)
        np.testing.assert_allclose(new_table, expected_table, rtol=1e-5)


def test_the_first_adagrad_step_has_the_size_of_the_rate():
    table, users = np.array([[1.0], [2.0]], np.float32), np.array([[0.5]], np.float32)
    moments = np.zeros_like(table)
    args = np.array([0, 1]), np.array([0]), np.array([0]), np.array([0]), 1, 1
    pooled_epoch(table, users, *args, 0.1, 0.0, 0.0, True, 1.0, moments)
    np.testing.assert_allclose(table, [[1.1], [1.9]], rtol=1e-4)
    assert (moments > 0).all()


def test_central_refinement_never_ends_below_its_start_on_validation(material):
    groups = user_groups(material.users, material.has_data, count=2, min_size=4, seed=0)
    local = LocalTraining(num_negatives=8, learning_rate=0.02, loss="sampled-softmax", temperature=0.3)
    result = refine_centrally(material, groups, local, 4)
    start = whole_table(
        Request("fp32", 1.0, 9999), DenseTable.from_table(material.pretrained.items, "fp32"), material.users, 0.0
    )
    assert result["validation"]["recall@20"] >= quality(start, material, "validation")["recall@20"] - 1e-9
    assert result["rates"]["optimizer"] in ("sgd", "adagrad")
    assert 0 <= result["epochs"] <= 4
    if result["epochs"] == 0:
        assert result["test"] == pytest.approx(quality(start, material, "test"))


def test_central_training_lowers_the_loss_and_keeps_groups_apart(material):
    local = LocalTraining(num_negatives=8, learning_rate=0.02, loss="sampled-softmax", temperature=0.3)
    members = np.arange(10)
    tables = [
        (table.copy(), users.copy())
        for table, users in CentralTraining(
            material, local, Rates("sgd", 0.02, 0.02), 3, lambda group: material.pretrained.items
        ).tables(members, 0)
    ]
    assert len(tables) == 4
    assert tables[0][1].shape == (10, 8)
    liked = [(users @ table.T)[0, material.splits.train.row(0)].mean() for table, users in tables]
    assert liked[3] > liked[0]
    np.testing.assert_array_equal(tables[0][0], material.pretrained.items)  # the pretrained table is left as it was
    assert len(grid(local)) == 8


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    return sp.csr_matrix((rng.random((40, 15)) < 0.3).astype(np.float32))


def test_ease_is_the_ridge_regression_without_a_diagonal(matrix):
    """Column j of B minimizes |x_j - X b|^2 + lambda |b|^2 with b_j = 0: solved for each column by itself."""
    weights, dense = ease_weights(matrix, 7.0), matrix.toarray().astype(np.float64)
    assert weights.dtype == np.float32
    for j in range(15):
        others = np.delete(np.arange(15), j)
        part = dense[:, others]
        wanted = np.linalg.solve(part.T @ part + 7.0 * np.eye(14), part.T @ dense[:, j])
        np.testing.assert_allclose(weights[others, j], wanted, atol=1e-5)
        assert weights[j, j] == 0


def test_the_triangle_is_mirrored_across_blocks():
    square = np.asfortranarray(np.tril(np.arange(49.0).reshape(7, 7)).astype(np.float32))
    whole = np.tril(square) + np.tril(square, -1).T
    server._mirror(square, block=3)
    np.testing.assert_array_equal(square, whole)


def test_neighbours_by_hand():
    """Items 0, 1, 2 with users {0,1,2,3}, {0,1}, {3}: cosines 2 / sqrt(8), 1 / sqrt(4), 0."""
    rows = sp.csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1]], np.float32))
    near = neighbour_weights(rows, 2, 1.0).toarray()
    a, b = 2 / (8**0.5 + 1), 1 / (2 + 1)
    np.testing.assert_allclose(near, [[0, a, b], [a, 0, 0], [b, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(neighbour_weights(rows, 1, 1.0).toarray(), [[0, a, 0], [a, 0, 0], [b, 0, 0]], rtol=1e-6)


def test_neighbours_in_blocks_are_the_same(matrix):
    whole, blocks = (neighbour_weights(matrix, 4, 10.0, block=size) for size in (100, 4))
    np.testing.assert_array_equal(whole.toarray(), blocks.toarray())
    assert np.diff(whole.indptr).max() == 4
    assert (whole.diagonal() == 0).all()


def test_lists_are_the_best_scores_ties_to_the_smaller_item(material):
    scores = np.random.default_rng(0).integers(0, 9, (120, 60)).astype(np.float32)
    scores[:, 7] = -np.inf
    lists = best_lists(lambda some: scores[some], material.seen, 60)
    for user in range(120):
        free = [i for i in range(60) if i != 7 and i not in set(material.seen.row(user).tolist())]
        wanted = sorted(free, key=lambda i: (-scores[user, i], i))[:20]
        assert lists[user].tolist() == wanted + [-1] * (20 - len(wanted))


@pytest.mark.parametrize("rival", [Ease(), ItemNeighbours(neighbours=(5, 20), shrinkages=(0.0, 5.0))])
def test_ceilings_rank_well_and_leave_out_what_is_known(material, rival):
    options = list(rival.options(material, [UNLIMITED]))
    assert len(options) == (6 if isinstance(rival, Ease) else 4)
    best = max(quality(option, material, "validation")["recall@20"] for option in options)
    assert best > 0.5  # 20 of 60 items at random would find a third
    for part, known in (("validation", material.splits.train), ("test", material.seen)):
        for user in range(120):
            assert not set(options[0].lists[part][user].tolist()) & set(known.row(user).tolist())
    assert rival.ceiling


def test_ease_needs_its_memory_and_says_so(material, monkeypatch):
    class Memory:
        available = 5 * 60**2 - 1

    monkeypatch.setattr(server.psutil, "virtual_memory", lambda: Memory)
    (row,) = compete(Ease(), material, [UNLIMITED])
    assert row["note"] == "not done: needs 0.0 GB of free memory"
    assert (row["trials"], row["stored_bytes_max"]) == (0, 0)
    Memory.available = 5 * 60**2
    assert compete(Ease(), material, [UNLIMITED])[0]["trials"] == 6


def test_a_large_catalogue_chooses_lambda_on_its_popular_items(material):
    part = keep_popular_items(material, 40)
    popularity = material.splits.train.popularity(60)
    kept = np.sort(np.argsort(-popularity, kind="stable")[:40])
    assert part.num_items == 40
    assert part.splits.train.popularity(40).tolist() == popularity[kept].tolist()
    inside = [quality(Ease().solved(part, ridge), part, "validation")["recall@20"] for ridge in Ease().ridges]
    ridge = Ease().ridges[int(np.argmax(inside))]
    (row,) = compete(Ease(most_items=40), material, [UNLIMITED])
    assert row["note"] == f"lambda {ridge:g}, chosen on 40 items"
    assert row["trials"] == 6
    assert row["test"] == quality(Ease().solved(material, ridge), material, "test")


def test_a_cached_list_is_worth_the_table_it_came_from(material):
    starts = GroupStarts(np.zeros(120, np.int64), lambda group: material.pretrained.items)
    grouped = dataclasses.replace(material, starts=starts)
    (plain,) = FullTable().options(material, [UNLIMITED])
    budgets = [Request("fp32", 0.1, bytes_) for bytes_ in (0, 7, 20, 45, 5000)]
    rows = compete(CachedList(tables=(FullTable(),)), grouped, budgets)
    assert [row["stored_bytes_max"] for row in rows] == [0, 7, 20, 45, 60]  # a byte an item
    assert rows[2]["test"] == rows[4]["test"] == quality(plain, material, "test")
    assert 0 < rows[1]["test"]["recall@20"] < rows[2]["test"]["recall@20"]
    # the best of several tables, each counted
    (row,) = compete(CachedList(), grouped, budgets[3:4])
    assert row["trials"] == 2 + 6
    options = list(Ease().options(material, [UNLIMITED]))
    best = max(quality(option, material, "validation")["recall@20"] for option in [plain, *options])
    assert row["validation"]["recall@20"] == best
    assert CachedList().ceiling


def test_an_item_number_takes_two_bytes_from_257_items_on(material):
    wide = dataclasses.replace(material.splits, num_items=300)
    table = np.concatenate([material.pretrained.items, np.zeros((240, 8), np.float32)])
    large = dataclasses.replace(material, splits=wide, pretrained=dataclasses.replace(material.pretrained, items=table))
    (option,) = CachedList(tables=(FullTable(),)).options(large, [Request("fp32", 0.1, 40)])
    assert option.stored.tolist() == [40] * 120
    assert option.label == "20 items of full-table"
    assert (option.lists["test"] >= 0).all()
    assert set(option.lists) == set(SPLITS)
