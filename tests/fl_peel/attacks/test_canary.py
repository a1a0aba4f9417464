"""The empirical epsilon: by hand, below the accounted one in every mode, above it when noise is short anywhere."""

import math

import numpy as np
import pytest

from fl_peel.attacks.canary import canary_epsilon, guessed_epsilon, shown_epsilon
from fl_peel.privacy.noise_plan import make_plan, noise_devices_of
from fl_peel.privacy.sources import SeededNoise
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import load_scenario


def scenario(
    mechanism: str = "central-gaussian",
    epsilon: float = 8.0,
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
                "target_epsilon": None if multiplier else epsilon,
                "noise_multiplier": multiplier,
                "delta": 1e-5,
                "clipping": {"kind": "flat", "norm": 0.5},
                "rows": "all-sent",
            },
        }
    )


MODES = {
    "central": scenario(),
    "local": scenario("local-gaussian"),
    "local, Laplace": scenario("local-laplace"),
    "sampled": scenario(multiplier=0.7, cohort_share=0.5, sampling="poisson"),
    "in shares": load_scenario("private", ["refinement.rounds=2", "privacy.target_epsilon=8"]),
    "stage 1": load_scenario("nothing-collected-private", []),
    "stage 1, local": load_scenario(
        "nothing-collected-private",
        ["privacy.mechanism=local-gaussian", "secure_aggregation.enabled=false", "pretraining.value_exponent=null"],
    ),
}


def test_a_bound_from_right_guesses_by_hand():
    """100 of 100 right: (1 + e^-epsilon)^-100 is .05 at epsilon 3.49. Half of them right shows nothing."""
    assert guessed_epsilon(1000, 100, 100, 0.0, 0.95) == pytest.approx(-math.log(0.05 ** (-1 / 100) - 1))
    assert guessed_epsilon(1000, 100, 50, 0.0, 0.95) == 0
    assert guessed_epsilon(1000, 100, 100, 1e-4, 0.95) < guessed_epsilon(1000, 100, 100, 0.0, 0.95)


def test_randomized_response_by_hand():
    """Answers the truth with 3/4: epsilon is ln 3. Whoever answers nothing shows nothing."""
    rng = np.random.default_rng(1)
    present, truly = rng.random((2, 20_000)) < np.array([[0.5], [0.75]])
    assert 1.0 < shown_epsilon({"": np.where(present == truly, 1.0, -1.0)}, present, 0.0) <= math.log(3)
    assert shown_epsilon({"": rng.normal(size=20_000)}, present, 0.0) < 0.2


def test_a_bound_holds_with_its_confidence():
    """Coins guessed right with probability e^2 / (1 + e^2): of 200 bounds at most 5 % are above 2."""
    rng = np.random.default_rng(0)
    right = (rng.random((200, 500)) < 1 / (1 + math.exp(-2))).sum(axis=1)
    bounds = np.array([guessed_epsilon(500, 500, correct, 0.0, 0.95) for correct in right.tolist()])
    assert 0 < np.mean(bounds > 2) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
    assert np.mean(bounds) > 1.6


@pytest.mark.parametrize("mode", MODES)
def test_a_run_shows_a_third_of_its_epsilon_and_never_more_than_all(mode):
    """Of sampled rounds a little less."""
    plan = make_plan(MODES[mode])
    bounds = [canary_epsilon(MODES[mode], plan, seed=seed) for seed in range(4)]
    assert plan.cost.epsilon * (0.3 if mode == "sampled" else 1 / 3) < np.mean(bounds)
    assert max(bounds) < plan.cost.epsilon


FORGOTTEN = [
    *(("central", "updates"), ("central", "signals"), ("local", "signals"), ("local, Laplace", "updates")),
    *(("in shares", "updates"), ("in shares", "signals"), ("stage 1", "counts"), ("stage 1", "pass")),
    *(("stage 1", "moment sizes"), ("stage 1, local", "choice")),
]


@pytest.mark.parametrize(("mode", "part"), FORGOTTEN)
def test_noise_that_is_forgotten_anywhere_is_caught(monkeypatch, mode, part):
    """Of one part, at epsilon 2; a fifth of all noise shows as well."""
    privacy = MODES[mode].privacy.model_copy(update={"target_epsilon": 2.0})
    content = MODES[mode].model_copy(update={"privacy": privacy})
    plan = make_plan(content)

    def lacking(draw, some, parts):
        def drawn(self, *arguments):
            values = draw(self, *arguments)
            return values // some if parts is None or parts in arguments[-1] else values

        return drawn

    for some, parts in ((10**9, part), (5, None)):
        with monkeypatch.context() as patch:
            for name in ("noise", "share"):
                patch.setattr(SeededNoise, name, lacking(getattr(SeededNoise, name), some, parts))
            assert canary_epsilon(content, plan, seed=0) > plan.cost.epsilon, (some, parts)


def test_sums_that_too_few_devices_noise_are_caught(monkeypatch):
    """Shares for four times as many devices as the smallest sum may have leave half of the deviation."""
    content = MODES["in shares"]
    plan = make_plan(content)
    least = noise_devices_of(content, content.secure_aggregation.min_devices)
    real = SeededNoise.share
    monkeypatch.setattr(
        SeededNoise, "share", lambda self, shape, std, num, unit, what: real(self, shape, std, 4 * least, unit, what)
    )
    assert canary_epsilon(content, plan, seed=0) > 1.3 * 3.67, "more than with all of the noise"


def test_without_noise_every_canary_is_told():
    """A quarter of them is guessed, and all right."""
    least = guessed_epsilon(4000, 1000, 1000, 1e-5, 1 - 0.05 / 2)
    assert canary_epsilon(scenario(), None, seed=0) == pytest.approx(least)
    assert least > 5
