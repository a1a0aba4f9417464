"""On a deployment nodes are lost and come back: rounds go on without them, whatever needs all of them waits."""

import weakref

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fl_peel import wire
from fl_peel.errors import EngineError
from strategies import nodes as nodes_module
from strategies.nodes import NodeRequest, Nodes, batches, packed_batches
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.lossy import LossyGrid
from tests.helpers.root import ROOT
from tests.helpers.runs import figures


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(nodes_module, "PAUSES_S", (0.0, 0.0, 0.01))


def connected(grid, scenario):
    return Nodes.connect(grid, scenario.to_json(), root=str(ROOT), timeout_s=60, patience_s=1)


def asked(nodes, scenario):
    """Who answers a question that all nodes can answer at any time."""
    question = NodeRequest(wire.HelloRequest(scenario.to_json()))
    return [reply.partition for reply in nodes.ask(wire.HELLO, lambda partition: question)]


def test_a_node_that_comes_back_is_asked_under_its_new_id(tiny_scenario):
    grid = LossyGrid(3)
    nodes = connected(grid, tiny_scenario)
    grid.lose(1)
    back = grid.bring_back(1)
    assert asked(nodes, tiny_scenario) == [0, 1, 2]
    assert nodes.ids[1] == back


@pytest.mark.parametrize("silent", [False, True])
def test_where_all_must_answer_a_lost_node_is_waited_for(tiny_scenario, silent, monkeypatch):
    grid = LossyGrid(3)
    nodes = connected(grid, tiny_scenario)
    grid.lose(2, silent=silent)
    waited = []

    def sleep(pause_s):
        waited.append(pause_s)
        if len(waited) == 6:  # more often than a node that fails is asked again
            grid.bring_back(2)

    monkeypatch.setattr(nodes_module.time, "sleep", sleep)
    assert asked(nodes, tiny_scenario) == [0, 1, 2]
    assert len(waited) == 6


@pytest.mark.parametrize(("silent", "line"), [(False, "node . .* failed: Node Unavailable"), (True, "did not answer")])
def test_without_a_node_that_never_comes_back_the_run_goes_on_while_most_are_there(tiny_scenario, silent, line, caplog):
    grid = LossyGrid(3, patience_s=0.05)
    nodes = connected(grid, tiny_scenario)
    grid.lose(2, silent=silent)
    assert asked(nodes, tiny_scenario) == [0, 1]
    assert list(nodes.excluded) == [2]
    assert caplog.text.count("the run goes on without node 2 and its devices") == 1
    assert asked(nodes, tiny_scenario) == [0, 1]
    grid.lose(0, silent=silent)
    with pytest.raises(EngineError, match=line):
        asked(nodes, tiny_scenario)


def test_who_may_have_drawn_noise_is_not_asked_again(tiny_scenario):
    grid = LossyGrid(3)
    nodes = connected(grid, tiny_scenario)
    nodes.noise_is_drawn = True
    grid.lose(2, silent=True)
    question = NodeRequest(wire.HelloRequest(""))
    assert not nodes.ask(wire.JOIN, lambda partition: question if partition == 2 else None)
    assert nodes.excluded == {
        2: "query.join: 1 of 1 nodes did not answer query.join within 60 s; raise engine.reply_timeout_s or look for "
        "their errors in the log"
    }


def test_a_stranger_that_is_no_node_of_the_run_is_told_of_once(tiny_scenario, caplog):
    grid = LossyGrid(3)
    nodes = connected(grid, tiny_scenario)
    grid.bring_back(7)  # of 4 nodes, it says
    for _ in range(2):
        assert asked(nodes, tiny_scenario) == [0, 1, 2]
    assert caplog.text.count("a node that joined later is not accepted") == 1


def test_a_node_that_was_lost_before_the_run_is_not_waited_for(tiny_scenario):
    grid = LossyGrid(3)
    stale = grid.bring_back(1)
    grid.get_node_ids = lambda: list(grid._partition)
    grid.gone.add(stale)
    assert stale not in connected(grid, tiny_scenario).ids


