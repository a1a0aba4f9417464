"""The cohort of a round: a function of seed, round and device."""

import numpy as np
import pytest
from flwr.app import Error, Message
from hypothesis import given
from hypothesis import strategies as st

from strategies.rounds import strategy as module
from strategies.rounds.contents import OpenServerContents
from strategies.rounds.strategy import sample_cohort
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from tests.helpers.examples import examples
from tests.helpers.loopback import LoopbackGrid
from tests.strategies.rounds.test_clear_steps import changed

DEVICES = np.arange(100, dtype=np.int64)
shares = st.floats(0.01, 1.0)


@given(seed=st.integers(0, 99), server_round=st.integers(1, 99), share=shares, order=st.permutations(range(100)))
@examples(50)
def test_the_order_of_devices_cannot_matter(seed, server_round, share, order):
    cohort = sample_cohort(seed, server_round, DEVICES, share)
    assert (sample_cohort(seed, server_round, DEVICES[list(order)], share) == cohort).all()
    assert (np.diff(cohort) > 0).all()
    assert len(cohort) == max(1, round(share * 100))


def test_sizes_by_hand():
    def size(count, share):
        return len(sample_cohort(0, 1, np.arange(count), share))

    assert [size(10, 0.3), size(10, 1.0), size(3, 0.01), size(1, 0.5), size(0, 0.5)] == [3, 10, 1, 1, 0]


def test_everybody_is_sorted_too():
    assert sample_cohort(0, 1, np.array([7, 3, 5]), 1.0).tolist() == [3, 5, 7]


def test_rounds_and_seeds_differ():
    cohorts = {tuple(sample_cohort(seed, r, DEVICES, 0.1).tolist()) for seed in range(3) for r in range(1, 21)}
    assert len(cohorts) == 60  # 10 of 100: a repeat has a chance of 60 ** 2 / 2 / 1.7e13


@given(server_round=st.integers(1, 1000), small=shares, large=shares)
@examples(50)
def test_a_larger_share_adds_devices(server_round, small, large):
    small, large = sorted([small, large])
    inner, outer = (set(sample_cohort(0, server_round, DEVICES, share).tolist()) for share in (small, large))
    assert inner <= outer


def test_every_device_gets_its_turn():
    """30 of 100 in 400 rounds: 120 expected, standard deviation sqrt(400 x 0.3 x 0.7) = 9.2; 5 of them are 46."""
    turns = np.zeros(100, int)
    for server_round in range(1, 401):
        turns[sample_cohort(5, server_round, DEVICES, 0.3)] += 1
    assert turns.sum() == 400 * 30
    assert (np.abs(turns - 120) < 46).all()
    assert turns.std() < 2 * 9.2


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
