"""What the server makes of noise, at the edges, by hand: shrinkage, rates, tilts; answers and mechanisms."""

import math

import numpy as np
import pytest

from fl_peel.privacy.mechanisms import (
    CentralGaussian,
    Gaussian,
    LocalGaussian,
    LocalLaplace,
    noise_share,
)
from fl_peel.privacy.shrinkage import NoisedSignals, posterior_rate, shrink_factor, shrunk, tilted
from fl_peel.privacy.sources import SeededNoise, randomized_groups

# ---------------------------------------------------------------- shrinkage


def test_a_factor_lies_between_nothing_and_all():
    values = np.array([[3.0, -4.0]])  # 25 in all, of two numbers: 1 - 2 v (1 + 3 sqrt(2 / 2)) / 25
    assert shrink_factor(values, 1.0) == pytest.approx(1 - 8 / 25)
    assert shrink_factor(values, 25 / 8) == 0.0
    assert shrink_factor(values, 1e9) == 0.0
    assert shrink_factor(values, 0.0) == shrink_factor(np.zeros(2), 0.0) == 1.0
    assert shrink_factor(np.zeros(0), 1.0) == 0.0
    assert shrink_factor(np.array([3.0]), 1.0) == pytest.approx(1 - (1 + 3 * math.sqrt(2)) / 9)  # one number
    assert shrink_factor(values / 10, 0.01) == pytest.approx(1 - 8 / 25)  # of any size


@pytest.mark.parametrize("shape", [(10,), (10, 3), (10, 2, 2)])
def test_neighbouring_rows_share_a_factor_and_no_others_do(shape):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 5, shape) + 9
    width = values[0].size
    result = shrunk(values, 1.0, bucket=4 * width)  # rows 0-3, 4-7, 8-9
    for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
        np.testing.assert_allclose(result[part], shrink_factor(values[part], 1.0) * values[part])
    assert result.shape == shape
    wide = shrunk(values, 1.0, bucket=width - 1 or 1)  # less than a row: a row at a time
    np.testing.assert_allclose(wide[3:4], shrink_factor(values[3:4], 1.0) * values[3:4])
    assert shrunk(values, 0.0).tolist() == values.tolist()
    assert shrunk(np.zeros((0, 3)), 1.0).shape == (0, 3)


def test_rates_weigh_what_was_known_and_what_is_observed():
    def rate(prior, prior_count, observed, count, std):
        return float(posterior_rate(np.array([prior]), prior_count, np.array([observed]), count, np.array([std]))[0])

    # prior 0.2 of 16 devices: variance 0.16 / 16 = 0.01; 40 devices of noise 4: 0.16 / 40 + (4 / 40)^2 = 0.014
    assert rate(0.2, 16, 20.0, 40, 4.0) == pytest.approx(0.2 + 0.01 / 0.024 * (0.5 - 0.2))
    # nobody is at least one: a prior of 0 devices has a variance of 0.16, a sum of 0 devices likewise
    assert rate(0.2, 0, 20.0, 40, 4.0) == pytest.approx(0.2 + 0.16 / 0.174 * 0.3)
    assert rate(0.2, 16, 0.0, 0, 0.0) == pytest.approx(0.2 + 0.01 / 0.17 * -0.2)
    assert rate(0.2, 16, 1.0, 0, 1.0) == pytest.approx(0.2 + 0.01 / (0.01 + 0.16 + 1.0) * 0.8)
    # what is certain is not quite: a rate of 0 or of 1 has a variance of 1e-4
    for certain in (0.0, 1.0):
        assert rate(certain, 1, 50.0, 100, 0.0) == pytest.approx(certain + 1e-4 / (1e-4 + 1e-6) * (0.5 - certain))
    assert rate(2.0, 1, 50.0, 100, 0.0) == pytest.approx(2.0 - 1e-4 / (1e-4 + 1e-6) * 1.5)
    assert rate(0.1, 16, -100.0, 40, 0.0) == 0.0  # noise below nothing is nothing


# ---------------------------------------------------------------- tilts


