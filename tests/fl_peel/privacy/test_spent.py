"""What the accountants are asked and what is made of their answers, by hand; calibration where costs are known.

In :mod:`tests.fl_peel.privacy.test_accounting` they are held to published figures, which takes longer.
"""

import itertools
import logging
import math

import pytest
from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    UnsupportedDpEvent,
)

from fl_peel.errors import ScenarioError
from fl_peel.privacy.mechanisms import (
    NO_PRIVACY,
    SMALLEST_MULTIPLIER,
    TOLERANCE,
    CentralGaussian,
    LocalGaussian,
    LocalLaplace,
    PrivacyCost,
    Schedule,
    _kept_cost,
    _quiet,
    calibrated,
    cost_of,
    event_of,
    privacy_cost,
)
from fl_peel.scenario.settings import LARGEST_MULTIPLIER
from tests.helpers.gaussian import analytic_gaussian_delta

DELTA = 1e-5
EVENT = SelfComposedDpEvent(GaussianDpEvent(2.0), 3)


@pytest.fixture(autouse=True)
def nothing_is_kept():
    """Answers of accountants that are made up here are not those of other tests."""
    _kept_cost.cache_clear()
    yield
    _kept_cost.cache_clear()


# ---------------------------------------------------------------- what one release costs


def test_events_of_mechanisms():
    assert CentralGaussian().event(2.5) == LocalGaussian().event(2.5) == GaussianDpEvent(2.5)
    assert LocalLaplace().event(2.5) == LaplaceDpEvent(2.5)


def test_events_by_hand():
    """A coin where there is one; precisions of a share; nothing of what is released never or of no share."""
    schedule = Schedule(((0, 1.0), (3, 1.0), (5, 0.0), (2, 0.25)), 0.5, ((7, 1.0),))
    full, part = (PoissonSampledDpEvent(0.5, GaussianDpEvent(z)) for z in (2.0, 4.0))
    certain = SelfComposedDpEvent(GaussianDpEvent(2.0), 7)
    assert event_of(CentralGaussian(), 2.0, schedule) == ComposedDpEvent(
        [SelfComposedDpEvent(full, 3), SelfComposedDpEvent(part, 2), certain]
    )
    assert event_of(CentralGaussian(), 2.0, Schedule(((7, 1.0),))) == ComposedDpEvent([certain])


# ---------------------------------------------------------------- two accountants


def answering(monkeypatch, rdp, pld):
    """Accountants with these epsilons (None: they do not support the event); a list of what they are asked."""
    asked = []

    class Accountant:
        def __init__(self, *how, **named):
            self.how = (*how, *named.items())

        def supports(self, event):
            assert event is EVENT
            return self.epsilon is not None

        def compose(self, event):
            assert event is EVENT
            asked.append((type(self).__name__, self.how, logging.getLogger("absl").level))

        def get_epsilon(self, delta):
            assert asked, "nothing was composed"
            return self.epsilon / (delta / DELTA)

    for module, name, epsilon in (("rdp", "RdpAccountant", rdp), ("pld", "PLDAccountant", pld)):
        monkeypatch.setattr(f"dp_accounting.{module}.{name}", type(name, (Accountant,), {"epsilon": epsilon}))
    return asked


@pytest.mark.parametrize(
    ("rdp", "pld", "expected"),
    [
        (3.0, 2.0, (2.0, "PLD", 3.0, 2.0)),
        (2.0, 3.0, (2.0, "RDP", 2.0, 3.0)),
        (None, 3.0, (3.0, "PLD", None, 3.0)),
        (2.0, None, (2.0, "RDP", 2.0, None)),
        (2.0, math.inf, (2.0, "RDP", 2.0, None)),
        (math.inf, 3.0, (math.inf, "none", None, None)),  # as much as that is beyond all privacy
        (None, math.inf, (math.inf, "none", None, None)),
        (None, None, (math.inf, "none", None, None)),
        (0.0, 0.5, (0.0, "RDP", 0.0, 0.5)),
        (NO_PRIVACY, 1.0, (NO_PRIVACY, "RDP", NO_PRIVACY, None)),
        (math.nextafter(NO_PRIVACY, 0), 1.0, (1.0, "PLD", math.nextafter(NO_PRIVACY, 0), 1.0)),
    ],
)
def test_the_tighter_finite_answer_counts(rdp, pld, expected, monkeypatch):
    answering(monkeypatch, rdp, pld)
    epsilon, accountant, *both = expected
    assert privacy_cost(EVENT, DELTA) == PrivacyCost(epsilon, DELTA, accountant, *both)


