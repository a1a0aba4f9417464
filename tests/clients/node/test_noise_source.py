"""Noise from the operating system: in all places, as strong as planned, never the same; and never from a seed outside
simulation.
"""

import json

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.contracts import MechanismContract
from fl_peel.errors import ScenarioError
from fl_peel.privacy import mechanisms, sources
from fl_peel.privacy.mechanisms import CentralGaussian
from fl_peel.privacy.noise_plan import make_plan
from fl_peel.privacy.sources import SeededNoise, SystemNoise, randomized_groups, source_of, whole_scale
from simulations.runner import run
from simulations.scenario_files import load_scenario
from strategies.nodes import Nodes
from strategies.rounds.strategy import sample_cohort
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.clients.node.test_bounded import CENTRAL, LOCAL, released_noise
from tests.helpers.examples import but_one_slow
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import figures, node_reply, served
from tests.strategies.rounds.test_clear_steps import SPECTRAL

SYSTEM = "privacy.noise_source=system"
SECURE = "secure_aggregation={enabled: true, devices_per_group: null, min_devices: 4, neighbours: 4, threshold: 0.75}"
ASKED = ("pretraining.collected.share=50%", "privacy.group_epsilon=2")
STAGE1 = (
    "pretraining=" + json.dumps(SPECTRAL | {"passes": 2, "count_exponent": None, "value_exponent": None}),
    "refinement.rounds=0",
    "privacy.group_epsilon=9",
)
KINDS = {
    "central": CENTRAL,
    "shares": (*CENTRAL, SECURE),
    "local": LOCAL,
    "laplace": (*CENTRAL, "privacy.mechanism=local-laplace"),
    "adaptive": (*CENTRAL, "privacy.clipping.kind=adaptive"),
    "poisson": (*CENTRAL, "refinement.sampling=poisson", "refinement.cohort_share=0.5"),
    "answers": (*CENTRAL, *ASKED),
    "silences": (*CENTRAL, "privacy.answer_share=0.6", SECURE),
    "stage 1, central": (*CENTRAL, *STAGE1),
    "stage 1, local": (*LOCAL, *STAGE1),
    "stage 1, laplace": (*CENTRAL, "privacy.mechanism=local-laplace", *STAGE1),
    "stage 1, shares": (*CENTRAL, SECURE, *STAGE1),
}


@pytest.fixture
def no_seeds(monkeypatch):
    """Neither noise nor a coin that hides somebody can be had from a seed; what is drawn from the system is noted."""
    drawn = []

    def refuse(*args, **kwargs):
        raise AssertionError("drawn from a seed")

    for name in ("noise", "share", "uniforms"):
        monkeypatch.setattr(SeededNoise, name, refuse)
        real = getattr(SystemNoise, name)
        monkeypatch.setattr(
            SystemNoise, name, lambda self, *args, real=real, name=name: drawn.append((name, args)) or real(self, *args)
        )
    for kind in (mechanisms.Gaussian, mechanisms.LocalLaplace):
        monkeypatch.setattr(kind, "draw", refuse)
    for where in (sources, mechanisms):
        monkeypatch.setattr(where, "noise_share", refuse)
    return drawn


@pytest.mark.parametrize("kind", but_one_slow("central", KINDS))
def test_whatever_hides_a_device_is_drawn_from_the_system(tiny, tmp_path, no_seeds, kind):
    result, _ = served(load_scenario(tiny, [*KINDS[kind], SYSTEM]), tmp_path / "run")
    named = {args[-1][0] if name != "uniforms" else args[0][0] for name, args in no_seeds}
    if kind.startswith("stage 1"):  # in which noise may leave one user group, and then nobody answers which
        named -= {"group-answer", "other-group"}
    expected = {
        "central": {"server-noise"},
        "shares": {"noise-share"},
        "local": {"device-noise"},
        "laplace": {"device-noise"},
        "adaptive": {"server-noise"},
        "poisson": {"server-noise", "cohort"},
        "answers": {"server-noise", "group-answer", "other-group"},
        "silences": {"noise-share", "answers"},
        "stage 1, shares": {"stage-1-noise-share"},
    }
    assert named == expected.get(kind, {"stage-1-noise"})
    assert result.privacy.accounted.noise_source == "system"
    if kind == "adaptive":  # whose quantile is noised too
        assert [args for name, args in no_seeds if args[-1][-1] == "quantile"]
    numbers = [(args[-1], name) for name, args in no_seeds if name != "uniforms"]
    assert len(set(numbers)) == len(numbers), "what is drawn twice is known by the difference"


