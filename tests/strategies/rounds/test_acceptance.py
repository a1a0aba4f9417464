"""A refinement that does not help is not kept: tables and devices go back, group by group, and the report says so."""

import gc
import weakref

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.mmap_arrays import lies_in_file
from fl_peel.scenario.scenario import Scenario
from strategies.groups import state as shelves
from strategies.rounds.acceptance import AcceptanceTest
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner
from tests.helpers.runs import connected, hosted_by, served
from tests.strategies.rounds.test_clear_steps import changed

DATA = {"validation_share": 0.3}


@pytest.fixture
def scenario(tiny_scenario) -> Scenario:
    """With validation items enough to say something; untrained tables, which any training betters."""
    return changed(
        tiny_scenario, data=DATA, pretraining={"epochs": 0, "initialization": "normal", "diversity_form": "none"}
    )


def harmful(scenario: Scenario) -> Scenario:
    """From good tables, with steps that ruin them."""
    return changed(
        scenario,
        pretraining={"epochs": 30, "initialization": "spectral"},
        refinement={"aggregation": {"learning_rate": 300.0}},
    )


def refined(scenario: Scenario, folder, nodes=2):
    """A strategy after its rounds, and what was kept; devices' state by node."""
    run = connected(scenario, folder, nodes)
    refiner = Refiner(run, prepare(run))
    strategy = refiner.joined()
    start = [state.table.copy() for state in strategy.states]
    users = [state_of(scenario, folder, node, nodes).users.copy() for node in range(nodes)]
    keeping = refiner.refine(strategy)
    return strategy, keeping, start, users


def state_of(scenario, folder, node, nodes):
    return hosted_by(scenario, folder, node, nodes).state("r")


def test_tables_are_gone_with_their_strategy(scenario, tmp_path):
    """Without waiting for Python to look for circles: at 256 user groups they are gigabytes."""
    refined(harmful(scenario), tmp_path / "before")  # torch's optimizers import more of it when there is a first one
    gc.collect()
    gc.disable()
    try:
        strategy, keeping, _, _ = refined(harmful(scenario), tmp_path / "run")
        states = [weakref.ref(state) for state in strategy.states]
        assert keeping.accepted_states == []
        del strategy, keeping
        assert [state() for state in states] == [None] * len(states)
    finally:
        gc.enable()


def test_weights_of_what_is_kept_lie_where_the_rest_of_it_does(scenario, tmp_path, monkeypatch):
    """And decisions are the same."""
    asked, compare = [], AcceptanceTest._compare
    with monkeypatch.context() as changed_here:
        changed_here.setattr(shelves, "MOST_UNSHELVED", 0)
        changed_here.setattr(
            AcceptanceTest, "_compare", lambda self, *given: compare(self, *given) or asked.append(list(self._weights))
        )
        _, in_file, _, _ = refined(scenario, tmp_path / "file")
    assert asked
    assert in_file.accepted_rounds.any(), "some weights are those of a round"
    assert all(lies_in_file(weights) for known in asked for weights in known)
    _, in_memory, _, _ = refined(scenario, tmp_path / "memory")
    assert in_file.accepted_rounds.tolist() == in_memory.accepted_rounds.tolist()


def test_what_harms_is_taken_back_on_server_and_devices(scenario, tmp_path):
    scenario = harmful(scenario)
    strategy, keeping, start, users = refined(scenario, tmp_path / "run")
    assert isinstance(keeping, AcceptanceTest)
    assert keeping.accepted_rounds.tolist() == [0, 0]
    assert keeping.comparisons[0].sums.mean().max() < 0
    for state, table in zip(strategy.states, start, strict=True):
        assert (state.table == table).all()
    for node in range(2):
        assert (state_of(scenario, tmp_path / "run", node, 2).users == users[node]).all()
    result, _ = served(scenario, tmp_path / "whole")
    assert result.full_table.refined == result.full_table.start
    assert result.refinement.groups_kept == 0
    assert result.refinement.rounds_kept == {"0": 2}
    kept_all, _ = served(changed(scenario, refinement={"acceptance": {"rule": "always"}}), tmp_path / "all")
    assert kept_all.refinement is None
    assert kept_all.full_table.refined.recall < result.full_table.refined.recall


def test_rounds_end_where_validation_does_not_like_the_first(scenario, tmp_path):
    scenario = changed(harmful(scenario), refinement={"rounds": 3, "acceptance": {"every": 1}})
    strategy, keeping, start, users = refined(scenario, tmp_path / "run")
    assert len(strategy.rounds) == len(keeping.comparisons) == 1
    assert all((state.table == table).all() for state, table in zip(strategy.states, start, strict=True))
    for node in range(2):
        assert (state_of(scenario, tmp_path / "run", node, 2).users == users[node]).all()
    result, _ = served(scenario, tmp_path / "whole")
    assert len(result.rounds) == 1
    assert result.full_table.refined == result.full_table.start


