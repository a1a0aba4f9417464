"""The accountants against published figures and closed forms; calibration; refusals of one line."""

import math

import pytest
from dp_accounting import (
    GaussianDpEvent,
    LaplaceDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from fl_peel.errors import ScenarioError
from fl_peel.privacy.mechanisms import (
    CentralGaussian,
    LocalLaplace,
    PrivacyCost,
    Schedule,
    event_of,
    privacy_cost,
)
from fl_peel.privacy.noise_plan import make_plan
from simulations.scenario_files import load_scenario
from tests.helpers.gaussian import analytic_gaussian_delta

DELTA = 1e-5
CENTRAL = [
    "privacy.mechanism=central-gaussian",
    "privacy.clipping.kind=flat",
]


# The table of TensorFlow Privacy's MNIST tutorial (tutorials/README.md): batches of 256 of 60,000, noise multiplier,
# epochs, epsilon at delta 1e-5. It was made with the older conversion of Renyi divergence, eps = rdp + log(1/delta) /
# (order - 1) over integer orders up to 64 and a few more; today's bounds are tighter, by up to three tenths.
@pytest.mark.parametrize(("multiplier", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)])
def test_dp_sgd_on_mnist(multiplier, epochs, published):
    steps = epochs * 60_000 // 256
    event = SelfComposedDpEvent(PoissonSampledDpEvent(256 / 60_000, GaussianDpEvent(multiplier)), steps)
    result = privacy_cost(event, DELTA)
    assert result.rdp is not None
    assert result.pld is not None
    assert 0.7 * published < result.pld < result.rdp < published
    assert (result.epsilon, result.accountant) == (result.pld, "PLD")
    older = min(
        sum_of_rdp(256 / 60_000, multiplier, order) * steps + math.log(1 / DELTA) / (order - 1)
        for order in range(2, 65)
    )
    assert older == pytest.approx(published, abs=0.06)


def sum_of_rdp(q, z, order):
    """Renyi divergence of one subsampled Gaussian at an integer order (Mironov, Talwar & Zhang, 2019, section 3.3)."""
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + k * math.log(q)
        + (order - k) * math.log1p(-q)
        + k * (k - 1) / (2 * z * z)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / (order - 1)


def test_gaussian_against_the_closed_form():
    # Balle & Wang (ICML 2018), theorem 8; sigma = 3.730632 is the well-known calibration of (1, 1e-5), where the
    # classical formula sqrt(2 ln(1.25 / delta)) asks for 4.8448
    assert analytic_gaussian_delta(3.730632, 1.0) == pytest.approx(1e-5, rel=1e-5)
    assert math.sqrt(2 * math.log(1.25 / 1e-5)) == pytest.approx(4.8448, abs=1e-4)
    for multiplier in (0.7, 1.5, 3.730632):
        epsilon = privacy_cost(GaussianDpEvent(multiplier), DELTA).epsilon
        assert analytic_gaussian_delta(multiplier, epsilon) == pytest.approx(DELTA, rel=2e-3)
        assert analytic_gaussian_delta(multiplier, epsilon) <= DELTA  # an upper bound of epsilon


@pytest.mark.parametrize(("method", "sampling"), [("NO_AMPLIFICATION", 1.0), ("POISSON", 0.1)])
def test_the_accountant_of_flower_agrees(method, sampling):
    """Of what both know, Gaussian noise in rounds that devices are in, or are drawn for: one Renyi epsilon. Of rounds
    that all are in, a neighbour that sends zeros is one that is not there.
    """
    flower = pytest.importorskip("flwr.supercore.privacy_accounting.rdp_accountant", reason="Flower 1.41 has none")
    relation = flower.NeighboringRelation.ADD_OR_REMOVE_ONE
    theirs = flower.RdpAccountant(flower.PrivacyConfig(DELTA, 1000, relation, flower.SamplingMethod[method]))
    theirs.compose(flower.GaussianPrivacyEvent(1.3, int(1000 * sampling), 1000), 8)
    ours = privacy_cost(event_of(CentralGaussian(), 1.3, Schedule(((8, 1.0),), sampling)), DELTA)
    assert ours.rdp == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-9)
    assert ours.epsilon <= theirs.get_epsilon(DELTA), "the tighter of two"


def test_laplace_is_at_most_the_sum_of_its_epsilons():
    spends = privacy_cost(event_of(LocalLaplace(), 2.0, Schedule(((6, 1.0),))), DELTA)  # 6 rounds of epsilon 1 / 2
    assert 0.9 * 3 < spends.epsilon <= 3 + 1e-3
    # a distance of 1 in L1 that is spread over numbers loses no more than one number at distance 1
    whole = privacy_cost(LaplaceDpEvent(1.0), DELTA).epsilon
    for parts in (2, 5, 20):
        assert privacy_cost(SelfComposedDpEvent(LaplaceDpEvent(parts), parts), DELTA).epsilon <= whole + 1e-3


def plan_of(*overrides, **how):
    return make_plan(load_scenario("ml-100k", [*CENTRAL, *overrides]), **how)


BAD = [
    (["privacy.target_epsilon=8"], "privacy: target_epsilon needs a mechanism that adds noise; set privacy.mechanism"),
    (["privacy.mechanism=central-gaussian", "privacy.target_epsilon=8"], "privacy: mechanism central-gaussian"),
    (CENTRAL, "privacy: mechanism central-gaussian needs target_epsilon (or noise_multiplier); give one"),
    ([*CENTRAL, "privacy.target_epsilon=2", "privacy.group_epsilon=2"], "privacy: group_epsilon uses up"),
    (["privacy.clipping.kind=adaptive"], "privacy: clipping.kind adaptive releases a noised count of devices; set"),
    ([*CENTRAL, "privacy.target_epsilon=2", "privacy.noise_multiplier=1"], "privacy.noise_multiplier: 1 spends"),
    ([*CENTRAL, "privacy.target_epsilon=0.00001", "privacy.delta=0.0000000001"], "privacy.target_epsilon: 1e-05 at"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "start"), BAD)
def test_keys_that_make_no_true_epsilon_are_refused_in_one_line(overrides, start):
    with pytest.raises(ScenarioError) as caught:
        make_plan(load_scenario("ml-100k", overrides))
    text = str(caught.value).removeprefix("ml-100k: ")
    assert text.startswith(start)
    assert "\n" not in text


def test_an_accountant_without_a_finite_answer_has_none():
    """At a delta that no grid of losses resolves, Renyi divergence alone answers."""
    plan = plan_of("privacy.target_epsilon=8", "privacy.delta=1.0e-300")
    assert plan.cost.pld is None
    assert plan.cost.epsilon == plan.cost.rdp <= 8


def test_what_no_accountant_can_count_is_refused(monkeypatch):
    beyond = PrivacyCost(math.inf, DELTA, "none", None, None)
    monkeypatch.setattr("fl_peel.privacy.noise_plan.cost_of", lambda *asked: beyond)
    with pytest.raises(ScenarioError, match=r"noise_multiplier: 2 at privacy\.delta 1e-05 spends more than the acc"):
        plan_of("privacy.noise_multiplier=2")
