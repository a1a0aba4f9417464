"""The question to all nodes: the same answer in one message or several, on one node or several."""

import dataclasses

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.ranking.bootstrap import Replicates
from simulations.scenario_files import load_scenario
from strategies.evaluation.evaluator import Evaluator, overall_recall, qualities
from strategies.evaluation.moving_budgets import follow
from strategies.figures.intervals import Measured
from strategies.figures.schema import Gain, Ratio
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


def test_intervals_are_the_same_on_1_2_or_7_nodes_under_any_seed_and_device_by_device(tiny, tmp_path):
    """Single devices are told where they are asked for; under the weights of the bootstrap they are the replicates."""
    found = []
    for nodes, seed, messages in ((1, 0, 1 << 30), (2, 0, 1), (7, 0, 1 << 30), (2, 5, 1 << 30)):
        scenario = load_scenario(tiny, ["evaluation.per_device=true", f"seed={seed}"])
        evaluator, _, items = evaluator_of(scenario, tmp_path / f"{nodes}-{seed}", nodes)
        replies = dataclasses.replace(evaluator, message_bytes=messages).evaluate([900, 1888], per_device=True)
        single = replies.single
        order = np.argsort(single.devices)
        assert single.devices[order].tolist() == list(range(40))
        counted = single.items > 0
        again = Replicates.of(single.devices, single.recall, single.ndcg, counted, 1000)
        assert same(again, replies.replicates)
        assert single.recall[counted].mean(axis=0) == pytest.approx(replies.by_budget().mean()[0], abs=1e-8)
        found.append(replies)
        if seed == 0 and nodes == 1:
            full = evaluator.full_table(items)
            assert full.replicates.recall.shape == (1, 1000)
            assert not evaluator.full_table(items, split="validation").replicates.recall.size, (
                "nothing is claimed of it"
            )
    assert same(found[0].replicates, found[1].replicates)
    assert same(found[0].replicates, found[2].replicates)
    other = found[3].replicates
    assert np.array_equal(other.devices, found[0].replicates.devices), "another seed draws the same devices"
    assert not np.array_equal(other.recall, found[0].replicates.recall), "and measures something else"


def test_devices_that_have_nothing_to_find_are_in_no_replicate(tiny, tmp_path):
    """Malicious ones want nothing: a third of the devices, whose recall of 0 is nobody's."""
    changes = ["evaluation.per_device=true", "poisoning={kind: idle, share: 0.3}"]
    evaluator, _, items = evaluator_of(load_scenario(tiny, changes), tmp_path / "run", 2)
    reply = evaluator.full_table(items)
    counted = reply.single.items > 0
    assert 5 < (~counted).sum() < 20
    assert same(
        Replicates.of(reply.single.devices, reply.single.recall, reply.single.ndcg, counted, 1000), reply.replicates
    )
    interval = Measured.of(reply).recall_interval
    assert interval.low < float(reply.single.recall[counted].mean()) < interval.high


def test_ratios_and_differences_are_paired(asked):
    one, _, items = asked
    table, again, small = one.full_table(items), one.full_table(items), one.evaluate([200])
    full, same_again, less = (Measured.of(reply) for reply in (table, again, small))
    assert full.over(same_again) == Ratio(1.0, 1.0, 1.0)
    assert full.gain(same_again) == Gain(0.0, 0.0, 0.0, full.devices)
    gain, ratio = less.gain(full), less.over(full)
    assert gain.mean == pytest.approx(overall_recall(small) - overall_recall(table))
    assert gain.low < gain.mean < gain.high
    assert ratio.low < ratio.value < ratio.high
    alone = less.recall_interval
    assert alone.high - alone.low > 0
    assert full.quality(full).to_global == Ratio(1.0, 1.0, 1.0)


def test_without_replicates_there_are_no_intervals_and_nobody_tells_of_single_devices(tiny, tmp_path):
    none, _, items = evaluator_of(load_scenario(tiny, ["evaluation.bootstrap=0"]), tmp_path / "run", 2)
    reply = none.full_table(items)
    measured = Measured.of(reply)
    assert (measured.recall_interval, measured.gain(measured)) == (None, None)
    assert measured.over(measured) == Ratio(1.0, None, None)
    assert not len(reply.single.devices), "evaluation.per_device is off"


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