def test_rounds_go_on_where_some_gain(scenario, tmp_path, monkeypatch):
    """No group accepts, but devices gain on average: more rounds may show it."""
    monkeypatch.setattr("fl_peel.ranking.bootstrap.Effects.better", lambda self, _: np.zeros(len(self.mean), bool))
    every_round = changed(scenario, refinement={"acceptance": {"every": 1}})
    strategy, keeping, _, _ = refined(every_round, tmp_path / "run")
    assert keeping.comparisons[0].mean_gain > 0
    assert len(strategy.rounds) == len(keeping.comparisons) == 2


def test_what_helps_stays(scenario, tmp_path):
    strategy, keeping, start, users = refined(scenario, tmp_path / "run")
    kept = keeping.accepted_rounds == 2
    assert kept.any()
    changed_tables = [(state.table != table).any() for state, table in zip(strategy.states, start, strict=True)]
    assert changed_tables == kept.tolist()
    for node in range(2):
        state = state_of(scenario, tmp_path / "run", node, 2)
        moved = (state.users != users[node]).any(axis=1)
        assert (moved == kept[state.groups]).all()
    result, _ = served(scenario, tmp_path / "whole")
    assert result.full_table.refined.recall > result.full_table.start.recall
    assert result.refinement.groups_kept == kept.sum()


def test_a_group_has_the_state_of_the_round_that_it_kept(scenario, tmp_path, monkeypatch):
    """The first group keeps the first round alone, the second group both: each has that table, and its devices that
    embedding.
    """
    scenario = changed(scenario, refinement={"acceptance": {"every": 1}})
    tables, users = [], []

    def better(self, confidence):
        tables.append([state.table.copy() for state in strategy[0].states])
        users.append([np.array(state_of(scenario, tmp_path / "run", node, 2).users) for node in range(2)])
        return np.array([len(tables) == 1, True])

    monkeypatch.setattr("fl_peel.ranking.bootstrap.Effects.better", better)
    strategy = []
    init = AcceptanceTest.__post_init__

    def remember(self, folder):
        strategy.append(self.strategy)
        init(self, folder)

    monkeypatch.setattr(AcceptanceTest, "__post_init__", remember)
    last, keeping, _, _ = refined(scenario, tmp_path / "run")
    assert keeping.accepted_rounds.tolist() == [1, 2]
    assert (last.states[0].table == tables[0][0]).all()
    assert (last.states[0].table != tables[1][0]).any()
    assert (last.states[1].table == tables[1][1]).all()
    for node in range(2):
        state = state_of(scenario, tmp_path / "run", node, 2)
        of_first = np.asarray(state.groups) == 0
        assert (state.users[of_first] == users[0][node][of_first]).all()
        assert (state.users[~of_first] == users[1][node][~of_first]).all()


def test_the_next_round_is_compared_with_what_was_accepted_last(scenario, tmp_path, monkeypatch):
    """With its table and its order of blocks, which both move."""
    monkeypatch.setattr("fl_peel.ranking.bootstrap.Effects.better", lambda self, confidence: np.ones(2, np.bool_))
    _, grid = served(changed(scenario, refinement={"acceptance": {"every": 1}}), tmp_path / "run", nodes=1)
    asked = (wire.unpack(wire.CompareRequest, one) for kind, one in grid.crossed if kind == wire.COMPARE)
    first, second = asked
    for group in (0, 1):
        accepted, kept, start = (one[group] for one in (first.current, second.kept, first.kept))
        assert all(np.array_equal(accepted[name], kept[name]) for name in accepted)
        assert not all(np.array_equal(accepted[name], start[name]) for name in accepted)
    orders = [[one[group]["blocks"].tolist() for group in (0, 1)] for one in (first.kept, first.current)]
    assert orders[0] != orders[1]


def test_nobody_is_asked_where_answers_would_give_away_or_be_lies(scenario, tmp_path):
    for part in (
        {"secure_aggregation": {"enabled": True, "devices_per_group": None, "min_devices": 3}},
        {"data": {"validation_share": 0.0}, "selector": "popularity", "fairness": {"tiers": []}},
        {"refinement": {"rounds": 0}},
    ):
        assert not changed(scenario, **part).compares
    result, grid = served(changed(scenario, poisoning={"share": 0.1}), tmp_path / "run")
    assert result.refinement is None
    assert not [kind for kind, _ in grid.crossed if kind in (wire.COMPARE, wire.KEEP)]


def test_what_comparing_moves_is_counted(scenario, tmp_path):
    result, _ = served(scenario, tmp_path / "run")
    moved = [one.download_bytes for one in result.refinement.comparisons]
    assert min(moved) > 0
    assert result.refinement.bytes_down_mean == pytest.approx(sum(moved) / 40)
