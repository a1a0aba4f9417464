"""The cohort of a round: a function of seed, round and device."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategies.rounds.strategy import sample_cohort
from tests.helpers.examples import examples

DEVICES = np.arange(100, dtype=np.int64)
shares = st.floats(0.01, 1.0)


@given(seed=st.integers(0, 99), server_round=st.integers(1, 99), share=shares, order=st.permutations(range(100)))
@examples(50)
def test_the_order_of_devices_cannot_matter(seed, server_round, share, order):
    cohort = sample_cohort(seed, server_round, DEVICES, share)
    assert (sample_cohort(seed, server_round, DEVICES[list(order)], share) == cohort).all()
    assert (np.diff(cohort) > 0).all()
    assert len(cohort) == max(1, round(share * 100))


def test_sizes_by_hand():
    def size(count, share):
        return len(sample_cohort(0, 1, np.arange(count), share))

    assert [size(10, 0.3), size(10, 1.0), size(3, 0.01), size(1, 0.5), size(0, 0.5)] == [3, 10, 1, 1, 0]


def test_everybody_is_sorted_too():
    assert sample_cohort(0, 1, np.array([7, 3, 5]), 1.0).tolist() == [3, 5, 7]


def test_rounds_and_seeds_differ():
    cohorts = {tuple(sample_cohort(seed, r, DEVICES, 0.1).tolist()) for seed in range(3) for r in range(1, 21)}
    assert len(cohorts) == 60  # 10 of 100: a repeat has a chance of 60 ** 2 / 2 / 1.7e13


@given(server_round=st.integers(1, 1000), small=shares, large=shares)
@examples(50)
def test_a_larger_share_adds_devices(server_round, small, large):
    small, large = sorted([small, large])
    inner, outer = (set(sample_cohort(0, server_round, DEVICES, share).tolist()) for share in (small, large))
    assert inner <= outer


def test_every_device_gets_its_turn():
    """30 of 100 in 400 rounds: 120 expected, standard deviation sqrt(400 x 0.3 x 0.7) = 9.2; 5 of them are 46."""
    turns = np.zeros(100, int)
    for server_round in range(1, 401):
        turns[sample_cohort(5, server_round, DEVICES, 0.3)] += 1
    assert turns.sum() == 400 * 30
    assert (np.abs(turns - 120) < 46).all()
    assert turns.std() < 2 * 9.2


def test_ids_need_not_be_small_or_in_a_row():
    devices = DEVICES * 2**40 + 3
    cohort = sample_cohort(0, 1, devices, 0.25)
    assert len(cohort) == 25
    assert np.isin(cohort, devices).all()
