"""The empirical epsilon: right on known distributions, below the accounted one, above it when noise is short."""

import dataclasses
import math

import numpy as np
import pytest

from fl_peel.attacks.canary import (
    canary_audit,
    empirical_epsilon,
    one_run_audit,
    one_run_epsilon,
    worst_canary,
)
from fl_peel.privacy.noise_plan import make_plan, noise_devices_of
from fl_peel.privacy.sources import SeededNoise
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import load_scenario

SEEDS = range(10)
SMALL = ("refinement.rounds=2", "secure_aggregation.min_devices=4")


def scenario(
    mechanism: str = "central-gaussian",
    epsilon: float = 4.0,
    delta: float = 1e-5,
    multiplier: float | None = None,
    **refinement,
) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "canary",
            "selector": "controller",
            "data": {"name": "ml-100k"},
            "refinement": {"rounds": 2, **refinement},
            "privacy": {
                "mechanism": mechanism,
                "target_epsilon": epsilon,
                "noise_multiplier": multiplier,
                "delta": delta,
                "clipping": {"kind": "flat", "norm": 0.5},
                "rows": "all-sent",
            },
        }
    )


def test_what_is_told_apart_for_certain_is_bounded_by_the_number_of_trials():
    """500 of 500 and 0 of 500 at alpha = 1/80: TPR >= alpha^(1/500), FPR <= 1 - alpha^(1/500): ln of their ratio."""
    outcome = empirical_epsilon(np.zeros(1000), np.ones(1000), 0.0, 0.95)
    edge = 0.0125 ** (1 / 500)
    assert outcome.epsilon_low == pytest.approx(math.log(edge / (1 - edge)))
    assert outcome.advantage == 1


def test_what_cannot_be_told_apart_bounds_nothing():
    rng = np.random.default_rng(0)
    outcome = empirical_epsilon(rng.normal(size=2000), rng.normal(size=2000), 0.0, 0.95)
    assert outcome.epsilon_low < 0.2
    assert abs(outcome.advantage) < 0.1


def test_randomized_response_by_hand():
    """Answers 1 with 3/4 when present and 1/4 when not: epsilon is ln 3, and 20,000 trials come near it."""
    rng = np.random.default_rng(1)
    outcome = empirical_epsilon(1.0 * (rng.random(20_000) < 0.25), 1.0 * (rng.random(20_000) < 0.75), 0.0, 0.95)
    assert 0.95 < outcome.epsilon_low <= math.log(3)


TIGHT = {"epsilon": 1.0, "delta": 0.1}
"""A target that 300 trials can exceed: they show 3.4 of what has no noise, and with half of the noise 1.3 and more on
average. At a small delta a canary of normal noise shows next to nothing.
"""


def with_part_of_the_noise(plan, part):
    """A plan whose mechanism draws less than it accounts for."""
    mechanism = type(plan.mechanism)

    class Forgetful(mechanism):
        def draw(self, rng, shape, scale):
            return super().draw(rng, shape, part * scale)

    return dataclasses.replace(plan, mechanism=Forgetful())


def shown(content, plan, seeds=SEEDS):
    """Epsilons of each of the seeds."""
    return [canary_audit(content, plan, trials=300, seed=seed).epsilon_low for seed in seeds]


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        scenario(**TIGHT),
        scenario("local-gaussian", **TIGHT),
        scenario("local-laplace", **TIGHT),
        scenario(cohort_share=0.5, sampling="poisson", multiplier=0.8974, **TIGHT),  # as calibration finds in 10 s
    ],
    ids=["central-gaussian", "local-gaussian", "local-laplace", "poisson"],
)
def test_never_above_the_accounted_epsilon_over_10_seeds(content):
    """But with half of the noise nearly always, and with none by far: the test can fail."""
    plan = make_plan(content)
    assert plan.epsilon > 0.99
    result = shown(content, plan)
    assert max(result) <= plan.epsilon
    assert np.mean(result) > 0.05  # and not because nothing was told apart
    assert np.mean(shown(content, with_part_of_the_noise(plan, 0.5), SEEDS[:5])) > plan.epsilon
    assert canary_audit(content, with_part_of_the_noise(plan, 1e-6), trials=300, seed=0).epsilon_low > 2


