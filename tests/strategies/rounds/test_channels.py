"""Whatever the channel, all steps together end in the tables of pooled data, to the last digit."""

import pytest

from fl_peel.device_storage import device_splits
from fl_peel.pretraining.stage1 import GroupPlan, PooledSums, run_stage1
from fl_peel.privacy.noise_plan import contribution_bounds, make_plan
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps import STEPS
from fl_peel.steps.base import StepTerms
from strategies.rounds.step_channels import CountedSteps, NoisedSteps
from tests.strategies.rounds.test_clear_steps import SPECTRAL, changed, fleet
from tests.strategies.rounds.test_masked_steps import prepared, same, secure
from tests.strategies.rounds.test_noised_steps import LOCAL, private

LEAST = 5
"""More owners than some items of the planted data have."""
CHOOSING = {"passes": 3, "count_exponent": 0.4, "value_exponent": None}
COLUMNS = (3, 6, 12)
"""What devices choose from, but under noise."""
MODES = ("clear", "counted", "32 bits", "noised", "noised by devices", "masked")
MODES += ("masked and counted", "masked, 32 bits", "masked and noised")


@pytest.fixture
def scenario(tiny_scenario, tmp_path, monkeypatch) -> Scenario:
    """Nothing is collected, everybody is there, nothing is refined, and devices choose the filter and its columns."""
    monkeypatch.setattr("fl_peel.scenario.method.COLUMNS", COLUMNS)
    monkeypatch.setattr("fl_peel.scenario.settings.SpectralConfig.limited", lambda config, num_items: config)
    home = fleet(tmp_path, "profiles: [{name: large, memory: {table_share: 1.0}}]\n", "home.yaml")
    keys = {"pretraining": SPECTRAL | CHOOSING | {"columns": None}, "fleet": home, "refinement": {"rounds": 0}}
    return changed(tiny_scenario, **keys, privacy={"min_owners": 1})


def in_mode(scenario: Scenario, mode: str) -> Scenario:
    """The scenario in which steps are asked in a mode."""
    if "counted" in mode:
        scenario = changed(scenario, privacy={"min_owners": LEAST})
    if "32 bits" in mode:
        scenario = changed(scenario, pretraining={"sum_bits": 32})
    if "masked" in mode:
        scenario = secure(scenario)
    if "noised" in mode:
        scenario = changed(scenario, pretraining={"columns": 12})
        scenario = private(scenario, **(LOCAL if "devices" in mode else {}))
    return scenario


def pooled(scenario: Scenario, folder):
    """The same stage 1 over data that one party holds, with the server's share of the channel."""
    splits = device_splits(scenario, "", str(folder))
    terms = StepTerms.from_scenario(scenario, 59, 40, contribution_bounds(scenario))
    sums = PooledSums(splits.train, terms, splits.validation)
    counted = CountedSteps(sums, scenario.privacy.min_owners)
    asked = NoisedSteps(sums, scenario, make_plan(scenario)) if scenario.privacy.noised else counted
    return run_stage1(asked, scenario.pretraining.spectral(), GroupPlan(8, 2, 4, 0))


ON_EIGHT = ("clear", "noised by devices", "masked, 32 bits", "masked and noised")


@pytest.mark.parametrize(
    ("mode", "nodes"),
    [*((mode, 1) for mode in MODES), *(pytest.param(mode, 8, marks=pytest.mark.slow) for mode in ON_EIGHT)],
)
def test_tables_are_those_of_pooled_data(scenario, tmp_path, mode, nodes):
    """Noise of devices, or in shares, is not that of the server: it is the same on any nodes, and without masks."""
    one = in_mode(scenario, mode)
    found, _ = prepared(one, tmp_path / "run", nodes)
    if mode == "noised by devices":
        assert same(found, prepared(one, tmp_path / "other", 5)[0])
        return
    if mode == "masked and noised":
        assert same(found, prepared(changed(one, secure_aggregation={"masked": False}), tmp_path / "bare", nodes)[0])
        return
    start = pooled(one, tmp_path / "data")
    assert same(found, type("Pooled", (), {"start": start}))
    closed = device_splits(one, "", str(tmp_path / "data")).train.popularity(59) < one.privacy.min_owners
    if "counted" in mode:
        assert 0 < closed.sum() < 59
        assert not start.own[closed].any()
        assert not any(group.table[closed].any() or group.items[closed].any() for group in start.groups)
    assert "noised" in mode or len(start.values) in COLUMNS[:-1]


SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("masked", "masked, 32 bits")]


@pytest.mark.parametrize("mode", ["clear", "noised", "noised by devices", *SLOW])
def test_parts_change_nothing(scenario, tmp_path, monkeypatch, mode):
    """However many messages a step goes in; what it takes is the same, too."""
    one = in_mode(scenario, mode)
    whole, grid = prepared(one, tmp_path / "whole")
    for step in STEPS.values():
        monkeypatch.setattr(step, "part_bytes", 5 * 8 * 59)
    monkeypatch.setattr("strategies.rounds.step_channels.PART_BYTES", 5 * 8 * 59)
    parts, several = prepared(one, tmp_path / "parts")
    assert same(whole, parts)
    assert len(several.crossed) > 1.3 * len(grid.crossed)
    moved = [[one.counts.classes.stacked().tolist() for one in each.steps] for each in (whole, parts)]
    assert moved[0] == moved[1]
