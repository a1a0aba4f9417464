"""Compiled loops: what must hold beside equality with the readable twins of ``test_engine_twins``."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.kernels.lanes import add_fixed
from fl_peel.ranking.top import top_rows
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from tests.helpers import readable_twins as reference


def world(seed, num_items=150, dim=6, num_slices=1, num_devices=40, item_groups=None):
    rng = np.random.default_rng(seed)
    item_group = np.arange(num_items, dtype=np.int32) % (item_groups or num_items)
    layout = BlockLayout(item_group, dim, num_slices)
    ranked = rank_blocks(
        layout, "int8", rng.random(layout.num_blocks), rng.normal(size=(num_items, dim)).astype(np.float32)
    )
    lengths = rng.integers(1, 9, num_devices)
    train = UserItems(
        np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, num_items, lengths.sum()).astype(np.int32)
    )
    cutoffs = rng.integers(1, len(ranked.blocks) + 1, num_devices).astype(np.int64)
    return rng, ranked, cutoffs, rng.normal(size=(num_devices, dim)).astype(np.float32), train


@pytest.mark.parametrize("num_slices", [1, 3])
@pytest.mark.parametrize("learning_rate", [30.0, 3000.0])
def test_sums_beyond_32_bits_are_exact(num_slices, learning_rate):
    """2**31 units are 128: at rate 30 a row's sum passes it after some devices, at 3,000 with one step."""
    _, ranked, cutoffs, users, _ = world(1, num_items=5, num_slices=num_slices)
    cutoffs[:] = len(ranked.blocks)
    train = UserItems(np.arange(41, dtype=np.int64), np.zeros(40, np.int32))  # everybody likes item 0
    how = LocalTraining(learning_rate=learning_rate)
    seeds = np.arange(40, dtype=np.uint64)
    _, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, how))
    alone = [
        train_group(
            LocalWork(ranked, cutoffs[i : i + 1], users[i : i + 1], train.select(np.array([i])), seeds[i : i + 1], how)
        )[1]
        for i in range(40)
    ]
    assert np.abs(update.sums).max() > 2**31
    assert update.is_wide.any()
    assert (update.sums == sum(one.sums for one in alone)).all()
    exact = sum(reference.train_device(ranked, cutoffs[0], users[i], train.row(i), i, how)[1] for i in range(40))
    np.testing.assert_allclose(update.sums / FIXED_POINT, exact, rtol=1e-5, atol=1e-3)
    changed = update.changed()
    total = np.zeros_like(update.sums)
    total[changed["rows"]] += changed["sums"]
    total[changed["wide_rows"]] += changed["wide_sums"]
    assert (total == update.sums).all()


@pytest.mark.parametrize("dim", [6, 16, 40, 64])
@pytest.mark.parametrize("how", [LocalTraining(l2=0.1), LocalTraining(loss="bpr", num_negatives=3, temperature=0.5)])
def test_a_device_that_takes_one_step_says_what_it_would_say_of_copied_rows(dim, how):
    """With a bound that nothing reaches rows are copied, and changes taken at the end: the same to the last bit."""
    _, ranked, cutoffs, users, train = world(3, dim=dim)
    seeds = np.arange(len(cutoffs), dtype=np.uint64)
    work = LocalWork(ranked, cutoffs, users, train, seeds, how)
    at_once, update = train_group(work)
    copied, other = train_group(replace(work, how=replace(how, max_norm=1e30)))
    assert (at_once == copied).all()
    assert (at_once != users).any()
    for name in ("sums", "tallies", "is_wide", "loss", "examples", "touched_pieces"):
        assert (getattr(update, name) == getattr(other, name)).all(), name
    np.testing.assert_allclose(update.norms, other.norms, rtol=1e-6)


