"""A round's sums are taken group by group, as soon as all nodes have said theirs; to the same tables."""

import numpy as np
import pytest
from flwr.app import Error, Message

from strategies.rounds import strategy as module
from strategies.rounds.contents import OpenServerContents
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from tests.helpers.loopback import LoopbackGrid
from tests.strategies.steps.test_clear_steps import changed


class Streaming(LoopbackGrid):
    """Hands every reply on before it takes the next message."""

    def send_and_receive(self, messages, *, timeout=None):
        return (self._answer(message) for message in messages)


class Whole(OpenServerContents):
    """A rule for all user groups together."""

    def take(self, sent, sums, opened):
        super().take(sent, sums, opened)


def a_round(kind, scenario, folder, monkeypatch, contents=OpenServerContents, interfere=None):
    """Tables after one round of messages of one user group each, and which groups were taken together."""
    monkeypatch.setattr(module, "MESSAGE_BYTES", 1)
    monkeypatch.setattr("strategies.run.refinement.OpenServerContents", contents)
    grid = kind(2) if interfere is None else kind(2, interfere)
    run = Run.connect(grid, scenario, RunPaths("", str(folder)))
    refiner = Refiner(run, prepare(run))
    strategy, taken = refiner.joined(), []
    take = strategy.contents.take

    def events(sent, sums, opened):
        taken.append(sorted(sums))
        take(sent, sums, opened)

    strategy.contents.take = events
    strategy.changed = np.zeros((len(strategy.states), strategy.layout.num_items), np.bool_)
    refiner.refine(strategy)
    return [state.table.copy() for state in strategy.states], [some for some in taken if some], strategy.changed


@pytest.fixture
def scenario(tiny_scenario):
    """No group goes back: what changed stays so."""
    return changed(tiny_scenario, refinement={"rounds": 1, "acceptance": {"rule": "always"}})


def test_each_group_is_taken_when_both_nodes_have_answered(scenario, tmp_path, monkeypatch):
    tables, taken, rows = a_round(Streaming, scenario, tmp_path / "a", monkeypatch)
    assert taken == [[group] for group in range(len(tables))]
    assert len(tables) > 1
    together, at_once, same_rows = a_round(LoopbackGrid, scenario, tmp_path / "b", monkeypatch, Whole)
    assert at_once == [list(range(len(tables)))]
    assert np.array_equal(tables, together)
    assert np.array_equal(rows, same_rows)
    assert rows.any(axis=1).all()


def test_a_rule_for_all_groups_together_gets_them_together(scenario, tmp_path, monkeypatch):
    tables, taken, _ = a_round(Streaming, scenario, tmp_path, monkeypatch, Whole)
    assert taken == [list(range(len(tables)))]


@pytest.mark.parametrize("kind", [Streaming, LoopbackGrid])
def test_a_group_is_taken_with_what_is_left_when_a_node_fails(kind, scenario, tmp_path, monkeypatch):
    """The first node does not answer about the first group; both do about the others."""
    refused = []

    def interfere(partition, message):
        if message.metadata.message_type == "train.round" and partition == 0 and not refused:
            refused.append(message)
            return Message(Error(0, "gone"), reply_to=message)
        return None

    tables, taken, _ = a_round(kind, scenario, tmp_path, monkeypatch, interfere=interfere)
    assert refused
    assert sorted(group for some in taken for group in some) == list(range(len(tables)))
    if kind is Streaming:
        assert taken == [[group] for group in range(len(tables))]
