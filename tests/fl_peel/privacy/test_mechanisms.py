"""Mechanisms keep their contract; clipping is exact for any cohort; what the server makes of noise."""

import math
from collections import Counter
from fractions import Fraction
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fl_peel import plugins
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.contracts import MechanismContract
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ScenarioError
from fl_peel.exchange.release import TrainedDevices, bounded_counts, bounded_sums
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy import mechanisms
from fl_peel.privacy.mechanisms import (
    LARGEST_SCALE,
    CentralGaussian,
    LocalGaussian,
    LocalLaplace,
    Mechanism,
    SystemBits,
    between,
    discrete_gaussian,
    discrete_laplace,
    find_mechanism,
    fixed_point,
    uniforms,
)
from fl_peel.privacy.shrinkage import NoisedSignals, shrunk, tilted
from fl_peel.privacy.sources import SeededNoise, randomized_groups, with_device_noise
from fl_peel.ranking.top import top_rows
from fl_peel.scenario.settings import MECHANISMS, LocalTraining
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from tests.fl_peel.training.test_twins import small_world
from tests.helpers.blocks import rows_of
from tests.helpers.examples import examples
from tests.helpers.gaussian import analytic_gaussian_delta


class TestCentralGaussian(MechanismContract):
    mechanism = CentralGaussian()


class TestLocalGaussian(MechanismContract):
    mechanism = LocalGaussian()


class TestLocalLaplace(MechanismContract):
    mechanism = LocalLaplace()


class Mine(CentralGaussian):
    name = "mine"


NO_MECHANISM_AT_ALL = 3


def test_a_mechanism_of_ones_own(monkeypatch):
    def install(what):
        point = EntryPoint("mine", f"{__name__}:{what}", "fl_peel.mechanisms")
        monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == point.group else [])

    install("Mine")
    assert find_mechanism("mine") == Mine()
    assert MECHANISMS.names()[-1] == MECHANISMS.check("mine") == "mine"
    install("NO_MECHANISM_AT_ALL")
    with pytest.raises(ScenarioError, match=r"mine' of .*NO_MECHANISM_AT_ALL is not a Mechanism; subclass fl_peel"):
        find_mechanism("mine")


def test_the_names_that_scenarios_know_are_those_of_the_mechanisms():
    assert {name: MECHANISMS.make(name, Mechanism) for name in MECHANISMS.shipped} == mechanisms._BUILT_IN
    assert find_mechanism("none") is None
    assert find_mechanism("local-laplace") == LocalLaplace()


def test_devices_that_add_noise_hide_which_of_two_contributions_they_sent():
    # bound 1: two vectors of norm 1 lie up to 2 apart, a vector and zero lie 1 apart
    assert CentralGaussian().scale(3.0, 1.0, 1.0) == 3.0
    assert LocalGaussian().scale(3.0, 1.0, 1.0) == 6.0
    assert LocalLaplace().scale(3.0, 0.5, 1.0) == 12.0


def test_whole_noise_is_drawn_by_mechanisms_that_say_how():
    class Floats(CentralGaussian):
        draw_whole = Mechanism.draw_whole

    assert [one.draws_whole for one in (CentralGaussian(), LocalLaplace(), Floats())] == [True, True, False]


def test_numbers_beyond_the_range_saturate_with_their_sign():
    assert fixed_point(np.array([1e300, -1e300, 0.75, -0.75]), 4.0).tolist() == [2**62, -(2**62), 3, -3]
    assert fixed_point(np.array([0.0]), 4.0).dtype == np.int64


# ---------------------------------------------------------------- what a device contributes

NUM_DEVICES = 500


def world(seed, num_slices=2, groups=None):
    """500 devices on 23 items."""
    rng, ranked, _, _, _ = small_world(seed, num_slices=num_slices, groups=groups)
    cutoffs = rng.integers(0, len(ranked.blocks) + 1, NUM_DEVICES)
    users = rng.normal(size=(NUM_DEVICES, 8)).astype(np.float32)
    lengths = rng.integers(0, 9, NUM_DEVICES)
    items = rng.integers(0, 23, lengths.sum()).astype(np.int32)
    train = UserItems(np.concatenate([[0], np.cumsum(lengths)]), items)
    seeds = rng.integers(0, 2**63, NUM_DEVICES).astype(np.uint64)
    return ranked, cutoffs, users, train, seeds


