"""The compiled loops equal their readable twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.ranking.top import MetricSums, evaluate, recall_ndcg, top_rows
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import signals_of_group, train_group
from fl_peel.training.update import LocalWork, holders_of
from tests.helpers import readable_twins as reference
from tests.helpers.examples import examples


def small_world(seed, num_items=23, dim=8, num_slices=2, groups=None, precision="fp32", num_devices=5, budget=None):
    rng = np.random.default_rng(seed)
    item_group = (
        np.arange(num_items, dtype=np.int32) if groups is None else np.arange(num_items, dtype=np.int32) % groups
    )
    layout = BlockLayout(item_group, dim, num_slices)
    table = rng.normal(size=(num_items, dim)).astype(np.float32)
    ranked = rank_blocks(layout, precision, rng.random(layout.num_blocks), table, budget)
    cutoffs = rng.integers(0, len(ranked.blocks) + 1, num_devices)
    users = rng.normal(size=(num_devices, dim)).astype(np.float32)
    lengths = rng.integers(0, 9, num_devices)
    train = UserItems(
        np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, num_items, lengths.sum()).astype(np.int32)
    )
    return rng, ranked, cutoffs.astype(np.int64), users, train


@examples(60)
@given(
    seed=st.integers(0, 10_000),
    num_slices=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([None, 5]),
    precision=st.sampled_from(["fp32", "fp16", "int8", "int4"]),
    epochs=st.integers(1, 3),
    batch_size=st.sampled_from([1, 3, 64]),
    num_negatives=st.integers(1, 4),
    loss=st.sampled_from(["bpr", "sampled-softmax"]),
    l2=st.sampled_from([0.0, 0.01]),
    max_norm=st.sampled_from([float("inf"), 0.05]),
    budget=st.sampled_from([None, 700]),
)
def test_cohort_training_equals_the_one_device_twin(
    seed, num_slices, groups, precision, epochs, batch_size, num_negatives, loss, l2, max_norm, budget
):
    _, ranked, cutoffs, users, train = small_world(
        seed, num_slices=num_slices, groups=groups, precision=precision, budget=budget
    )
    how = LocalTraining(epochs, batch_size, num_negatives, 0.05, 0.03, l2, loss, 0.7, max_norm)
    seeds = np.arange(len(cutoffs), dtype=np.uint64) + np.uint64(seed)
    trained, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how))
    total = np.zeros_like(update.sums)
    for i, cutoff in enumerate(cutoffs):
        user, step, mean_loss = reference.train_device(ranked, cutoff, users[i], train.row(i), int(seeds[i]), how)
        np.testing.assert_allclose(trained[i], user, rtol=1e-5, atol=1e-5)
        assert update.loss[i] == pytest.approx(mean_loss, rel=1e-4, abs=1e-6)
        total += reference.fixed_point(step)
    np.testing.assert_allclose(update.sums / FIXED_POINT, total / FIXED_POINT, rtol=1e-5, atol=5e-6)


@examples(40)
@given(
    seed=st.integers(0, 10_000),
    num_slices=st.sampled_from([1, 4]),
    groups=st.sampled_from([None, 6]),
    n=st.sampled_from([1, 3, 50]),
)
def test_top_rows_and_metrics_equal_the_twin(seed, num_slices, groups, n):
    rng, ranked, cutoffs, users, train = small_world(seed, num_slices=num_slices, groups=groups)
    best = top_rows(ranked, cutoffs, users, train, n)
    wanted = UserItems.from_pairs(np.repeat(np.arange(5), 4), rng.permutation(20), 5)
    recall, ndcg = recall_ndcg(ranked, best, wanted, n)
    for i, cutoff in enumerate(cutoffs):
        expected = reference.top_rows(ranked, cutoff, users[i], train.row(i), n)
        assert [row for row in best[i].tolist() if row >= 0] == expected
        items = ranked.items[expected].tolist()
        hits = [int(item in wanted.row(i)) for item in items]
        assert recall[i] == pytest.approx(sum(hits) / 4)
        ideal = sum(1 / np.log2(r + 2) for r in range(min(n, 4)))
        assert ndcg[i] == pytest.approx(sum(h / np.log2(r + 2) for r, h in enumerate(hits)) / ideal)


def test_ties_go_to_the_smaller_item_number():
    layout = BlockLayout(np.arange(4, dtype=np.int32), 2, 1)
    ranked = rank_blocks(layout, "fp32", np.array([1.0, 4.0, 2.0, 3.0]), np.ones((4, 2), np.float32))
    nobody = UserItems(np.zeros(2, np.int64), np.zeros(0, np.int32))
    best = top_rows(ranked, np.array([4]), np.ones((1, 2), np.float32), nobody, 3)
    assert ranked.items[best[0]].tolist() == [0, 1, 2]


def test_sums_do_not_depend_on_how_devices_are_spread():
    _, ranked, cutoffs, users, train = small_world(3, num_devices=40)
    seeds = np.arange(40, dtype=np.uint64)
    how = LocalTraining(epochs=2, num_negatives=2)
    trained, whole = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how))
    for nodes in (2, 7):
        parts = [np.arange(p, 40, nodes) for p in range(nodes)]
        results = [train_group(LocalWork(ranked, cutoffs[p], users[p], train.select(p), seeds[p], how)) for p in parts]
        assert (sum(r[1].sums for r in results) == whole.sums).all()
        assert (sum(r[1].holders for r in results) == whole.holders).all()
        for part, (mine, _) in zip(parts, results, strict=True):
            assert (mine == trained[part]).all()


def test_a_device_with_every_item_or_none_learns_nothing():
    _, ranked, _, users, _ = small_world(0, num_items=4, num_slices=1)
    everything = UserItems(np.array([0, 4, 4]), np.arange(4, dtype=np.int32))
    trained, update = train_group(
        LocalWork(ranked, np.array([4, 4]), users[:2], everything, np.zeros(2, np.uint64), LocalTraining())
    )
    assert (trained == users[:2]).all()
    assert not update.sums.any()
    assert update.examples.tolist() == [0, 0]
    assert update.holders.tolist() == [0, 0, 0, 0]  # nobody trained


def test_holders_by_hand():
    # cutoffs 0, 2, 3 over 3 blocks: blocks 0 and 1 are held by two devices, block 2 by one
    assert holders_of(np.array([0, 2, 3]), 3).tolist() == [2, 2, 1]


def test_signals_by_hand():
    """One device, three items in order of score; the second is a validation item."""
    layout = BlockLayout(np.arange(3, dtype=np.int32), 2, 1)
    table = np.array([[3, 0], [2, 0], [1, 0]], np.float32)
    ranked = rank_blocks(layout, "fp32", np.array([3.0, 2.0, 1.0]), table)
    user, cutoffs = np.array([[1, 0]], np.float32), np.array([3])
    nothing = UserItems(np.zeros(2, np.int64), np.zeros(0, np.int32))
    validation = UserItems(np.array([0, 1]), np.array([1], np.int32))
    best = top_rows(ranked, cutoffs, user, nothing, 2)
    hits, shown = signals_of_group(ranked, cutoffs, user, best, validation)
    discount = 1 / np.log2(3)  # second place
    np.testing.assert_allclose(shown / FIXED_POINT, [1, discount, 0], atol=1e-7)
    np.testing.assert_allclose(hits / FIXED_POINT, [0, discount, 0], atol=1e-7)


@given(st.permutations(list(range(6))))
def test_merging_metric_sums_is_order_free(order):
    rng = np.random.default_rng(0)
    recall, ndcg = rng.random(6), rng.random(6)
    cells = np.array([0, 1, 0, 1, 0, 1])
    parts = [MetricSums.from_devices(cells[[i]], 2, recall[[i]], ndcg[[i]], np.array([True])) for i in range(6)]
    total = parts[order[0]]
    for i in order[1:]:
        total = total + parts[i]
    whole = MetricSums.from_devices(cells, 2, recall, ndcg, np.ones(6, bool))
    assert (total.recall == whole.recall).all()
    assert total.devices.tolist() == [3, 3]
    assert total.mean()[0][0] == pytest.approx(recall[[0, 2, 4]].mean(), abs=1e-9)


def test_evaluation_uses_what_is_stored():
    """An item that only wins thanks to digits fp16 does not have cannot win on the device."""
    layout = BlockLayout(np.arange(2, dtype=np.int32), 2, 1)
    table = np.array([[0, 1], [1, 0]], np.float32)
    ranked = rank_blocks(layout, "fp32", np.array([2.0, 1.0]), table)
    user = np.array([[1.0, 1.00001]], np.float32)
    nothing = UserItems(np.zeros(2, np.int64), np.zeros(0, np.int32))
    wanted = UserItems(np.array([0, 1]), np.array([0], np.int32))
    assert evaluate(ranked, np.array([2]), user, nothing, wanted, 1)[0][0] == 1.0  # tie: the smaller item wins
    other = UserItems(np.array([0, 1]), np.array([1], np.int32))
    flipped = np.array([[1.00001, 1.0]], np.float32)
    assert evaluate(ranked, np.array([2]), flipped, nothing, other, 1)[0][0] == 0.0
