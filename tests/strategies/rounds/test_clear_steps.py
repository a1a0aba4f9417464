"""Stage 1 by federation on the real messages: equal to pooled data, with devices away, late and small."""

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.device_storage import device_splits
from fl_peel.errors import EngineError
from fl_peel.scenario.scenario import Scenario
from strategies.run.prepare import FederatedStage1Outcome, prepare
from strategies.run.refinement import join
from strategies.run.run import Run
from tests.helpers.runs import connected, figures, hosted_by, served

SPECTRAL = {
    "model": "spectral",
    "source": "devices",
    "columns": 12,
    "passes": 4,
    "group_columns": 6,
    "open_rounds": 1,
    "count_exponent": 0.4,
    "value_exponent": 0.1,
    "collected": {"share": 0},
}
AT_HOME = """
profiles:
  - {name: small, population_share: 0.5, memory: {table_share: 0.6}}
  - {name: large, population_share: 0.5, memory: {table_share: 1.0}}
"""


@pytest.fixture
def scenario(tiny_scenario, tmp_path) -> Scenario:
    """Nothing is collected; every device is always there."""
    everything = {"min_owners": 1}  # test_counted_steps.py has sums that stay closed
    return changed(tiny_scenario, pretraining=SPECTRAL, fleet=fleet(tmp_path, AT_HOME, "home.yaml"), privacy=everything)


def changed(scenario: Scenario, **parts) -> Scenario:
    content = scenario.model_dump(mode="json")
    for key, part in parts.items():
        content[key] = content[key] | part if isinstance(part, dict) else part
    return Scenario.model_validate(content)


def prepared(scenario, folder, nodes=2) -> tuple[FederatedStage1Outcome, Run]:
    run = connected(scenario, folder, nodes)
    result = prepare(run)
    assert isinstance(result, FederatedStage1Outcome)
    return result, run