def test_accountants_are_asked_for_zeros_instead_quietly_and_at_the_delta(monkeypatch):
    asked, level = answering(monkeypatch, 3.0, 2.0), logging.getLogger("absl").level
    relation = NeighboringRelation.REPLACE_SPECIAL
    assert privacy_cost(EVENT, 4 * DELTA, discretization=0.25) == PrivacyCost(0.5, 4 * DELTA, "PLD", 0.75, 0.5)
    rdp = ("RdpAccountant", (("neighboring_relation", relation),), logging.ERROR)
    assert asked == [rdp, ("PLDAccountant", (relation, 0.25), logging.ERROR)]
    assert logging.getLogger("absl").level == level != logging.ERROR
    privacy_cost(EVENT, DELTA)
    assert asked[-1][1] == (relation, 1e-4)


def test_accountants_are_heard_again_whatever_happened():
    logger = logging.getLogger("absl")
    level = logger.level

    def failing():
        with _quiet():
            assert logger.level == logging.ERROR
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert logger.level == level


def test_of_true_accountants_on_a_coarse_grid():
    """Epsilon of one Gaussian release by the closed form, of one Laplace release its own, each at most a step above."""
    step = 0.05
    result = privacy_cost(GaussianDpEvent(2.0), DELTA, discretization=step)
    assert result.pld == result.epsilon < result.rdp
    assert analytic_gaussian_delta(2.0, result.epsilon) <= DELTA < analytic_gaussian_delta(2.0, result.epsilon - step)
    assert 0.99 / 2 < privacy_cost(LaplaceDpEvent(2.0), DELTA, discretization=step).epsilon <= 1 / 2 + step
    # to replace by zeros is as dear as to leave out: a coin of one half leaves log(1 + (e^epsilon - 1) / 2)
    halved = privacy_cost(PoissonSampledDpEvent(0.5, LaplaceDpEvent(0.5)), 1e-12, discretization=step).epsilon
    assert math.log((1 + math.exp(2)) / 2) - 0.01 < halved <= math.log((1 + math.exp(2)) / 2) + step
    assert privacy_cost(UnsupportedDpEvent(), DELTA) == PrivacyCost(math.inf, DELTA, "none", None, None)


def test_the_closed_form_by_hand():
    # Phi(1/2) - Phi(-1/2); Phi(1/2) - e Phi(-3/2)
    assert analytic_gaussian_delta(1.0, 0.0) == pytest.approx(0.3829249225, abs=1e-9)
    assert analytic_gaussian_delta(0.5, 1.0) == pytest.approx(0.6914624613 - math.e * 0.0668072013, abs=1e-9)


# ---------------------------------------------------------------- what was asked before


class Loose(LocalGaussian):
    """Compared by something else than what it is, and so without a hash."""

    def __eq__(self, other):
        return True


@pytest.mark.parametrize(("mechanism", "times"), [(CentralGaussian(), 1), (Loose(), 2)])
def test_the_same_cost_is_computed_once(mechanism, times, monkeypatch):
    asked = []

    def cost(event, delta, *, discretization):
        asked.append((event, delta, discretization))
        return PrivacyCost(len(asked), delta, "", None, None)

    monkeypatch.setattr("fl_peel.privacy.mechanisms.privacy_cost", cost)
    schedule = Schedule(((2, 1.0),))
    first, again = (cost_of(mechanism, 3.0, Schedule(((2, 1.0),)), DELTA) for _ in range(2))
    assert (first.epsilon, again.epsilon) == (1, times)
    assert asked == [(event_of(mechanism, 3.0, schedule), DELTA, 1e-4)] * times
    del asked[:]
    others = [
        cost_of(LocalGaussian(), 3.0, schedule, DELTA),
        cost_of(mechanism, 4.0, schedule, DELTA),
        cost_of(mechanism, 3.0, Schedule(((3, 1.0),)), DELTA),
        cost_of(mechanism, 3.0, schedule, 2 * DELTA),
        cost_of(mechanism, 3.0, schedule, DELTA, discretization=1e-3),
    ]
    assert [one.epsilon for one in others] == [1, 2, 3, 4, 5]
    assert [discretization for _, _, discretization in asked] == [1e-4] * 4 + [1e-3]


