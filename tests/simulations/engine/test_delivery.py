"""Messages wait for nodes alone, not for the engine to look for them."""

import threading
import time
from queue import Queue

import pytest
from flwr.server.superlink.fleet.vce import vce_api

from simulations.engine import delivery
from simulations.engine.delivery import delivered_soon


class State:
    """Of two nodes that have so many messages each."""

    def __init__(self, count):
        self.left = {1: count, 2: count}

    def get_message_ins(self, node_id, limit):
        self.left[node_id] -= limit
        return [(node_id, self.left[node_id])] if self.left[node_id] >= 0 else []


def seconds_of(count):
    """Until so many messages to each of two nodes are delivered, and in which order they are."""
    queue, stop = Queue(), threading.Event()
    thread = threading.Thread(target=vce_api.add_messages_to_queue, args=(State(count), queue, {1: 0, 2: 1}, stop))
    begun = time.monotonic()
    thread.start()
    messages = [queue.get(timeout=10) for _ in range(2 * count)]
    seconds = time.monotonic() - begun
    stop.set()
    thread.join(timeout=1)
    assert not thread.is_alive(), "it ends with the engine"
    return seconds, messages


def test_twenty_messages_a_node_are_there_at_once():
    before = vce_api.add_messages_to_queue
    with delivered_soon():
        seconds, messages = seconds_of(20)
    assert seconds < 1.5, "Flower alone takes two seconds"
    assert messages == [(node, 19 - number) for number in range(20) for node in (1, 2)]
    assert vce_api.add_messages_to_queue is before


def test_the_engine_may_stop_at_any_time():
    with delivered_soon():
        assert seconds_of(0)[1] == []


@pytest.mark.parametrize(("name", "value"), [("ENGINE", "flwr.no_such_engine"), ("LOOP", "no_such_loop")])
def test_another_engine_delivers_as_it_does(name, value, monkeypatch):
    monkeypatch.setattr(delivery, name, value)
    before = vce_api.add_messages_to_queue
    with delivered_soon():
        assert vce_api.add_messages_to_queue is before