def test_one_company_leaves_no_trace_in_the_next():
    """What is noted of a device's rows is gone before the next one, also where it had nothing to learn."""
    _, ranked, cutoffs, users, train = world(4, num_items=6)
    cutoffs[::2] = 1  # whoever has but one item, and likes it, learns nothing
    seeds, how = np.arange(len(cutoffs), dtype=np.uint64), LocalTraining(epochs=2, batch_size=2, num_negatives=2)
    work = LocalWork(ranked, cutoffs, users, train, seeds, how)
    together, update = train_group(work)
    alone = [train_group(work.select(np.array([i]))) for i in range(len(cutoffs))]
    assert (together == np.concatenate([mine for mine, _ in alone])).all()
    assert (update.sums == sum(one.sums for _, one in alone)).all()
    assert (update.examples == np.concatenate([one.examples for _, one in alone])).all()
    assert 0 < (update.examples > 0).sum() < len(cutoffs)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_sums_in_32_bits_round_as_those_in_64(seed, dim):
    rng = np.random.default_rng(seed)
    step = (rng.normal(size=(1, dim)) * 2.0 ** rng.integers(-40, 6, (1, dim))).astype(np.float32)
    step[0, rng.integers(dim)] = (rng.integers(-9, 9) + 0.5) / FIXED_POINT  # half-way goes up
    sums = rng.integers(-100, 100, (2, dim)).astype(np.int32)
    wanted = np.floor(step[0].astype(np.float64) * FIXED_POINT + 0.5).astype(np.int64)
    added, started = sums.copy(), sums.copy()
    summed(added, 1, step, False)
    summed(started, 1, step, True)
    assert (added[1] == sums[1] + wanted).all()
    assert (started[1] == wanted).all()
    assert (added[0] == sums[0]).all()


@njit
def summed(sums, row, step, begins):
    add_fixed(sums, row, step, begins)


def test_changed_rows_are_those_that_devices_touched():
    _, ranked, cutoffs, users, train = world(2)
    seeds = np.arange(40, dtype=np.uint64)
    _, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, LocalTraining()))
    changed = update.changed()
    rows, sums = changed["rows"], changed["sums"]
    assert sums.dtype == np.int32
    assert len(changed["wide_rows"]) == 0
    assert rows.tolist() == np.flatnonzero(update.touched.sum(axis=1)).tolist()
    assert (sums == update.sums[rows]).all()
    untouched = np.setdiff1d(np.arange(len(ranked.items)), rows)
    assert len(untouched)
    assert not update.sums[untouched].any()


@pytest.mark.parametrize("num_slices", [1, 2])
def test_a_device_ranks_the_same_in_any_company(num_slices):
    """Scores are added up in one order, so that tiles of 32 devices and of one give the same lists, bit by bit."""
    rng, ranked, cutoffs, users, train = world(3, num_slices=num_slices, num_devices=70)
    together = top_rows(ranked, cutoffs, users, train, 20)
    shuffled = rng.permutation(70)
    apart = top_rows(ranked, cutoffs[shuffled], users[shuffled], train.select(shuffled), 20)
    assert (apart == together[shuffled]).all()
    for i in range(0, 70, 9):
        one = top_rows(ranked, cutoffs[i : i + 1], users[i : i + 1], train.select(np.array([i])), 20)
        assert (one[0] == together[i]).all()


def test_aggregation_in_chunks_equals_the_mean_taken_whole():
    """6,000 rows are three chunks; the node's rows may come in any order, and then take the plain way."""
    from strategies.groups.state import BlockSums, ServerOptimizer, apply_mean, mean_update

    rng = np.random.default_rng(0)
    num_rows, dim, slices = 6000, 4, 2
    position = np.arange(num_rows * slices, dtype=np.int32).reshape(num_rows, slices)
    for order in ("ascending", "any"):
        for denominator in ("touched", "holders"):
            total = BlockSums.zeros(num_rows, slices, dim, num_rows * slices)
            for _ in range(3):
                rows = np.sort(rng.choice(num_rows, 4000, replace=False)).astype(np.int32)
                if order == "any":
                    rows = rng.permutation(rows)
                total.add(
                    {
                        "rows": rows,
                        "sums": rng.integers(-(2**30), 2**30, (4000, dim)).astype(np.int32),
                        "touched": rng.integers(0, 3, (4000, slices)).astype(np.int32),
                        "row_loss": rng.integers(0, 9, 4000),
                        "row_examples": rng.integers(0, 9, 4000),
                        "holders": rng.integers(1, 9, num_rows * slices),
                    }
                )
            items = rng.permutation(num_rows).astype(np.int32)
            table = rng.normal(size=(num_rows, dim)).astype(np.float32)
            update, changed = mean_update(total, position, denominator)
            expected = table.copy()
            expected[items] += np.where(changed, np.float32(0.3) * update, np.float32(0))
            apply_mean(table, items, total, position, denominator, ServerOptimizer("sgd", 0.3))
            assert (table == expected).all()