def group(hits, features=None, exposure=None, variance=0.0) -> NoisedSignals:
    hits = np.array(hits, float)
    features = np.array([[1.0], [-1.0]] if features is None else features, float)
    exposure = np.ones(len(hits)) if exposure is None else np.array(exposure, float)
    return NoisedSignals(features, exposure, hits, np.full(len(hits), float(variance)))


START = np.zeros(1)


def test_two_blocks_by_hand():
    """Without noise and with a wide prior, odds of hits are odds of exposure times e^(2 theta)."""
    assert tilted([group([300.0, 100.0])], START, spread=1e3)[0] == pytest.approx(math.log(3) / 2, abs=1e-3)
    twice = tilted([group([300.0, 100.0], exposure=[2.0, 1.0])], START, spread=1e3)
    assert twice[0] == pytest.approx(math.log(3 / 2) / 2, abs=1e-3)
    tenth = tilted([group([300.0, 100.0], exposure=[0.2, 0.1])], START, spread=1e3)
    assert tenth[0] == pytest.approx(twice[0])  # exposures count by their ratio
    # the prior holds back: few hits move it less, and none of what is put in is changed
    few = tilted([group([3.0, 1.0])], START)[0]
    many = tilted([group([300.0, 100.0])], START)[0]
    assert 0.2 < few < many < math.log(3) / 2
    assert tilted([group([3.0, 1.0])], START, spread=0.1)[0] < 0.05
    assert START.tolist() == [0.0]


def test_the_mode_is_where_score_and_prior_balance():
    """Of 4 hits, 3 of the first: 3 - 4 p = (p is that of the first) theta / spread^2 / 2, to a quarter per cent."""
    for spread in (0.5, 1.0, 2.0):
        theta = float(tilted([group([3.0, 1.0])], START, spread=spread)[0])
        p = 1 / (1 + math.exp(-2 * theta))
        # the score is of features +1 and -1 about their mean under p: 3 (1 - m) + 1 (-1 - m), m = 2 p - 1
        assert 2 - 4 * (2 * p - 1) == pytest.approx(theta / spread**2, abs=0.01)


def test_groups_of_which_more_was_shown_count_for_more():
    """Both say odds of 3, one for the first block and one for the second; of the first nine times as much was shown."""

    def theta(first, second):
        return tilted(
            [group([3.0 * first, first], exposure=[first] * 2), group([second, 3.0 * second], exposure=[second] * 2)],
            START, spread=1e3,
        )[0]  # fmt: skip

    assert theta(900.0, 100.0) == pytest.approx(-theta(100.0, 900.0), abs=1e-6)
    assert theta(900.0, 100.0) > 0.3
    assert theta(500.0, 500.0) == pytest.approx(0.0, abs=1e-9)


def test_nothing_is_believed_of_hits_that_noise_might_have_made():
    # 400 hits; noise of deviation s on each of two blocks: sqrt(2) s on their sum
    edge = 400 / 3 / math.sqrt(2)
    assert tilted([group([300.0, 100.0], variance=(1.01 * edge) ** 2)], START)[0] == 0.0
    assert tilted([group([300.0, 100.0], variance=(0.99 * edge) ** 2)], START)[0] != 0.0
    assert tilted([group([-300.0, 100.0])], START)[0] == 0.0
    assert tilted([group([0.0, 0.0])], START)[0] == 0.0
    assert tilted([group([0.6, 0.2])], START)[0] > 0.0  # few hits that are certain are some
    none = tilted([group([3.0, 1.0], exposure=[0.0, 0.0])], START)
    assert none.tolist() == [0.0]
    assert none is not START


def test_noise_holds_back():
    result = [tilted([group([300.0, 100.0], variance=std**2)], START)[0] for std in (0.0, 20.0, 40.0, 80.0)]
    assert result == sorted(result, reverse=True)
    assert len(set(result)) == 4


