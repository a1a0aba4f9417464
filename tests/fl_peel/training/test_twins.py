"""The compiled loops equal their readable twins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.ranking.top import top_rows
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
