"""Intervals over devices: by hand, against other ways of getting them, and that they cover what they say they do."""

import math

import numpy as np
import pytest
from scipy import stats

from fl_peel import kernels
from fl_peel.array_specs import SUM_SCALE
from fl_peel.figures import SeedsEstimate
from fl_peel.randomness import device_seeds, mix64
from fl_peel.ranking import bootstrap
from fl_peel.ranking.bootstrap import Effects, PairedSums, Replicates, estimate, holm, interval, over
from fl_peel.ranking.top import MetricSums

GOLDEN = 0x9E3779B97F4A7C15


def weights(devices: np.ndarray, count: int) -> np.ndarray:
    """The readable twin: weights (N, B) by looking each number up in the distribution function."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        bits = mix64(device_seeds(0, "bootstrap", devices=devices)[:, None] + steps)
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(bootstrap.LIMITS, uniform, side="right")


def replicates(devices: np.ndarray, recall: np.ndarray, count: int = 1000, counted: np.ndarray | None = None):
    counted = np.ones(len(devices), np.bool_) if counted is None else counted
    return Replicates.from_devices(devices, recall, recall / 2, counted, count)


def test_sums_are_those_of_the_twin_to_the_last_unit():
    rng = np.random.default_rng(0)
    devices, recall = rng.permutation(500)[:200], rng.random((200, 3))
    counted = rng.random(200) < 0.8
    result, drawn = replicates(devices, recall, 50, counted), weights(devices, 50)[counted]
    fixed = np.rint(recall[counted] * SUM_SCALE).astype(np.int64)
    assert np.array_equal(result.recall, fixed.T @ drawn)
    assert np.array_equal(result.ndcg, np.rint(recall[counted] / 2 * SUM_SCALE).astype(np.int64).T @ drawn)
    assert np.array_equal(result.devices, drawn.sum(axis=0))


def test_weights_are_of_a_poisson_distribution_with_mean_1():
    drawn = weights(np.arange(2000), 500).ravel()
    share = np.bincount(drawn, minlength=8)[:8] / len(drawn)
    expected = np.array([math.exp(-1) / math.factorial(k) for k in range(8)])
    assert np.abs(share - expected).max() < 2e-3
    assert np.abs(bootstrap.LIMITS - stats.poisson.cdf(np.arange(12), 1)).max() < 1e-15
    by_device, by_replicate = (weights(np.arange(400), 400).mean(axis=axis) for axis in (1, 0))
    assert by_device.std() == pytest.approx(0.05, rel=0.15)  # independent: 1 / sqrt(400)
    assert by_replicate.std() == pytest.approx(0.05, rel=0.15)


def test_a_hand_computed_interval():
    """Two devices: a replicate's mean is that of those drawn, and the ends are quantiles of these."""
    devices, recall = np.array([3, 8]), np.array([[1.0], [0.25]])
    (means,), (ndcg,) = replicates(devices, recall, 400).means()
    first, second = weights(devices, 400).T[:, 0], weights(devices, 400).T[:, 1]
    drawn = first + second > 0
    assert np.isnan(means[~drawn]).all()
    assert 20 < (~drawn).sum() < 90, "e**-2 of them"
    expected = (first * 1.0 + second * 0.25)[drawn] / (first + second)[drawn]
    assert means[drawn] == pytest.approx(expected, abs=1e-9)
    assert ndcg[drawn] == pytest.approx(expected / 2, abs=1e-9)
    # as for 20 devices: Student's t with 19 degrees of freedom is 2.0930
    tail = stats.norm.cdf(-2.0930)
    assert interval(means, 20) == pytest.approx(tuple(np.quantile(expected, [tail, 1 - tail])), abs=1e-4)


def test_an_interval_over_few_devices_is_as_wide_as_students():
    """Ten numbers from a normal distribution, forty times; percentiles at 2.5% would be a fifth narrower."""
    rng, widths = np.random.default_rng(8), []
    drawn = weights(np.arange(10), 4000)
    drawn = drawn[:, drawn.sum(axis=0) > 0]
    for _ in range(40):
        values = rng.standard_normal(10)
        low, high = interval(values @ drawn / drawn.sum(axis=0), 10)
        widths.append((high - low) / (2 * stats.t.ppf(0.975, 9) * stats.sem(values)))
    assert np.mean(widths) == pytest.approx(1, abs=0.08)