def test_the_mode_under_noise_by_hand():
    """Hits of 300 and 100 under a variance of 60^2 each: of the 400, 2 x 60^2 / 400 = 18 are noise that is positive."""
    theta = float(tilted([group([300.0, 100.0], variance=60.0**2)], START)[0])
    m = math.tanh(theta)  # the mean of the feature, 1 or -1
    score = 300 * (1 - m) - 100 * (1 + m)
    fisher = (400 - 18) * (1 - m**2)
    noise = 60.0**2 * ((1 - m) ** 2 + (1 + m) ** 2)
    assert theta == pytest.approx(fisher / (fisher + noise) * score, rel=2e-3)  # the prior has variance 1


def test_a_group_in_two_halves_is_the_group():
    whole = tilted([group([300.0, 100.0], variance=50.0)], START)
    half = group([150.0, 50.0], exposure=[0.5, 0.5], variance=25.0)
    assert tilted([half, half], START)[0] == pytest.approx(whole[0], rel=1e-12)


def test_a_feature_that_does_not_vary_keeps_its_coefficient():
    start = np.array([0.0, 0.7])
    result = tilted([group([300.0, 100.0], features=[[1.0, 5.0], [-1.0, 5.0]])], start)
    assert result[1] == pytest.approx(0.7, abs=1e-6)
    assert result[0] > 0.4


def test_steps_are_held_to_one_and_add_up():
    """From 9 too far, the mode is reached in steps of 1 at most: not within the eight that are made."""
    down = tilted([group([300.0, 100.0])], np.array([9.5]), spread=1e3)
    up = tilted([group([100.0, 300.0])], np.array([-9.5]), spread=1e3)
    assert [down[0], up[0]] == pytest.approx([9.5 - 8.0, -9.5 + 8.0], abs=1e-6)


# ---------------------------------------------------------------- answers, mechanisms


def test_one_group_needs_no_answer():
    groups = np.zeros(5, np.int32)
    assert randomized_groups(groups, 1, 0.1, SeededNoise(0), np.arange(5)) is groups
    two = randomized_groups(np.zeros(20_000, np.int32), 2, 0.0, SeededNoise(0), np.arange(20_000))
    assert two.dtype == np.int32
    assert two.mean() == pytest.approx(0.5, abs=0.02)  # epsilon 0: a coin


def test_answers_are_by_device_and_seed():
    groups = np.arange(2000, dtype=np.int32) % 5
    one, again, other = (randomized_groups(groups, 5, 1.0, SeededNoise(seed), np.arange(2000)) for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()
    assert set(one.tolist()) == set(range(5))
    assert (randomized_groups(groups, 5, 50.0, SeededNoise(0), np.arange(2000)) == groups).all()
    # who does not say his own group says each other one alike
    lied = (one - groups)[one != groups] % 5
    assert np.bincount(lied, minlength=5)[1:] / len(lied) == pytest.approx([0.25] * 4, abs=0.05)


def test_shares_of_a_release_by_mechanism():
    for mechanism in (CentralGaussian(), LocalGaussian()):
        assert mechanism.of_share(2.0, 0.25) == 4.0  # precisions add up
        assert mechanism.std(3.0) == 3.0
        assert (mechanism.norm, mechanism.divides) == ("l2", True)
    assert LocalLaplace().of_share(2.0, 0.25) == 8.0  # epsilons do
    assert LocalLaplace().std(3.0) == pytest.approx(3 * math.sqrt(2))
    assert (LocalLaplace().norm, LocalLaplace().divides) == ("l1", False)
    assert [mechanism.range for mechanism in (CentralGaussian(), LocalGaussian(), LocalLaplace())] == [1.0, 2.0, 2.0]
    assert issubclass(CentralGaussian, Gaussian)


def test_a_share_of_noise_is_less_the_more_devices_there_are():
    drawn = [noise_share(np.random.default_rng(0), (9,), 6.0, devices, 2.0**20) for devices in (1, 4, 9)]
    assert drawn[0] / 2 == pytest.approx(drawn[1], abs=1)
    assert drawn[0] / 3 == pytest.approx(drawn[2], abs=1)
    assert drawn[0].std() / 2**20 == pytest.approx(6.0, rel=0.6)