@pytest.mark.parametrize("own", [False, True])
def test_of_two_nodes_that_claim_a_partition_the_first_has_it(tiny_scenario, own, caplog, monkeypatch):
    """Nor does the second one end a run in which all are needed, since nodes have their own devices."""
    if own:
        monkeypatch.setattr(nodes_module, "_without_gaps", lambda own: ())
    grid = LossyGrid(2)
    grid._partition |= {99: 1, 98: 1}
    catalogue = "a" if own else ""
    nodes = Nodes.connect(
        grid, tiny_scenario.to_json(), root=str(ROOT), timeout_s=60, patience_s=1, catalogue=catalogue
    )
    assert caplog.text.count(f"claims partition 1, which node {nodes.ids[1]} holds: refused") == 2


def test_a_partition_is_taken_over_once_its_holder_is_silent_and_not_before(tiny_scenario, caplog):
    grid = LossyGrid(3)
    nodes = connected(grid, tiny_scenario)
    holder, claimant = nodes.ids[1], grid.bring_back(1)
    for _ in range(3):
        assert asked(nodes, tiny_scenario) == [0, 1, 2]
        assert nodes.ids[1] == holder
    refused = f"node {claimant} claims partition 1, which node {holder} holds: refused"
    assert caplog.text.count(refused) == 1
    grid.gone.add(holder)
    assert asked(nodes, tiny_scenario) == [0, 1, 2]
    assert nodes.ids[1] == claimant
    assert f"node {claimant} takes over partition 1: node {holder} has been silent for a minute" in caplog.text
    grid.gone.remove(holder)  # its SuperNode has a key, and hence its id: but now another one holds the partition
    assert asked(nodes, tiny_scenario) == [0, 1, 2]
    assert nodes.ids[1] == claimant


def test_a_round_goes_on_without_a_lost_node_and_with_it_when_it_is_back(tiny_run, tiny_scenario, tmp_path):
    """Its devices are those that failed; what it kept is there when it comes back."""

    def lose_one(partition, message: Message):
        kind = message.metadata.message_type
        if kind == wire.ROUND and wire.unpack(wire.RoundRequest, message.content).server_round == 1 and not grid.gone:
            grid.lose(2)
        if kind == wire.ROUND and wire.unpack(wire.RoundRequest, message.content).server_round == 2 and not back:
            back.append(grid.bring_back(2))
        return

    back = []
    grid = LossyGrid(3, lose_one)
    result = serve(grid, tiny_scenario, RunPaths("", str(tmp_path / "run")))
    assert [row.failures for row in result.rounds] == [13, 13]  # of 40 devices; it is back after the second began
    assert sum(row.devices for row in result.device_classes.values()) == 40
    assert figures(tiny_run[0]) != figures(result)


def test_a_deployment_without_losses_has_the_figures_of_the_simulation(tiny_run, tiny_scenario, tmp_path):
    deployed = serve(LossyGrid(3), tiny_scenario, RunPaths("", str(tmp_path / "deployed")))
    assert figures(deployed) == figures(tiny_run[0])


def test_batches_by_hand():
    """Of at most 10: 4 + 6, then 7; 12 alone; 1 + 0 + 9."""
    result = list(batches([4, 6, 7, 12, 1, 0, 9], lambda item: item, 10))
    assert result == [[4, 6], [7], [12], [1, 0, 9]]
    assert list(batches([], lambda item: item, 10)) == []


@given(st.lists(st.integers(0, 20)), st.integers(1, 15))
def test_nothing_is_lost_and_no_batch_is_too_large(items, most):
    result = list(batches(items, lambda item: item, most))
    assert [item for batch in result for item in batch] == items
    assert all(sum(batch) <= most or len(batch) == 1 for batch in result)
    assert all(result)


def test_of_what_is_packed_memory_holds_what_a_message_has():
    made = []

    def pack(group):
        assert not [array for array in made if array() is not None], "the arrays of a group before it are still there"
        array = np.full(1000, group)
        made.append(weakref.ref(array))
        return {"blocks": array}

    result = list(packed_batches(range(5), pack, 2 * 8000))
    assert [list(batch) for batch in result] == [[0, 1], [2, 3], [4]]
    assert result[2][4]["blocks"].numpy().tolist() == [4] * 1000
