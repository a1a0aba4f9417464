"""The question to all nodes: the same answer in one message or several, on one node or several."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from clients.serving.evaluate import Paired
from fl_peel import wire
from fl_peel.ranking.paired import PairedSums
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
    budgets = [560, 1888, wire.OWN_BUDGET]
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


def test_two_evaluations_are_paired_device_by_device(asked, tiny_scenario, tmp_path):
    """On any number of nodes and messages: the mean is the difference of the means, the interval that of pairs."""
    one, _, _ = asked
    three, _, _ = evaluator_of(tiny_scenario, tmp_path / "three", 3)
    found = []
    for evaluator in (one, three, dataclasses.replace(one, message_bytes=1)):
        first = evaluator.full_table(paired="first")
        assert not evaluator.full_table(paired="second").paired.difference.any(), "the same tables twice"
        worse = evaluator.evaluate([560], paired="second")
        found.append(worse.paired)
        gained = overall_recall(worse) - overall_recall(first)
        mean, low, high = worse.paired.interval()
        assert mean == pytest.approx(gained, abs=1e-6)
        assert gained
        assert low < mean < high
        assert int(worse.paired.devices.sum()) == int(worse.by_budget().devices[0])
        assert not evaluator.full_table().paired.devices.any(), "nobody asked for pairs"
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    apart = PairedSums.of(np.zeros(4, np.int64), 1, np.array([0.5, -0.5, 0.25, 0.25]))
    half = 1.959964 * np.std([0.5, -0.5, 0.25, 0.25], ddof=1) / 2
    assert apart.interval() == pytest.approx((0.125, 0.125 - half, 0.125 + half), abs=1e-6)


def test_devices_without_items_to_find_are_no_pairs(tmp_path):
    cohort = SimpleNamespace(folder=tmp_path, devices=np.arange(3))
    first = Paired.of(cohort, "first")
    first.add(np.array([2, 0]), np.array([0.5, 0.0]), np.array([True, False]))
    first.add(np.array([1]), np.array([1.0]), np.array([True]))
    assert not first.finished().devices.any()
    second = Paired.of(cohort, "second")
    second.add(np.arange(3), np.array([0.0, 0.25, 0.75]), np.array([False, True, True]))
    sums = second.finished()
    assert (int(sums.devices[0]), sums.interval()[0]) == (2, pytest.approx(-0.25))


def test_a_figure_depends_on_its_own_budget_alone(asked):
    """Not on the largest of those asked for, which says how long a list is sent at first."""
    one, grid, _ = asked
    budgets = [700, 900, 1400, 3000]
    together = one.evaluate(budgets).by_budget()
    before = len(grid.crossed)
    for place, budget in enumerate(budgets):
        alone = one.evaluate([budget])
        assert same(alone.by_budget()[0], together[place]), budget
        assert not alone.short
    assert len(grid.crossed) - before > len(budgets), "some had to be asked again, or this shows nothing"