def test_sums_do_not_depend_on_who_hosts_whom():
    rng = np.random.default_rng(1)
    devices, recall = np.arange(101), rng.random((101, 2))
    whole = replicates(devices, recall)
    for nodes in (1, 2, 7):
        parts = Replicates.zeros(2, 1000)
        for node in reversed(range(nodes)):
            parts = parts + replicates(devices[node::nodes], recall[node::nodes])
        assert all(np.array_equal(getattr(parts, name), getattr(whole, name)) for name in ("recall", "ndcg", "devices"))


def test_parts_of_many_devices_add_up(monkeypatch):
    recall = np.random.default_rng(2).random((50, 1))
    whole = replicates(np.arange(50), recall)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 7)
    assert np.array_equal(replicates(np.arange(50), recall).recall, whole.recall)
    most = 12 * (1 << 19) * SUM_SCALE  # nobody draws 12 for all: a mean of 4 would be thousands of deviations away
    assert most / 3 == 2.0**53


@pytest.mark.parametrize("what", ["mean", "ratio"])
def test_intervals_cover_the_truth_95_times_in_100(what):
    """400 populations of 300 devices, of a skewed recall, and a second table that is better by 5%."""
    rng, hits, trials = np.random.default_rng(3), 0, 400
    drawn = weights(np.arange(300), 600)
    for _ in range(trials):
        first = rng.beta(0.6, 2.4, 300)  # mean 0.2
        second = first * (1.05 + 0.3 * rng.standard_normal(300))
        truth, values = (0.2, first @ drawn / drawn.sum(axis=0))
        if what == "ratio":
            truth, values = 1.05, over(second @ drawn, first @ drawn)
        low, high = interval(values, 300)
        hits += low <= truth <= high
    assert 0.92 <= hits / trials <= 0.975


def test_margins_are_students_and_cover_too():
    rng, hits, trials = np.random.default_rng(4), 0, 600
    for _ in range(trials):
        recall = rng.beta(1.2, 2.8, 25)
        sums = MetricSums.from_devices(np.zeros(25, np.int64), 1, recall, recall, np.ones(25, np.bool_))
        margin = float(sums.margin()[0])
        assert margin == pytest.approx(stats.t.ppf(0.975, 24) * stats.sem(recall), rel=1e-5)
        hits += abs(recall.mean() - 0.3) <= margin
    assert 0.92 <= hits / trials <= 0.975
    alone = MetricSums.from_devices(
        np.zeros(2, np.int64), 3, np.array([0.5, 0.1]), np.zeros(2), np.array([True, False])
    )
    assert np.isnan(alone.margin()).all(), "one device says nothing of how devices differ"


def test_a_ratio_of_the_same_thing_is_exactly_one_and_pairs_are_narrower_than_strangers():
    rng = np.random.default_rng(5)
    first = rng.beta(0.6, 2.4, 800)
    second = first + 0.01 * rng.random(800)
    one, other = replicates(np.arange(800), np.stack([first, second], axis=1)).means()[0]
    assert interval(over(one, one), 800) == (1.0, 1.0)
    assert interval(one - one, 800) == (0.0, 0.0)
    low, high = interval(other - one, 800)
    assert 0 < low < second.mean() - first.mean() < high
    stranger = replicates(np.arange(800, 1600), second[:, None]).means()[0][0]
    apart = np.subtract(*interval(stranger - one, 800)[::-1])
    assert apart > 20 * (high - low)


def test_devices_without_items_to_find_count_for_nothing():
    recall, counted = np.array([[0.5], [0.0], [0.5], [0.0]]), np.array([True, False, True, False])
    means = replicates(np.arange(4), recall, 500, counted).means()[0][0]
    assert interval(means, 2) == (0.5, 0.5), "whoever is drawn: were the others counted, it would be less"


def test_where_nothing_is_known_nothing_is_said():
    assert interval(np.zeros(0), 9) is None
    assert interval(np.array([0.1, 0.2]), 1) is None, "one device says nothing of how devices differ"
    assert interval(np.array([np.nan, np.nan]), 9) is None
    assert interval(over(np.array([0.1, 0.2]), np.array([0.1, 0.0])), 9) is None, "over nothing"
    ratios = over(np.array([0.2, 0.0, 0.5, np.nan]), np.array([0.0, 0.0, 1.0, np.nan]))
    assert ratios == pytest.approx([np.inf, np.inf, 0.5, np.nan], nan_ok=True), "nothing over nothing is no ratio"
    nobody = replicates(np.arange(0), np.zeros((0, 2)))
    assert not nobody.devices.any()
    assert nobody.recall.shape == (2, 1000)
    nothing = SeedsEstimate(0.1)
    assert estimate(0.1, np.array([0.1, 0.2]), 1) == nothing, "one device says nothing of how devices differ"
    assert estimate(0.1, np.array([np.nan]), 50) == nothing
    assert estimate(0.1, np.array([np.inf, 0.1]), 50) == nothing


