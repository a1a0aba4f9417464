"""Exact noise: the distributions that are claimed, coins to the last bit, and no privacy lost to whole numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare

from fl_peel.privacy import mechanisms
from fl_peel.privacy.mechanisms import (
    LARGEST_SCALE,
    SystemBits,
    between,
    discrete_gaussian,
    discrete_laplace,
    uniforms,
)
from tests.helpers.gaussian import analytic_gaussian_delta

SAMPLERS = {"gaussian": discrete_gaussian, "laplace": discrete_laplace}


class Repeated:
    """Bits of a seed, for tests."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.default_rng(seed), 0

    def words(self, count):
        self.drawn += count
        return self.rng.integers(0, 2**64, count, np.uint64)


def weights(kind, scale, numbers):
    """Exact up to the normalization."""
    numbers = np.abs(numbers).astype(float)
    return np.exp(-(numbers**2) / (2 * scale**2)) if kind == "gaussian" else np.exp(-numbers / scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_numbers_are_as_likely_as_they_should_be(kind, scale):
    """Chi-square of 400,000 numbers, those far out together; p below 1e-4 has a chance of 1e-4."""
    drawn = SAMPLERS[kind](Repeated(scale), 400_000, scale)
    far = 60 * scale
    numbers = np.arange(-far, far + 1)
    expected = weights(kind, scale, numbers)
    expected *= len(drawn) / expected.sum()
    counts = np.bincount(drawn + far, minlength=len(numbers))
    often = expected >= 20
    cells = [np.append(each[often], each[~often].sum()) for each in (counts, expected)]
    assert len(cells[0]) > 5
    assert chisquare(cells[0], cells[1]).pvalue > 1e-4


@pytest.mark.parametrize("scale", [2**20 + 1, 3 * 2**40, LARGEST_SCALE])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_large_scales_have_their_moments(kind, scale):
    """Of 400,000 numbers within 4.5 standard errors: mean, variance, kurtosis (3 and 6)."""
    drawn = SAMPLERS[kind](Repeated(5), 400_000, scale) / scale
    variance, kurtosis, spread = (1.0, 3.0, 2.0) if kind == "gaussian" else (2.0, 6.0, 5.0)
    assert abs(drawn.mean()) < 4.5 * math.sqrt(variance / len(drawn))
    assert drawn.var() / variance == pytest.approx(1, abs=4.5 * math.sqrt(spread / len(drawn)))
    assert (drawn**4).mean() / variance**2 == pytest.approx(kurtosis, rel=0.06)
    assert len(np.unique(drawn)) > 0.8 * len(drawn) or scale == 2**20 + 1


@pytest.mark.parametrize("kind", SAMPLERS)
def test_doubles_decide_as_decimals_do(kind, monkeypatch):
    """The same bits give the same numbers where every coin is told by its exact probability, and none by doubles."""
    for scale in (1, 7, 2**26 + 12345, LARGEST_SCALE):
        quick = SAMPLERS[kind](Repeated(9), 300, scale)
        with monkeypatch.context() as patched:
            patched.setattr(mechanisms, "MARGIN", 2.0)
            bits = Repeated(9)
            assert (SAMPLERS[kind](bits, 300, scale) == quick).all()


EDGE = Fraction("0.367879441171442321595523770161460867")
"""exp(-1), to 119 bits."""


class Near:
    """Words whose uniform number is exp(-1) to 53 bits; whatever is asked for one at a time is ``then``."""

    def __init__(self, then):
        self.then = then

    def words(self, count):
        word = int(EDGE * 2**53) << 11 if count > 1 else self.then
        return np.full(count, word, np.uint64)


def test_a_coin_on_the_edge_is_told_by_more_bits():
    """53 bits of exp(-1) cannot tell, the next ones do."""
    rest = int(EDGE * 2**117) % 2**64
    for then, below in ((rest - 10**6, True), (rest + 10**6, False), (0, True), (2**64 - 1, False)):
        assert (mechanisms._comes_true(Near(then), np.ones(2), lambda i: (1, 1)) == below).all()
        assert (mechanisms._times(Near(then), Near(then).words(2)) == int(below)).all()


def test_a_number_in_the_tail_is_told_by_more_bits():
    """A uniform number of 53 zeros: what comes next says how often exp(-1) came true; 2^-53 is e^-36.7."""
    for then, times in ((2**64 - 1, 36), (2**63, 37), (2**54, 43), (1, 81)):
        assert times == int(-math.log(then / 2.0**117))
        assert mechanisms._times(Near(then), np.zeros(1, np.uint64)).tolist() == [times]


def test_bounds_of_the_exponential_hold_and_close():
    for over, under in ((1, 1), (0, 1), (1, 3), (2000, 1), (10**40, 7 * 10**39)):
        low, high = between(over, under, digits=12)
        closer = between(over, under, digits=60)
        assert low < closer[0] < closer[1] < high
        assert (high - low) / high < Fraction(1, 10**8)
        assert float(closer[0]) == pytest.approx(math.exp(-over / under))


def test_whole_numbers_cost_no_privacy():
    """The delta of discrete noise at an epsilon, summed up, is that of a normal number: to 1e-6, at a hundredth of the
    scale that runs have at least. A contribution moves by the bound, 1 / multiplier of the scale.
    """
    scale = 1 << 14
    numbers = np.arange(-12 * scale, 12 * scale + 1)
    density = weights("gaussian", scale, numbers)
    density /= density.sum()
    for multiplier, epsilon in ((1, 4.0), (2, 1.5), (4, 0.5)):
        apart = scale // multiplier
        excess = density[:-apart] - math.exp(epsilon) * density[apart:]
        delta = np.maximum(excess, 0).sum() + density[-apart:].sum()
        assert delta == pytest.approx(analytic_gaussian_delta(multiplier, epsilon), rel=1e-4)


def test_bits_of_the_system_are_new_each_time():
    first, second = SystemBits(), SystemBits()
    assert len({*first.words(1000), *second.words(1000), *first.words(1000)}) == 3000
    drawn = uniforms(SystemBits(), 100_000)
    assert drawn.mean() == pytest.approx(0.5, abs=0.005)  # five standard errors
    assert drawn.min() >= 0
    assert drawn.max() < 1
    words = SystemBits().words(100_000)
    share = np.array([(words >> np.uint64(place) & np.uint64(1)).mean() for place in range(64)])
    assert np.abs(share - 0.5).max() < 0.01  # six standard errors


@pytest.mark.parametrize("kind", SAMPLERS)
def test_more_than_is_drawn_exactly_is_refused(kind):
    for scale in (0, LARGEST_SCALE + 1):
        with pytest.raises(AssertionError):
            SAMPLERS[kind](SystemBits(), 5, scale)
    assert SAMPLERS[kind](SystemBits(), 0, 5).shape == (0,)