def test_noise_that_falls_short_is_caught():
    """A fifth of the noise that is accounted for, at a small delta."""
    content = scenario(epsilon=1.0)
    plan = make_plan(content)
    assert canary_audit(content, plan, trials=400, seed=0).epsilon_low <= plan.epsilon
    assert canary_audit(content, with_part_of_the_noise(plan, 0.2), trials=400, seed=0).epsilon_low > plan.epsilon


@pytest.mark.slow
def test_never_above_where_devices_add_the_noise_in_shares():
    """The shipped scenario: sums of the fewest devices that may be opened, without the share of the one that tells."""
    content = load_scenario("private", [*SMALL, "privacy.target_epsilon=1", "privacy.delta=0.1"])
    plan = make_plan(content)
    assert noise_devices_of(content, 4) == 2
    worst = worst_canary(content, plan, trials=200, seeds=10)
    assert 0.1 < worst.epsilon_low <= plan.epsilon
    assert worst.seeds == 10


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 10**9], ids=["half of the noise", "none"])
def test_shares_for_too_many_devices_are_caught(monkeypatch, devices):
    """Shares made for 8 devices where 2 may be in the sum leave half of the deviation; for very many, nothing."""
    content = load_scenario("private", [*SMALL, "privacy.target_epsilon=1", "privacy.delta=0.1"])
    plan = make_plan(content)
    real = SeededNoise.share
    monkeypatch.setattr(
        SeededNoise, "share", lambda self, shape, std, num, unit, what: real(self, shape, std, devices, unit, what)
    )
    assert worst_canary(content, plan, trials=200, seeds=5).epsilon_low > plan.epsilon


@pytest.mark.slow
def test_the_worst_of_many_seeds_is_reported():
    content = scenario(epsilon=2.0)
    plan = make_plan(content)
    each = [canary_audit(content, plan, trials=100, seed=seed).epsilon_low for seed in range(3)]
    assert worst_canary(content, plan, trials=100, seeds=3).epsilon_low == max(each)


def test_without_noise_every_canary_is_told():
    """As high as 100 trials can show, 50 of them to measure: see the first test."""
    outcome = worst_canary(scenario(), None, trials=100, seeds=1)
    edge = 0.0125 ** (1 / 50)
    assert outcome.advantage == 1
    assert outcome.epsilon_low == pytest.approx(math.log((edge - 1e-5) / (1 - edge)))


def test_a_bound_from_right_guesses_by_hand():
    """100 of 100 right: (1 + e^-epsilon)^-100 is .05 at epsilon 3.49. Half of them right shows nothing."""
    assert one_run_epsilon(1000, 100, 100, 0.0, 0.95) == pytest.approx(-math.log(0.05 ** (-1 / 100) - 1))
    assert one_run_epsilon(1000, 100, 50, 0.0, 0.95) == 0
    assert one_run_epsilon(1000, 100, 100, 1e-4, 0.95) < one_run_epsilon(1000, 100, 100, 0.0, 0.95)


@pytest.mark.parametrize("mechanism", ["central-gaussian", "local-gaussian", "local-laplace"])
def test_many_canaries_in_one_run_show_a_third_of_epsilon_and_never_more_than_all(mechanism):
    content = scenario(mechanism, 8.0)
    plan = make_plan(content)
    shown = [one_run_audit(content, plan, seed=seed) for seed in range(4)]
    assert plan.epsilon / 3 < np.mean(shown)
    assert max(shown) < plan.epsilon


def test_noise_that_falls_short_is_caught_in_one_run():
    content = scenario(epsilon=1.0)
    plan = make_plan(content)
    assert one_run_audit(content, with_part_of_the_noise(plan, 0.2), seed=0) > plan.epsilon
    assert one_run_audit(content, plan, seed=0) < plan.epsilon
