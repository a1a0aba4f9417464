"""Which groups gain beyond noise: known cases, and how often it is wrong when there is nothing to gain."""

import numpy as np
import pytest

from fl_peel.ranking.bootstrap import Effects, PairedSums


def sums_of(differences: list[np.ndarray]) -> PairedSums:
    groups = np.repeat(np.arange(len(differences)), [len(d) for d in differences])
    return PairedSums.from_devices(groups, len(differences), np.concatenate(differences))


def test_sums_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    differences, groups = rng.normal(size=100) / 10, rng.integers(0, 4, 100)
    whole = PairedSums.from_devices(groups, 4, differences)
    parts = [PairedSums.from_devices(groups[part::3], 4, differences[part::3]) for part in range(3)]
    added = parts[0] + parts[1] + parts[2]
    assert (added.stacked() == whole.stacked()).all()
    assert whole.mean() == pytest.approx([differences[groups == g].mean() for g in range(4)], abs=1e-8)


def test_the_same_gain_everywhere_is_one_decision():
    """Each group alone is too small to tell; together they are not."""
    rng = np.random.default_rng(1)
    sums = sums_of([rng.normal(0.02, 0.1, 30) for _ in range(40)])
    alone = sums.mean() > 1.645 * np.sqrt(sums.variance())
    assert alone.mean() < 0.6
    assert Effects.from_sums(sums).better(0.95).mean() > 0.9


def test_a_gain_that_few_devices_see_counts_for_all():
    """One item a device: recall is 0 or 1, most devices see no difference, some groups none at all."""
    rng = np.random.default_rng(4)
    sums = sums_of([rng.choice([0.0, 1.0, -1.0], size=50, p=[0.985, 0.01, 0.005]) for _ in range(250)])
    everybody = sums.total().reshaped(1)
    assert 3 < everybody.mean()[0] / np.sqrt(everybody.variance()[0]) < 8
    assert (sums.square == 0).mean() > 0.3
    assert Effects.from_sums(sums).better(0.95).all()


def test_groups_that_differ_have_decisions_of_their_own():
    rng = np.random.default_rng(2)
    gains = np.where(np.arange(20) < 10, 0.1, -0.1)
    better = Effects.from_sums(sums_of([rng.normal(gain, 0.1, 50) for gain in gains])).better(0.95)
    assert better.tolist() == [True] * 10 + [False] * 10


def test_nothing_to_gain_is_rarely_kept():
    wrong = np.zeros(8)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        wrong += Effects.from_sums(sums_of([rng.normal(0, 0.1, 25) for _ in range(8)])).better(0.95)
    assert wrong.mean() / 300 < 0.08  # 5%, and a little for deciding first whether groups differ


def test_who_was_not_heard_goes_with_the_others():
    rng = np.random.default_rng(3)
    effects = Effects.from_sums(sums_of([rng.normal(0.1, 0.05, 50), np.zeros(0), rng.normal(0.1, 0.05, 50)]))
    assert effects.better(0.95).all()
    assert not Effects.from_sums(PairedSums.zeros(3)).better(0.95).any()
    assert not Effects.from_sums(sums_of([np.zeros(10), np.zeros(10)])).better(0.95).any()


def test_one_device_that_gains_is_not_proof():
    assert not Effects.from_sums(sums_of([np.array([1.0])])).better(0.95).any()