@pytest.mark.parametrize("overrides", [CENTRAL, LOCAL], ids=["server", "devices"])
def test_noise_of_the_system_has_the_planned_deviation(overrides):
    scenario = load_scenario("ml-100k", [*overrides, SYSTEM, "privacy.clipping.norm=3"])
    plan, source = make_plan(scenario), source_of(scenario)
    scale = plan.scale("updates", 3.0)
    drawn = source.noise(plan.mechanism, (300, 500), scale, 2.0**24, ("any",)) / 2.0**24
    assert drawn.shape == (300, 500)
    assert drawn.std() == pytest.approx(plan.std("updates", 3.0), rel=0.01)  # five standard errors
    shares = sum(source.share((300, 500), 3.0, 25, 2.0**24, ("any",)) for _ in range(25)) / 2.0**24
    assert shares.std() == pytest.approx(3.0, rel=0.01)
    again = source.noise(plan.mechanism, (300, 500), scale, 2.0**24, ("any",)) / 2.0**24
    assert abs(np.corrcoef(drawn.ravel(), again.ravel())[0, 1]) < 0.015
    if plan.mechanism.where == "server":
        releases = [released_noise(scenario, plan, 1, 0).sums["updates"].ravel() for _ in range(60)]
        assert np.std(releases) == pytest.approx(plan.std("updates", 3.0), rel=0.05)


def test_answers_and_coins_of_the_system():
    """As likely as those of a seed, and others each time."""
    devices = np.arange(60_000)
    answers = [randomized_groups(np.full(60_000, 2, np.int32), 4, np.log(6), SystemNoise(), devices) for _ in range(2)]
    for given in answers:
        assert np.bincount(given) / 60_000 == pytest.approx([1 / 9, 1 / 9, 6 / 9, 1 / 9], abs=0.01)
    assert (answers[0] == answers[1]).mean() == pytest.approx((36 + 3) / 81, abs=0.01)  # independent
    cohorts = [sample_cohort(0, 1, devices, 0.2, poisson=True, source=SystemNoise()) for _ in range(2)]
    assert [len(cohort) for cohort in cohorts] == pytest.approx([12_000] * 2, abs=500)
    assert len(np.intersect1d(*cohorts)) == pytest.approx(2_400, abs=250)


def test_scales_in_whole_units_are_never_smaller():
    assert whole_scale(0.75, 4.0) == 3
    assert whole_scale(0.76, 4.0) == 4
    assert whole_scale(1e-9, 4.0) == 1


# ---------------------------------------------------------------- refused


class Older(CentralGaussian):
    """A mechanism that draws floats alone."""

    name = "older"
    draw_whole = mechanisms.Mechanism.draw_whole


BAD = [
    (("privacy.mechanism=none", "privacy.noise_multiplier=null", "privacy.clipping.kind=none"), "noise_source: system"),
]


@pytest.mark.parametrize(("overrides", "line"), BAD)
def test_what_the_system_cannot_draw_is_refused_at_the_start(overrides, line):
    with pytest.raises((ScenarioError, ValueError), match=line):
        make_plan(load_scenario("ml-100k", [*CENTRAL, SYSTEM, *overrides]))


class SuperNodes(LoopbackGrid):
    """Nodes of a deployment: none says that it is simulated."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.node_config = {}


@pytest.mark.parametrize("overrides", [CENTRAL, LOCAL, (*CENTRAL, SECURE)], ids=["central", "local", "shares"])
def test_seeded_noise_is_refused_where_nothing_is_simulated(tiny, tmp_path, overrides):
    """Before anything else is asked of a node."""
    grid = SuperNodes(2)
    with pytest.raises(ScenarioError, match=r"^privacy\.noise_source: seed is for simulations") as caught:
        serve(grid, load_scenario(tiny, overrides), RunPaths("", str(tmp_path / "run")))
    assert "\n" not in str(caught.value)
    assert {kind for kind, _ in grid.crossed} == {wire.HELLO}


@pytest.mark.parametrize("overrides", [(), (*CENTRAL, SYSTEM)], ids=["no noise", "system"])
def test_other_runs_are_not(tmp_path, overrides):
    grid = SuperNodes(2)
    grid.node_config = {"data-dir": str(tmp_path), "run-dir": str(tmp_path)}
    scenario = load_scenario("ml-100k", overrides)
    assert len(Nodes.connect(grid, scenario.to_json(), root="", timeout_s=10).ids) == 2


@pytest.mark.engine
def test_flowers_simulation_is_one(tiny, tmp_path):
    """Its workers draw from the seed, with no word of anybody's, and what they draw repeats."""
    result = run(load_scenario(tiny, LOCAL))
    assert figures(result) == figures(served(load_scenario(tiny, LOCAL), tmp_path / "run")[0])


def test_a_device_refuses_seeded_noise_whatever_the_server_asks(tiny, tmp_path):
    """Even one that never said hello: no door opens."""
    setting = wire.RunSetting(load_scenario(tiny, LOCAL).to_json(), "", str(tmp_path / "run"))
    nobody = np.zeros(0, np.int64)
    request = wire.RoundRequest(setting, 1, True, 1.0, nobody, nobody, {})
    for config in ({}, {"simulated": False}, {"simulated": "true"}):
        reply = node_reply(config, request, wire.ROUND)
        assert reply.error.code == wire.USER_MISTAKE
        error = wire.NodeError.from_reason(reply.error.reason)
        assert (error.code, error.place) == ("ScenarioError", "privacy.noise_source")
        assert error.text.startswith("privacy.noise_source: seed is for simulations")


class TestOlder(MechanismContract):
    mechanism = Older()
