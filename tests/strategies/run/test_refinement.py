"""Refining once more: from the same start, and with the noise that the scenario at hand asks for."""

from dataclasses import replace

import numpy as np
import pytest

from simulations.scenario_files import load_scenario
from strategies.rounds.contents import OpenServerContents
from strategies.rounds.noised import NoisedServerContents
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner, contents_kind
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import connected

NOISE = [
    "privacy.mechanism=central-gaussian",
    "privacy.clipping={kind: flat, norm: 1.0}",
    "privacy.shrinkage=false",
    "evaluation.budgets=[1.0]",
]


def noised(tiny, multiplier):
    return load_scenario(tiny, [*NOISE, f"privacy.noise_multiplier={multiplier}"])


@pytest.fixture
def refiner(tiny_scenario, tmp_path):
    run = connected(tiny_scenario, tmp_path / "run", nodes=1)
    return Refiner(run, prepare(run))


def tables(strategy):
    return np.stack([state.table for state in strategy.states])


@pytest.mark.slow
def test_every_refinement_has_the_noise_of_its_own_scenario(refiner, tiny, tiny_scenario):
    """Under a mechanism or not, whatever the refinement before it had."""
    assert isinstance(refiner.refine_again(tiny_scenario).contents, OpenServerContents)
    for multiplier in (1.0, 3.0):
        scenario = noised(tiny, multiplier)
        again = refiner.refine_again(scenario)
        assert isinstance(again.contents, NoisedServerContents)
        assert again.contents.noise_multiplier == multiplier
        noisy = replace(refiner, run=refiner.run.under(scenario))
        first, clean = noisy.joined(), noisy.joined()
        clean.contents = contents_kind(scenario)(clean.federation, None)
        for strategy in (first, clean):
            noisy.refine(strategy)
        assert np.array_equal(tables(again), tables(first))
        assert np.abs(tables(again) - tables(clean)).max() > 0.01


def test_a_poisoned_run_under_a_mechanism_that_is_let_in_runs_to_its_end(tiny, tmp_path):
    """Nobody lies who is idle: nothing is refined anew, and there is one row, of the run itself."""
    scenario = load_scenario(tiny, [*NOISE, "privacy.noise_multiplier=1", "poisoning={share: 0.2, kind: idle}"])
    result = serve(LoopbackGrid(1), scenario, RunPaths("", str(tmp_path / "run")))
    assert [(row.share, row.robust, row.recall_ratio) for row in result.poisoning.rows] == [(0.0, "none", 1.0)]
    assert (
        result.privacy.epsilon
        == serve(LoopbackGrid(1), noised(tiny, 1), RunPaths("", str(tmp_path / "clean"))).privacy.epsilon
    )


def test_devices_that_can_hold_nothing_change_nothing(tiny, tmp_path):
    """Their user group is sent no block."""
    changes = ["refinement.rounds=1", "budget_factor=0.01", "elasticity={rounds: 0, falls: []}", "fairness.tiers=[]"]
    result = serve(LoopbackGrid(2), load_scenario(tiny, changes), RunPaths("", str(tmp_path / "run")))
    assert result.full_table.refined == result.full_table.start