def test_planted_groups_are_recovered_with_nothing_collected(scenario, tmp_path):
    start, run = prepared(scenario, tmp_path / "run")
    members = join(run, start)
    taste = members.devices // 20
    assert len(np.unique(taste * 2 + members.groups)) == 2, "user u belongs to taste u // 20"
    for group, state in enumerate(start.states(scenario)):
        own = taste[members.groups == group][0]
        popular = np.argsort(-state.statistics.popularity.reshape(-1, 2)[:, 0])[:3]
        items = np.flatnonzero(np.isin(start.layout.item_group, popular))
        assert (items // 30 == own).mean() > 0.9
    # no message says what one device has but by sums, and joining says the group alone
    replies = [record for kind, record in run.grid.crossed if kind == f"reply to {wire.JOIN}"]
    assert {name for reply in replies for name in reply.array_records["arrays"]} == {"devices", "groups", "ceilings"}


def test_bytes_are_those_of_the_items_and_columns(scenario, tmp_path):
    result, _ = served(scenario, tmp_path / "run")
    splits = device_splits(scenario, "", str(tmp_path / "run"))
    items, width = splits.train.num_interactions, min(12 + 32, int((splits.train.popularity(59) > 0).sum()))
    steps = {step.step: step for step in result.stage1.steps}
    assert steps["counts"].upload_bytes == 4 * items
    assert steps["pass"].times == 4
    assert steps["pass"].download_bytes == 4 * (items * (4 + 2 * width) + 40 * width)
    assert steps["pass"].upload_bytes == 4 * (40 * 8 * width + 4 * items)
    assert steps["vectors"].download_bytes == items * (4 + 2 * 12) + 40 * 12
    assert steps["moments"].upload_bytes == 40 * 8 * 12 + 4 * items
    total = sum(step.upload_bytes for step in result.stage1.steps)
    assert result.stage1.bytes_up_mean == pytest.approx(total / 40)


AWAY = """
profiles:
  - name: often
    population_share: 0.5
    memory: {table_share: 1.0}
    availability: {probability: 0.5}
  - {name: always, population_share: 0.5, memory: {table_share: 1.0}}
"""


def fleet(tmp_path, text: str, name="other.yaml") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.slow
def test_more_windows_hear_more_devices_each_once(scenario, tmp_path):
    """With a half always there and a half every other time, 3 windows miss an eighth of the latter."""
    scenario = changed(scenario, fleet=fleet(tmp_path, AWAY), pretraining={"open_rounds": 3})
    results = [served(scenario, tmp_path / str(nodes), nodes=nodes)[0] for nodes in (1, 8)]
    assert figures(results[0]) == figures(results[1])
    events = results[0].stage1
    assert events.virtual_seconds == results[1].stage1.virtual_seconds
    away = sum(step.unavailable for step in events.steps) / sum(
        step.devices + step.unavailable for step in events.steps
    )
    assert 0.03 < away < 0.1
    assert all(step.devices + step.unavailable == 40 * step.times for step in events.steps)


def test_a_device_that_comes_after_stage_1_takes_part(scenario, tmp_path, monkeypatch):
    """Away in every step, it has its vector when it joins, and what it would have had."""
    start, run = prepared(scenario, tmp_path / "all")
    before = join(run, start)
    cohort = hosted_by(scenario, tmp_path / "late", 1, 2)

    def available(self, places, server_round):
        return self.devices[places] != 7

    monkeypatch.setattr(type(cohort), "available", available)
    start, run = prepared(scenario, tmp_path / "late")
    assert all(record.counts.classes.devices.sum() == 39 for record in start.steps)
    members = join(run, start)
    assert 7 in members.devices
    own = (members.groups == members.groups[7])[:20]
    assert own.all(), "in the group of its taste"
    assert len(members.devices) == len(before.devices)
    state = hosted_by(scenario, tmp_path / "late", 1, 2).state("r")
    assert state.users[3].any()  # device 7 is the fourth of its node


def test_late_devices_burn_what_fits_and_count_for_nothing(scenario, tmp_path):
    slow = AT_HOME.replace("table_share: 0.6}}", "table_share: 0.6}, network: {downlink_mbps: 0.006}}")
    scenario = changed(scenario, fleet=fleet(tmp_path, slow), pretraining={"deadline_s": 1.0})
    events = served(scenario, tmp_path / "run")[0].stage1
    steps = {step.step: step for step in events.steps}
    assert steps["pass"].stragglers > 0
    assert steps["pass"].devices + steps["pass"].stragglers == 160
    assert steps["pass"].virtual_seconds == 4.0  # the server waits until the deadline
    assert steps["counts"].stragglers == 0


POOR = """
profiles:
  - name: small
    population_share: 0.5
    memory: {table_share: 0.6}
    budget:
      process: markov
      states: {foreground: 1.0, background: 0.01}
      transitions_per_step: {foreground: [0.5, 0.5], background: [0.5, 0.5]}
  - {name: large, population_share: 0.5, memory: {table_share: 1.0}}
"""


def test_a_device_below_what_a_pass_needs_is_told_and_served(scenario, tmp_path):
    scenario = changed(scenario, fleet=fleet(tmp_path, POOR))
    result, _ = served(scenario, tmp_path / "run")
    events = result.stage1
    assert events.classes["large"].excluded == 0
    assert 0.2 < events.classes["small"].excluded < 0.8
    assert all(step.devices + step.excluded == 40 * step.times for step in events.steps)
    assert {step.step for step in events.steps if not step.excluded} == {"counts"}, "which need no room"
    assert result.full_table.start.recall > 0.6
    assert sum(row.devices for row in result.device_classes.values()) == 40


def test_a_step_that_reaches_nobody_says_why(scenario, tmp_path):
    scenario = changed(scenario, pretraining={"deadline_s": 1e-6})
    with pytest.raises(EngineError, match=r"stage 1, counts: of 40 devices .* 40 missed the deadline"):
        prepared(scenario, tmp_path / "run")


def test_the_server_alone_takes_sums_of_what_is_collected(scenario, tmp_path):
    """All collected: what devices would have given, and no step of theirs."""
    alone = changed(scenario, pretraining={"source": "collected", "collected": {"mode": "users", "share": 1.0}})
    result, grid = served(alone, tmp_path / "alone")
    assert result.stage1 is None
    assert {record.config_records["config"]["step"] for kind, record in grid.crossed if kind == wire.STEP} == {
        "vectors"
    }
    together, _ = served(scenario, tmp_path / "together")
    assert result.full_table == together.full_table
    assert figures(result)["budgets"] == figures(together)["budgets"]
