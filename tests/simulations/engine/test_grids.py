"""Grids around a Grid: everything passes, and only what a grid is there for is done otherwise."""

import threading
import time
from types import SimpleNamespace

import pytest
from flwr.serverapp import Grid

from fl_peel.errors import EngineError
from simulations.engine.passing_grid import PassingGrid
from simulations.engine.stoppable_grid import StoppableGrid
from simulations.studies.audit.observer import TapGrid


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


def reply(number):
    return SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=number))


class Slow(PassingGrid):
    """Answers one message at each look."""

    def __init__(self, answers):
        super().__init__(Recorder())
        self._answers = answers

    def push_messages(self, messages):
        return list(messages)

    def pull_messages(self, message_ids):
        return [reply(self._answers.pop(0))] if self._answers else []


def test_all_replies_are_waited_for_until_the_timeout():
    grid = StoppableGrid(Slow(["a", "b"]), threading.Event())
    assert [one.metadata.reply_to_message_id for one in grid.send_and_receive(["a", "b"])] == ["a", "b"]
    grid = StoppableGrid(Slow(["a"]), threading.Event())
    assert len(list(grid.send_and_receive(["a", "b"], timeout=0.1))) == 1


def test_when_the_engine_stops_nobody_waits_any_longer():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(EngineError, match="has stopped"):
        StoppableGrid(Slow([]), stop).send_and_receive(["a"], timeout=60)
    assert time.monotonic() - start < 30
