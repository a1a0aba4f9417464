"""The question to all nodes: the same answer in one message or several, on one node or several."""

import dataclasses

import numpy as np
import pytest

from fl_peel import wire
from strategies.evaluation.evaluator import Evaluator, overall_recall, qualities
from strategies.evaluation.moving_budgets import follow
from strategies.nodes.nodes import Nodes
from strategies.run.collected import prepare_collected
from strategies.run.place import Place, Stages
from strategies.run.refinement import Refiner
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.root import ROOT


def evaluator_of(scenario, folder, nodes: int) -> tuple[Evaluator, LoopbackGrid, np.ndarray]:
    """Before the first round; the grid that is asked, and the pretrained table."""
    grid = LoopbackGrid(nodes)
    place = Place("", str(folder))
    connected = Nodes.connect(grid, scenario.to_json(), root=str(ROOT), timeout_s=60)
    prepared = prepare_collected(scenario, place, Stages())
    strategy = Refiner(grid, place, prepared, connected).joined(scenario, None)
    return Evaluator.of(strategy), grid, prepared.pretrained.items


def same(one, other) -> bool:
    """Two replies, or the columns of two."""
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return np.array_equal(one, other)


@pytest.fixture
def asked(tiny_scenario, tmp_path):
    return evaluator_of(tiny_scenario, tmp_path / "one", 1)


def test_several_messages_and_nodes_make_no_difference(asked, tiny_scenario, tmp_path):
    one, grid, items = asked
    budgets = [900, 1888, wire.OWN_BUDGET]
    whole = one.evaluate(budgets)
    before = len(grid.crossed)
    assert same(dataclasses.replace(one, message_bytes=1).evaluate(budgets), whole)
    assert [kind for kind, _ in grid.crossed[before:]].count(wire.EVALUATE) == 2  # a message a user group
    three, _, _ = evaluator_of(tiny_scenario, tmp_path / "three", 3)
    assert same(three.evaluate(budgets), whole)
    assert same(three.full_table(items), one.full_table(items))
    traced = one.members.devices[:3]
    together, apart = (follow(one, traced, message_bytes) for message_bytes in (1 << 20, 1))
    assert same(apart.steps, together.steps)
    assert sorted(apart.traced.stacked().tolist()) == sorted(together.traced.stacked().tolist())


def test_what_is_not_said_is_the_scenarios(asked):
    one, _, _ = asked
    told = one.evaluate([1888], precision="int8", selector="controller", factors=[1.0], rooms=[-1.0])
    assert same(one.evaluate([1888]), told)
    assert overall_recall(told) == qualities(told)[0].recall > 0
    assert same(one.own_budgets(), one.evaluate([wire.OWN_BUDGET]))
    assert not same(one.evaluate([wire.OWN_BUDGET], factors=[0.5]), one.own_budgets())