def contribution(world, how, bounds, l1, devices, noise=None):
    """Sums of these devices, as a node that hosts them sends them."""
    ranked, cutoffs, users, train, seeds = world
    mine = train.select(devices)
    new, update = train_group(LocalWork(ranked, cutoffs[devices], users[devices], mine, seeds[devices], how))
    best = top_rows(ranked, cutoffs[devices], new, mine, 10)
    items = (7 * np.repeat(devices, 2) + np.tile([0, 1], len(devices))) % 23
    validation = UserItems(2 * np.arange(len(devices) + 1), items.astype(np.int32))
    trained = TrainedDevices(devices, cutoffs[devices], new, update, best, mine, validation)
    parts = ("updates", "signals", "counts", "quantile")
    sums = bounded_sums(ranked, trained, parts, bounds, l1=l1)
    if noise is not None:
        sums = with_device_noise(sums, dict.fromkeys(parts, 0.7), noise, SeededNoise(5), 3, devices)
    return sums


@pytest.mark.slow
@pytest.mark.parametrize("noise", [None, LocalGaussian(), LocalLaplace()])
@pytest.mark.parametrize(("clip_blocks", "l1"), [(False, False), (True, True)])
def test_any_cohort_size_gives_the_same_sums(clip_blocks, l1, noise):
    """1, 7 and 500 devices a node: the same aggregate, to the last bit, and nobody is clipped for his company."""
    everything = world(3)
    how = LocalTraining(max_norm=0.05, clip_blocks=clip_blocks, clip_l1=l1, num_negatives=2, loss="sampled-softmax")
    bounds = {"updates": 0.05, "signals": 0.4, "counts": 0.8, "quantile": 0.5}
    totals = []
    for size in (1, 7, NUM_DEVICES):
        total = {}
        for start in range(0, NUM_DEVICES, size):
            devices = np.arange(start, min(start + size, NUM_DEVICES))
            for part, values in contribution(everything, how, bounds, l1, devices, noise).items():
                total[part] = total.get(part, 0) + values
        totals.append(total)
    for part in totals[0]:
        assert np.abs(totals[0][part]).max() > 0, part
        assert (totals[0][part] == totals[1][part]).all(), part
        assert (totals[0][part] == totals[2][part]).all(), part


@examples(40)
@given(
    seed=st.integers(0, 1000),
    num_slices=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([None, 5]),
    clip_blocks=st.booleans(),
    l1=st.booleans(),
    bound=st.sampled_from([1e-4, 0.003, 0.05, 1.0]),
)
def test_no_device_is_above_its_bounds(seed, num_slices, groups, clip_blocks, l1, bound):
    """Exactly, in the integers that are sent: rounding included."""
    everything = world(seed, num_slices, groups)
    ranked = everything[0]
    how = LocalTraining(max_norm=bound, clip_blocks=clip_blocks, clip_l1=l1, num_negatives=2, learning_rate=0.5)
    bounds = {"updates": bound, "signals": bound, "counts": bound, "quantile": 0.5}
    reached = {}
    for device in range(12):
        sums = contribution(everything, how, bounds, l1, np.array([device]))
        for part, values in sums.items():
            entries = [int(value) for value in values.reshape(-1)]
            magnitudes = sum(abs(value) if l1 else value**2 for value in entries)
            limit = bounds[part] * FIXED_POINT
            assert magnitudes <= (limit if l1 else limit**2) * (1 + 1e-12), part
            reached[part] = max(reached.get(part, 0), magnitudes if l1 else math.sqrt(magnitudes))
        if clip_blocks:
            width = 8 // num_slices
            pieces = sums["updates"].reshape(len(ranked.items), num_slices, width).astype(float)
            sizes = np.abs(pieces).sum(axis=2) if l1 else np.square(pieces).sum(axis=2)
            per_block = np.bincount(ranked.position.reshape(-1), sizes.reshape(-1), len(ranked.blocks) + 1)
            per_block = per_block if l1 else np.sqrt(per_block)
            share = len(ranked.blocks) if l1 else math.sqrt(len(ranked.blocks))
            assert per_block.max() <= bound / share * FIXED_POINT + 1
    assert reached["quantile"] == FIXED_POINT / 2
    if bound <= 0.003 and not clip_blocks and not l1:  # small bounds are used up
        assert reached["updates"] > 0.99 * bound * FIXED_POINT


