"""Grids around a Grid: everything passes, and only what a grid is there for is done otherwise."""

import threading
import time
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_peel.errors import EngineError
from simulations.engine import passing_grid
from simulations.engine.passing_grid import RUN_ID, PassingGrid, StoppableGrid, identify_server, number_message
from simulations.studies.observer import TapGrid


class Recorder(Grid):
    """Tells who called what, with which arguments."""

    run = "the run"

    def __getattribute__(self, name):
        if name == "run" or name.startswith("_"):
            return object.__getattribute__(self, name)
        return lambda *args, **named: (name, args, named)

    set_run = create_message = get_node_ids = push_messages = pull_messages = send_and_receive = None


CALLS = {
    "set_run": (("a run",), {}),
    "create_message": (("content", "train", 3, "group", 9.0), {}),
    "get_node_ids": ((), {}),
    "push_messages": ((["message"],), {}),
    "pull_messages": ((["id"],), {}),
    "send_and_receive": ((["message"],), {"timeout": 4.0}),
}


def test_the_calls_are_all_that_a_grid_must_have():
    """What Grid does by itself asks these."""
    assert Grid.__abstractmethods__ == {"run", *CALLS}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_passes_with_its_arguments_and_its_answer(name):
    args, named = CALLS[name]
    answer = getattr(PassingGrid(Recorder()), name)(*args, **named)
    assert answer == (None if name == "set_run" else (name, args, named))


def test_what_is_set_is_set_below():
    seen = []
    grid = PassingGrid(Recorder())
    grid._grid = SimpleNamespace(set_run=seen.append, run="the run")
    grid.set_run("a run")
    assert (seen, grid.run) == (["a run"], "the run")


@pytest.mark.parametrize("kind", [StoppableGrid, TapGrid])
def test_a_grid_overrides_waiting_alone(kind):
    assert set(vars(kind)) & {"run", *CALLS} == {"send_and_receive"}


def message(text, node=1):
    return SimpleNamespace(text=text, metadata=SimpleNamespace(dst_node_id=node))


def reply(number):
    return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=number))


class Slow(PassingGrid):
    """Answers one message at each look: the first that was sent of those that it answers at all."""

    def __init__(self, answers):
        super().__init__(Recorder())
        self._answers = set(answers)
        self.sent = []

    def push_messages(self, messages):
        self.sent += (texts := [message.text for message in messages])
        return texts

    def pull_messages(self, message_ids):
        result = [text for text in self.sent if text in self._answers and text in message_ids]
        return [reply(text) for text in result[:1]]


def texts_of(replies):
    return [one.metadata.reply_to_message_id for one in replies]


def test_all_replies_are_waited_for_until_the_timeout():
    grid = StoppableGrid(Slow(["a", "b"]), threading.Event())
    assert texts_of(grid.send_and_receive([message("a"), message("b")])) == ["a", "b"]
    grid = StoppableGrid(Slow(["a"]), threading.Event())
    assert len(list(grid.send_and_receive([message("a"), message("b")], timeout=0.1))) == 1


def test_the_first_answer_is_waited_for_aloud_and_later_ones_in_silence(monkeypatch, caplog):
    monkeypatch.setattr(passing_grid, "TELL_S", 0.05)
    grid = StoppableGrid(Slow(["a"]), threading.Event())
    for answered in (False, True):
        grid._grid = Slow(["a"] if answered else [])
        list(grid.send_and_receive([message("a"), message("b")], timeout=0.2))
        lines = [record.getMessage() for record in caplog.records]
        assert lines
        assert all(line.startswith("no node has answered yet: waited for since ") for line in lines)
    before = len(caplog.records)
    list(grid.send_and_receive([message("b")], timeout=0.2))
    assert len(caplog.records) == before


def test_a_node_gets_no_more_than_it_works_on_and_one_that_waits():
    slow, taken = Slow("abcdef"), []

    def messages():
        for text in "abcdef":
            taken.append(text)
            yield message(text, node="abcdef".index(text) % 2)

    replies = iter(StoppableGrid(slow, threading.Event()).send_and_receive(messages()))
    assert slow.sent == taken == ["a", "b", "c", "d"]  # at once, before anybody takes a reply
    assert texts_of([next(replies)]) == ["a"]
    assert slow.sent == taken == ["a", "b", "c", "d", "e"]
    assert texts_of(replies) == ["b", "c", "d", "e", "f"]


def test_a_node_that_does_not_answer_holds_nobody_else_up():
    slow = Slow(["b1", "b2", "b3", "b4"])
    both = [message(f"{node}{number}", node) for number in range(1, 5) for node in "ab"]
    assert texts_of(StoppableGrid(slow, threading.Event()).send_and_receive(both, timeout=0.2)) == [
        "b1",
        "b2",
        "b3",
        "b4",
    ]
    assert set(slow.sent) == {"a1", "a2", "b1", "b2", "b3", "b4"}


def test_when_the_engine_stops_nobody_waits_any_longer():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(EngineError, match="has stopped"):
        list(StoppableGrid(Slow([]), stop).send_and_receive([message("a")], timeout=60))
    assert time.monotonic() - start < 30


def test_messages_can_be_made_and_a_reply_names_its_message(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    identify_server()
    content = RecordDict({"config": ConfigRecord({"a": 1})})
    one, other = (Message(content, dst_node_id=node, message_type="query") for node in (3, 4))
    numbers = [number_message(one), number_message(other)]
    assert [one.metadata.message_id, other.metadata.message_id] == numbers
    assert len(set(numbers)) == 2
    reply = Message(content, reply_to=one)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (numbers[0], 3)
    assert (one.metadata.run_id, reply.metadata.run_id) == (RUN_ID, RUN_ID)
