"""A run that is stopped at any message goes on, in another folder, to the figures of one that was not."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Set
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_peel import wire
from fl_peel.events import Event
from fl_peel.store import Store, from_nodes, to_nodes
from simulations.scenario_files import load_scenario
from strategies.figures.schema import to_json
from strategies.groups import state
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.contents import OpenServerContents
from strategies.run import refinement
from strategies.run.run import RunCheckpoints
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.server_app import serve
from tests.helpers.examples import but_one_slow, examples
from tests.helpers.loopback import LoopbackGrid, let_through

TIMES = {"seconds", "stages", "message_bytes", "devices_per_second"}
ACCEPTED = ("refinement.acceptance.rule=validation", "data.validation_share=20%", "refinement.rounds=3")
KINDS = {
    "kept by some": ACCEPTED,
    "own optimizer": (*ACCEPTED, "refinement.aggregation.optimizer=adam", "refinement.cohort_share=50%"),
    "refit": (*ACCEPTED, "data.refit=true"),
    "masked": (
        "secure_aggregation.enabled=true",
        "secure_aggregation.min_devices=4",
        "secure_aggregation.neighbours=4",
        "selector=exposure",
    ),
    "noised": (
        "privacy.mechanism=central-gaussian",
        "privacy.noise_multiplier=1",
        "privacy.clipping.kind=adaptive",
        "privacy.delta=1e-2",
        "refinement.sampling=poisson",
    ),
    "poisoned": ("poisoning.share=20%", "poisoning.kind=sign-flip", "evaluation.full_tables=false"),
}


class Stopped(BaseException):
    """As kill -9 would: nothing of ours may catch it."""


def figures(result: Any) -> Any:
    """All but what depends on the hour."""
    return timeless(json.loads(json.dumps(to_json(result))))


def timeless(node: Any, *, and_not: Set[str] = frozenset()) -> Any:
    """Without times, and without other keys."""
    if isinstance(node, dict):
        return {
            key: timeless(value, and_not=and_not)
            for key, value in node.items()
            if key not in TIMES and key not in and_not
        }
    return [timeless(value, and_not=and_not) for value in node] if isinstance(node, list) else node


def served(scenario: Any, run_dir: Any, kept: Any, *, stop_at: int | None = None) -> tuple[Any, int, list[Event]]:
    """The result, None if it was stopped at a message; messages that were answered; what was told."""
    count, events = 0, []

    def interfere(partition: int, message: Any) -> Any:
        nonlocal count
        if count == stop_at:
            raise Stopped
        count += 1
        return let_through(partition, message)

    try:
        result = serve(LoopbackGrid(2, interfere), scenario, RunPaths("", str(run_dir), "", str(kept)), events.append)
    except Stopped:
        return None, count, events
    return result, count, events


def stopped_in(server_round: int) -> LoopbackGrid:
    """Two nodes, of which the first that is asked to train in that round, from 1, ends the run."""
    rounds: list[Any] = []

    def interfere(partition: int, message: Any) -> Any:
        if message.metadata.message_type == wire.ROUND:
            rounds.append(message)
            if len(rounds) == 2 * server_round - 1:  # each has a message a node
                raise Stopped
        return let_through(partition, message)

    return LoopbackGrid(2, interfere)


@pytest.mark.parametrize("kind", but_one_slow("kept by some", KINDS))
def test_a_run_that_is_stopped_again_and_again_goes_on_to_the_same_figures(kind, tiny, tmp_path):
    scenario = load_scenario(tiny, KINDS[kind])
    whole, messages, _ = served(scenario, tmp_path / "whole", "")
    rng = np.random.default_rng(len(kind))
    kept, most = tmp_path / "kept", 2 * messages // 3
    for number in range(messages):  # each time at least joining and one stage, one step of a stage or one round
        least = min(16, messages // 2)
        stop_at = least if number < 2 else int(rng.integers(least, most + 1))
        result, count, _ = served(scenario, tmp_path / str(number), kept, stop_at=stop_at)
        assert count <= messages
        if result is not None:
            break
    assert figures(result) == figures(whole)
    assert number >= 2


@pytest.mark.parametrize("kind", but_one_slow("kept by some", ["kept by some", "noised", "poisoned"]))
def test_what_lies_in_files_has_the_same_figures_and_is_gone_on_from(kind, tiny, tmp_path, monkeypatch):
    scenario = load_scenario(tiny, KINDS[kind])
    whole, _, _ = served(scenario, tmp_path / "memory", "")
    monkeypatch.setattr(state, "MOST_UNSHELVED", 0)
    monkeypatch.setattr(state, "MOST_IN_MEMORY", 0)
    kept = tmp_path / "kept"
    events: list[Event] = []
    with suppress(Stopped):
        serve(stopped_in(3), scenario, RunPaths("", str(tmp_path / "a"), "", str(kept)), events.append)
    result, _, more = served(scenario, tmp_path / "b", kept)
    assert figures(result) == figures(whole)
    assert not [
        event
        for event in [*events, *more]
        if "the checkpoint cannot be written" in event.text or "damaged" in event.text
    ]


def test_what_is_done_is_not_done_again(tiny, tmp_path):
    scenario = load_scenario(tiny, KINDS["kept by some"])
    _, messages, _ = served(scenario, tmp_path / "first", tmp_path / "kept")
    result, again, events = served(scenario, tmp_path / "second", tmp_path / "kept")
    assert again < messages / 2  # who is there, and joining
    assert {"stage-1", "start-tables", "evaluation", "moving-budgets", "fairness"} <= {
        event.stage for event in events if "resumed from a checkpoint" in event.text
    }
    assert result.stages["refinement"] > 0


def test_rounds_that_a_disk_takes_long_to_keep_are_done_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("strategies.run.run.DISK_BYTES_PER_S", 1e-9)
    scenario = load_scenario(tiny, ACCEPTED)
    whole, _, _ = served(scenario, tmp_path / "whole", "")
    with pytest.raises(Stopped):
        serve(stopped_in(3), scenario, RunPaths("", str(tmp_path / "run"), "", str(tmp_path / "kept")))
    assert "rounds" not in {entry.name for entry in Store(tmp_path / "kept").entries()}
    assert figures(served(scenario, tmp_path / "again", tmp_path / "kept")[0]) == figures(whole)


@pytest.mark.parametrize("rule", ["always", "validation"])
def test_of_item_tables_only_rows_that_devices_changed_are_kept(rule, tiny, tmp_path):
    """With user groups of four devices, each of which trains a few of 60 items. Groups that went back have none."""
    changes = ["user_groups.count=8", "pretraining.embedding_dim=64", "blocks={item_groups: single}"]
    less = ["selector=popularity", "evaluation.budgets=[50%]", "elasticity.falls=[]", "fleet=[fleet.yaml:large]"]
    scenario = load_scenario(tiny, [*changes, *less, f"refinement.acceptance.rule={rule}"])
    served(scenario, tmp_path / "run", tmp_path / "kept")
    (entry,) = [entry for entry in Store(tmp_path / "kept").entries() if entry.name == "rounds"]
    live = defaultdict(lambda: np.zeros((60, 64), np.float32))
    value = from_nodes(entry.value["object"], entry.arrays("arrays"), live)
    rows = value["changed"].sum(axis=1)
    assert (rows < 60).all()
    if rule == "always":
        assert (rows > 0).any()
    else:
        assert not rows[value["acceptance"]["rounds_kept"] == 0].any()
    kept = [entry.arrays(file)["rows"] for file in entry.files if file.startswith("rows-")]
    assert [len(one) for one in kept] == rows.tolist()
    assert (60, 64) not in {one.shape for one in entry.arrays("arrays").values()}, "no table is among the rest"


class EveryRow(OpenServerContents):
    """A rule that changes rows that no device changed."""

    def apply(self, state, order, total):
        super().apply(state, order, total)
        state.table[order.items] *= np.float32(0.5)


def test_a_rule_of_ones_own_may_change_every_row_that_was_sent(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "OpenServerContents", EveryRow)
    scenario = load_scenario(tiny, KINDS["kept by some"])
    whole, messages, _ = served(scenario, tmp_path / "whole", "")
    served(scenario, tmp_path / "stopped", tmp_path / "kept", stop_at=messages // 2)
    result, _, events = served(scenario, tmp_path / "again", tmp_path / "kept")
    assert any("resumed from a checkpoint" in event.text for event in events)
    assert figures(result) == figures(whole)


def test_groups_go_back_to_what_they_had_kept_before_the_run_was_stopped(tiny, tmp_path, monkeypatch):
    """All keep the first round and none of the next two; the run is stopped in the second."""
    answers = iter([True, False, False] * 2)
    better = "fl_peel.ranking.bootstrap.Effects.better"
    monkeypatch.setattr(better, lambda self, _: np.full(len(self.mean), next(answers)))
    scenario = load_scenario(tiny, [*ACCEPTED, "refinement.acceptance.every=1"])
    whole, _, _ = served(scenario, tmp_path / "whole", "")
    with pytest.raises(Stopped):
        serve(stopped_in(2), scenario, RunPaths("", str(tmp_path / "run"), "", str(tmp_path / "kept")))
    result, _, _ = served(scenario, tmp_path / "again", tmp_path / "kept")
    assert figures(result) == figures(whole)
    assert next(answers, None) is None


@pytest.mark.parametrize("damaged", but_one_slow("disks/", ["disks/", "arrays", "rows-"]))
def test_what_is_damaged_is_done_again(damaged, tiny, tmp_path):
    """Signs flipped in copies of devices' disks, in the server's arrays, in rows of tables: in every entry at once."""
    scenario, kept = load_scenario(tiny, KINDS["kept by some"]), tmp_path / "kept"
    whole, _, _ = served(scenario, tmp_path / "first", kept)
    files = {file for one in Store(kept).entries() for path, file in one.files.items() if path.startswith(damaged)}
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 128]))
    result, _, events = served(scenario, tmp_path / "second", kept)
    assert figures(result) == figures(whole)
    assert any("damaged (a digest does not fit): computed again" in event.text for event in events)


def kept_at(folder: Any) -> RunCheckpoints:
    return RunCheckpoints(folder, folder, StageTimes())


@examples(150)
@given(
    nodes=st.lists(st.lists(st.none() | st.integers(-2, 9) | st.text() | st.lists(st.integers(-2, 9)))),
    root=st.integers() | st.lists(st.integers(-2, 9)),
)
def test_whatever_has_a_right_digest_is_a_value_or_none(nodes, root, tmp_path_factory):
    kept = kept_at(tmp_path_factory.mktemp("kept"))
    content = {"object": {"nodes": nodes, "root": root}, "disks": False, "seconds": {}}
    Store(kept.folder).write("it", None, content, {"arrays": {}})
    kept.read("it")
    Store(kept.folder).write("it", None, nodes, {"arrays": {}})
    assert kept.read("it") is None


def test_a_value_that_is_none_is_one(tmp_path):
    kept, calls = kept_at(tmp_path / "kept"), []
    for _ in range(2):
        assert kept.stage("it", lambda: calls.append(1)) is None
    assert len(calls) == 1


def test_a_full_disk_keeps_nothing_and_stops_nothing(tmp_path):
    events: list[Event] = []
    kept = replace(kept_at(tmp_path / "kept"), on_event=events.append)
    (tmp_path / "kept").write_text("in the way")
    assert kept.stage("it", lambda: 7) == 7
    assert "the checkpoint cannot be written" in events[-1].text


def test_what_is_kept_of_keeping_is_how_it_turned_out():
    keeping = object.__new__(AcceptanceTest)
    keeping.accepted_rounds, keeping.comparisons, keeping._accepted_states = np.array([1, 0]), [], [print]
    again = from_nodes(*to_nodes(keeping))
    assert again.accepted_rounds.tolist() == [1, 0]
    assert not hasattr(again, "_accepted_states")


def test_rounds_that_ended_early_are_not_gone_on_with(tiny, tmp_path, monkeypatch):
    """Nobody gains by the first of three rounds; the run is stopped after it, in the evaluation."""
    monkeypatch.setattr("strategies.rounds.acceptance.Comparison.mean_gain", -1.0)
    monkeypatch.setattr("fl_peel.ranking.bootstrap.Effects.better", lambda self, _: np.zeros(len(self.mean), bool))
    scenario = load_scenario(tiny, [*ACCEPTED, "refinement.acceptance.every=1"])
    whole, messages, events = served(scenario, tmp_path / "whole", "")
    assert len(whole.rounds) == 1
    assert [event.text for event in events if "ended after round 1: no better" in event.text]
    served(scenario, tmp_path / "run", tmp_path / "kept", stop_at=messages - 3)
    result, _, _ = served(scenario, tmp_path / "again", tmp_path / "kept")
    assert figures(result) == figures(whole)
    assert len(result.rounds) == 1