# ---------------------------------------------------------------- calibration


@pytest.fixture
def least(monkeypatch):
    """The noise that is found where a run of noise z spends 1 / z, and so ``needed`` is the least that is enough."""

    def result(needed):
        tries = itertools.count()

        def cost(mechanism, multiplier, schedule, delta, *, discretization):
            assert next(tries) < 99, "it never ends"
            assert (mechanism, schedule, delta) == (CentralGaussian(), Schedule(((2, 1.0),)), DELTA)
            return PrivacyCost(1 / multiplier, delta, "", None, None)

        monkeypatch.setattr("fl_peel.privacy.mechanisms.cost_of", cost)
        return calibrated(CentralGaussian(), Schedule(((2, 1.0),)), 1 / needed, DELTA)

    return result


@pytest.mark.parametrize("needed", [2.0**-2, 2.0**-1, 1.0, 2.0, 4.0, 8.0, 64.0, 4.0**8])
def test_noise_that_costs_exactly_the_target_is_enough(needed, least):
    """Ends and middles of the search, none of which is rounded."""
    assert least(needed) == needed


@pytest.mark.parametrize(
    ("needed", "low", "width", "halvings"),
    [(3.0, 1.0, 4.0, 11), (0.7, 0.25, 4.0, 11), (0.2, SMALLEST_MULTIPLIER, 2.5, 10), (9.0, 4.0, 4.0, 11)],
)
def test_calibrated_noise_stays_what_it_was(needed, low, width, halvings, least):
    """A bracket of ``low`` to ``width`` times that, halved until its ends are a thousandth apart: its upper end."""
    place = math.ceil(math.log(needed / low, width) * 2**halvings)
    expected = low * width ** (place / 2**halvings)
    assert width ** (1 / 2**halvings) < 1.001 < width ** (2 / 2**halvings)
    assert least(needed) == pytest.approx(expected, rel=1e-9)
    assert needed <= expected <= 1.001 * needed


def test_a_target_that_hardly_protects_gets_the_smallest_noise(least):
    assert least(SMALLEST_MULTIPLIER / 9) == pytest.approx(SMALLEST_MULTIPLIER * 2.5 ** (1 / 1024), rel=1e-9)


def test_a_target_is_met_by_all_noise_that_there_may_be_and_refused_beyond(least):
    assert 0.99 * LARGEST_MULTIPLIER <= least(0.99 * LARGEST_MULTIPLIER) <= LARGEST_MULTIPLIER
    assert least(LARGEST_MULTIPLIER * (1 - 1e-9)) == LARGEST_MULTIPLIER
    for beyond in (LARGEST_MULTIPLIER * 1.001, 1e9):
        with pytest.raises(ScenarioError, match=r"^privacy\.target_epsilon: .* cannot be met over the rounds"):
            least(beyond)


@pytest.mark.parametrize(("target", "step"), [(0.05, 1e-4), (1.0, 1e-4), (5.0, 5e-4), (30.0, 1e-3), (40.0, 1e-3)])
def test_calibration_resolves_losses_as_far_as_its_target_needs(target, step, monkeypatch):
    """Here a run of noise z costs 9 / z: the least noise is 9 / target."""
    steps, tries = set(), itertools.count()

    def cost(mechanism, multiplier, schedule, delta, *, discretization):
        assert next(tries) < 99, "it never ends"
        steps.add(discretization)
        return PrivacyCost(9 / multiplier, delta, "", None, None)

    monkeypatch.setattr("fl_peel.privacy.mechanisms.cost_of", cost)
    multiplier = calibrated(CentralGaussian(), Schedule(((1, 1.0),)), target, DELTA)
    assert 9 / target <= multiplier <= 9 / target * (1 + TOLERANCE)
    assert list(steps) == pytest.approx([step])