def test_the_p_value_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(6)
    first = rng.beta(0.6, 2.4, 1000)
    second = first + 0.002 + 0.05 * rng.standard_normal(1000)
    one, other = replicates(np.arange(1000), np.stack([first, second], axis=1), 20_000).means()[0]
    result = estimate(second.mean() - first.mean(), other - one, 1000)
    expected = stats.ttest_rel(second, first)
    assert result.p_value == pytest.approx(expected.pvalue, rel=0.1)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval()), abs=3e-4)
    assert result.seeds_std is None


def test_nothing_at_all_is_a_difference_of_zero_for_sure():
    assert estimate(0.0, np.zeros(100), 50) == SeedsEstimate(0.0, 0.0, 0.0, p_value=1.0)
    assert estimate(0.25, np.full(100, 0.25), 50) == SeedsEstimate(0.25, 0.25, 0.25, p_value=0.0)
    assert estimate(0.25, np.full(100, 0.25), 50, [0.25, 0.25]) == SeedsEstimate(
        0.25, 0.25, 0.25, p_value=0.0, seeds_std=0.0, by_seed=(0.25, 0.25)
    )


def test_an_estimate_over_few_devices_by_hand():
    """Standard error 0.1, so t = 2: of one degree of freedom, where t is of Cauchy's distribution, and of two."""
    two, three = (estimate(0.2, np.array([0.1, 0.3]), devices, [0.2]) for devices in (2, 3))
    assert two.p_value == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert three.p_value == pytest.approx(1 - 2 / math.sqrt(2 + 2**2))
    assert (two.low, two.high) == pytest.approx((0.1, 0.3))  # t is 12.7: the outermost replicates
    assert two.seeds_std is None, "one seed says nothing of how seeds differ"


def test_an_estimate_over_seeds_by_hand():
    """Two devices and two seeds, both with a standard error of 0.1 and one degree of freedom: together two."""
    result = estimate(0.2, np.array([0.1, 0.3]), 2, [0.1, 0.3])
    error = math.sqrt(0.01 + 0.01)
    assert result.seeds_std == pytest.approx(0.1 * math.sqrt(2))
    assert result.p_value == pytest.approx(1 - math.sqrt(2) / math.sqrt(2 + 2))  # t = 0.2 / error, the root of 2
    assert (result.low, result.high) == pytest.approx((0.2 - 4.302653 * error, 0.2 + 4.302653 * error))


def test_several_seeds_widen_the_interval_and_it_covers_what_a_new_seed_would_say():
    """A seed shifts all devices: three seeds, of which intervals over devices alone know too little."""
    rng, trials = np.random.default_rng(7), 400
    drawn, hits = weights(np.arange(200), 400), {"both": 0, "devices": 0}
    for _ in range(trials):
        devices, seeds = 0.05 * rng.standard_normal(200), 0.01 * rng.standard_normal(3)
        by_seed = devices.mean() + seeds
        mean = devices + seeds.mean()
        values = mean @ drawn / drawn.sum(axis=0)
        result = estimate(float(mean.mean()), values, 200, by_seed.tolist())
        assert result.seeds_std == pytest.approx(np.std(seeds, ddof=1))
        hits["both"] += result.low <= 0 <= result.high
        alone = interval(values, 200)
        hits["devices"] += alone[0] <= 0 <= alone[1]
    assert 0.93 <= hits["both"] / trials <= 1.0
    assert hits["devices"] / trials < 0.75


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_kernel_takes_no_device_for_another():
    seeds = bootstrap.weight_seeds(np.array([5, 6]))
    values, sums = np.array([[1.0], [1000.0]]), np.zeros((1, 30))
    kernels.weighted_sums(seeds, bootstrap.LIMITS, values, sums)
    first, second = weights(np.array([5, 6]), 30)
    assert sums[0].tolist() == (first + 1000 * second).tolist()
    assert (first != second).any()


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


def test_nothing_to_gain_is_rarely_kept():
    wrong = np.zeros(8)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        wrong += Effects.from_sums(sums_of([rng.normal(0, 0.1, 25) for _ in range(8)])).better(0.95)
    assert wrong.mean() / 300 < 0.08  # 5%, and a little for deciding first whether groups differ


def test_one_device_that_gains_is_not_proof():
    assert not Effects.from_sums(sums_of([np.array([1.0])])).better(0.95).any()