def test_clipping_keeps_the_direction_and_leaves_small_updates_alone():
    everything = world(1)
    ranked, cutoffs, users, train, seeds = everything
    free = LocalTraining(num_negatives=2)
    for device in range(20):
        one = np.array([device])

        def update(how, one=one):
            return train_group(LocalWork(ranked, cutoffs[one], users[one], train.select(one), seeds[one], how))[1]

        whole = update(free)
        norm = math.sqrt(np.square(whole.sums / FIXED_POINT).sum())
        if norm < 1e-3:  # of so little, rounding is a part
            continue
        assert (update(LocalTraining(num_negatives=2, max_norm=1.01 * norm)).sums == whole.sums).all()
        half = update(LocalTraining(num_negatives=2, max_norm=norm / 2))
        np.testing.assert_allclose(half.sums, whole.sums / 2, rtol=1e-3, atol=2)
        assert half.norms[0] == pytest.approx(norm, rel=1e-4)  # of the update before it was clipped


def test_counts_by_hand():
    """Rows 0..3 are items 0..3. Device 0 has {0, 1, 1, 2, 3}: four rows, each 1 / sqrt(4); device 1 has {3}: 1."""
    rng = np.random.default_rng(0)

    layout = BlockLayout(np.arange(4, dtype=np.int32), 2, 1)
    ranked = rank_blocks(layout, "fp32", np.array([4.0, 3.0, 2.0, 1.0]), rng.normal(size=(4, 2)).astype(np.float32))
    train = rows_of([0, 1, 1, 2, 3], [3], [])
    l2 = bounded_counts(ranked, train, 1.0, l1=False) / FIXED_POINT
    np.testing.assert_allclose(l2, [0.5, 0.5, 0.5, 1.5], atol=1e-6)
    l1 = bounded_counts(ranked, train, 1.0, l1=True) / FIXED_POINT
    np.testing.assert_allclose(l1, [0.25, 0.25, 0.25, 1.25], atol=1e-6)
    loose = bounded_counts(ranked, train, 9.0, l1=False) / FIXED_POINT  # a row counts once at most
    np.testing.assert_allclose(loose, [1, 1, 1, 2], atol=1e-6)


def test_answers_which_user_group():
    """epsilon ln 6 of 4 groups: the own one with probability 6 / 9, each other one with 1 / 9; odds are e^epsilon."""
    devices = np.arange(90_000)
    answers = randomized_groups(np.full(90_000, 2, np.int32), 4, math.log(6), SeededNoise(0), devices)
    counts = Counter(answers.tolist())
    assert counts[2] / 90_000 == pytest.approx(6 / 9, abs=0.01)
    assert [counts[group] / 90_000 for group in (0, 1, 3)] == pytest.approx([1 / 9] * 3, abs=0.005)
    assert (
        randomized_groups(np.full(9, 2, np.int32), 4, math.log(6), SeededNoise(0), devices[:9]) == answers[:9]
    ).all()


# ---------------------------------------------------------------- what the server makes of it


def test_shrinkage_beats_both_ends():
    """Mean squared error below that of believing everything and of believing nothing; pure noise becomes nothing."""
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 1, (640, 64)) * np.linspace(2, 0, 640)[:, None]
    noised = signal + rng.normal(0, 1, signal.shape)
    error = np.square(shrunk(noised, 1.0) - signal).mean()
    assert error < 0.8 * min(1.0, np.square(signal).mean())
    pure = rng.normal(0, 1, (6400, 64))
    assert np.square(shrunk(pure, 1.0)).mean() < 1e-3


def signals(rng, truth, std, hits=400_000):
    """Eight user groups of 200 blocks whose hits follow ``truth``."""
    groups = []
    for _ in range(8):
        features = rng.normal(size=(200, len(truth)))
        chances = np.exp(features @ truth)
        drawn = rng.multinomial(hits // 8, chances / chances.sum()).astype(float)
        noised = drawn + rng.normal(0, std, 200) if std else drawn
        groups.append(NoisedSignals(features, np.full(200, 50.0), noised, np.full(200, float(std) ** 2)))
    return groups


def test_tilting_finds_what_is_there_and_stays_where_noise_drowns_it():
    rng = np.random.default_rng(0)
    truth, start = np.array([1.0, 0.4, -0.3]), np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(tilted(signals(rng, truth, 0.0), start), truth, atol=0.02)
    np.testing.assert_allclose(tilted(signals(rng, truth, 30.0), start), truth, atol=0.05)
    np.testing.assert_allclose(tilted(signals(rng, truth, 3e6), start), start, atol=0.05)
    assert (tilted([], start) == start).all()


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
    for over, under in ((1, 1), (0, 1), (1, 3), (601, 3), (2000, 1), (24 * 10**5, 1), (10**40, 7 * 10**39)):
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
