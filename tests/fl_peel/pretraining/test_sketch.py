"""Rows hashed into buckets: what a server reads of them, and that no sum overflows whatever devices have."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from fl_peel.data.interactions import UserItems
from fl_peel.pretraining.stage1 import PooledSums, run_stage1
from fl_peel.steps.base import StepTerms, StepVector
from fl_peel.steps.passes import PassStep, pass_sums
from fl_peel.steps.sketch import MOST_ROWS, RowSketch
from fl_peel.steps.units import Units, add_rows, in_units, nearest, unit_vectors
from fl_peel.steps.user_groups import added_products
from tests.fl_peel.pretraining.test_spectral_steps import CONFIG, NUM_ITEMS, PLAN, rows
from tests.helpers.settings import SPECTRAL

__all__ = ["rows"]  # the fixture of 80 users of three tastes
COUNTS = np.arange(100)[::-1].copy()


def test_buckets_are_the_same_for_a_pass_and_fresh_in_the_next():
    one, again, later = (RowSketch.from_counts(COUNTS, 0.2, 0, number) for number in (1, 1, 2))
    assert np.array_equal(one.place, again.place)
    together = [set(zip(*np.nonzero(np.abs(s.place)[:, None] == np.abs(s.place)), strict=True)) for s in (one, later)]
    apart = {(i, j) for i, j in together[0] - together[1] if i != j}
    assert len(apart) > 0.5 * len(together[0]) - 50, "rows that shared a bucket are in others"
    assert (np.sign(one.place) != np.sign(later.place)).mean() > 0.3
    assert not np.array_equal(one.place, RowSketch.from_counts(COUNTS, 0.2, 1, 1).place)


def test_the_most_frequent_rows_are_alone_and_the_others_are_mixed():
    sketch = RowSketch.from_counts(COUNTS, 0.2, 0, 1)
    sizes = np.bincount(np.abs(sketch.place) - 1, minlength=20)
    assert sketch.buckets == 20
    assert (sizes[np.abs(sketch.place[:10]) - 1] == 1).all()
    assert sizes.sum() == 100
    assert set(sizes.tolist()) == {1, 9}
    assert len(set(np.abs(sketch.place[10:20]).tolist())) == 10, "rows of like frequency never meet"


def test_as_many_buckets_as_rows_lose_nothing():
    sums = np.random.default_rng(0).standard_normal((100, 4))
    sketch = RowSketch.from_counts(COUNTS + 1, 1.0, 0, 1)
    assert sketch.read(sketch.matrix.T @ sums, COUNTS + 1) == pytest.approx(sums)


def test_what_else_lies_in_a_bucket_has_no_direction():
    """Over many passes a row is read as its share of the bucket, no more: signs make the others cancel."""
    counts = np.full(100, 3)
    sums = 1 + np.random.default_rng(0).random((100, 2))
    sketches = [RowSketch.from_counts(counts, 0.2, 0, number) for number in range(400)]
    read = np.mean([one.read(one.matrix.T @ sums, counts) for one in sketches], axis=0)
    assert read[10:] == pytest.approx(sums[10:] / 9, rel=0.6)  # 9 rows in a bucket; without signs each would be 1.5
    assert read[10:].mean() == pytest.approx(sums[10:].mean() / 9, rel=0.1)


def test_rows_that_nobody_has_are_read_as_nothing():
    counts = COUNTS.copy()
    counts[::3] = 0
    sketch = RowSketch.from_counts(counts, 0.2, 0, 1)
    read = sketch.read(np.ones((sketch.buckets, 2)), counts)
    assert not read[::3].any()
    assert np.isfinite(read).all()


def test_a_device_counts_a_bucket_up_to_a_bound():
    """A device with all of 100 rows in one bucket of one sign would not fit."""
    sketch = RowSketch(np.ones(100, np.int32), 1)
    assert sketch.rows_of(sp.csr_matrix(np.ones((1, 100)))).toarray().tolist() == [[MOST_ROWS]]


def test_a_sketched_stage_1_finds_the_same_directions_and_takes_all_rows_last(rows):
    """Noise of buckets is filtered out where few directions stand out."""
    asked = []

    class Spied(PooledSums):
        def ask(self, step, sent, opened=None):
            if step.name == "pass":
                asked.append(sent.get("place"))
            yield from super().ask(step, sent, opened)

    config = dataclasses.replace(CONFIG, columns=3, oversampling=8, passes=5)
    exact = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, 0.3)), config, PLAN)
    sketched = dataclasses.replace(config, row_sketch=0.6)
    result = run_stage1(Spied(rows, StepTerms(NUM_ITEMS, 0.3)), sketched, PLAN)
    assert [place is None for place in asked] == [False] * 4 + [True]
    assert len({place.tobytes() for place in asked[:-1]}) == 4
    cosines = np.linalg.svd(exact.directions.T @ result.directions)[1]
    assert cosines.min() > 0.95


@pytest.mark.parametrize("devices", [3, 80, 943, 29_858, 10**6])
@pytest.mark.parametrize("a", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("share", [None, 0.05])
def test_no_device_can_say_what_does_not_fit_32_bits(devices, a, share):
    """Of devices with the worst rows that there may be: those of one column alone, at length 1."""
    config = dataclasses.replace(SPECTRAL, sum_bits=32, user_exponent=a, row_sketch=share)
    units = Units.from_config(config, devices, 200)
    assert units.passes >= 1
    if units.passes == units.moments == 1:
        return
    terms = StepTerms(200, a, units=units)
    vector = StepVector(PassStep(2, 10 if share else 0), terms, 1, devices)
    for size in (1, 7, 200):
        table = np.zeros((200, 2), np.float32)
        table[:size] = size**-0.5 * np.array([1, -1])
        mine = UserItems.from_pairs(np.zeros(size, np.int64), np.arange(size), 1)
        sketch = RowSketch(np.ones(200, np.int32), 10) if share else None
        output = pass_sums(table, mine, a, units.passes, sketch)
        vector.part((0, 2)).words({"columns": output})  # refuses what might overflow
    unit = np.zeros((1, 6), np.float32)
    unit[0, 0] = 1
    assert added_products(unit, terms)[1].max() * devices < 2**31
    assert in_units(unit, units.groups).max() * devices < 2**31


def test_units_are_as_fine_as_the_devices_allow():
    config = dataclasses.replace(SPECTRAL, sum_bits=32)
    few, many = Units.from_config(config, 943, 1682), Units.from_config(config, 29_858, 40_981)
    assert (few.passes, few.groups, few.moments) == (2.0**21, 2.0**20, 2.0**10)
    assert (many.passes, many.groups, many.moments) == (2.0**16, 2.0**16, 2.0**8)
    assert Units.from_config(dataclasses.replace(config, row_sketch=0.25), 943, 1682).passes == 2.0**18
    assert Units.from_config(SPECTRAL, 943, 1682) == Units()


def test_coarse_units_change_tables_little(rows):
    exact = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, 0.3)), CONFIG, PLAN)
    config = dataclasses.replace(CONFIG, sum_bits=32)
    units = Units.from_config(config, 80, NUM_ITEMS)
    coarse = run_stage1(PooledSums(rows, StepTerms(NUM_ITEMS, 0.3, units=units)), config, PLAN)
    assert coarse.values == pytest.approx(exact.values, rel=1e-3)
    vectors = unit_vectors(add_rows(exact.own, rows))
    one, other = (nearest(vectors, start.centroids) for start in (exact, coarse))
    assert (one == other).mean() > 0.95
