"""Messages between processes arrive as they were sent, and no later one changes an earlier one."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from fl_peel import wire
from simulations.engine.message_pipe import MessagePipe

LARGE = 1 << 18


@pytest.fixture
def ends():
    with MessagePipe((pair := socket.socketpair())[0]) as one, MessagePipe(pair[1]) as other:
        yield one, other


def large(value, count=LARGE):
    return np.full(count, value, np.float32)


def test_what_arrives_is_what_was_sent(ends):
    one, other = ends
    arrays = {"large": large(1), "odd": np.arange(20_001, dtype=np.uint8), "small": np.arange(3), "none": large(0, 0)}
    for content in (arrays, "words", {"packed": wire.packed_once(arrays)}, [large(2).reshape(2, -1).T]):
        one.send(content)
        arrived = other.recv()
        if content is arrays:
            assert all(np.array_equal(arrived[name], array) for name, array in arrays.items())
            assert all(array.ctypes.data % array.itemsize == 0 for array in arrived.values())
        elif content == "words":
            assert arrived == content
        elif isinstance(content, dict):
            unpacked = {name: wire._to_numpy(array) for name, array in arrived["packed"].items()}
            assert all(np.array_equal(unpacked[name], array) for name, array in arrays.items())
        else:
            assert np.array_equal(arrived[0], content[0])


def test_an_array_that_is_held_stays_as_it_came_whatever_is_sent_next(ends):
    one, other = ends
    sent = large(1)
    one.send(sent)
    held = other.recv()[5:]
    held[0] = 7
    assert sent[5] == 1
    for value in (2, 3, 4):
        one.send(large(value))
        assert (other.recv() == value).all()
    assert held[0] == 7
    assert (held[1:] == 1).all()


def test_a_file_that_was_read_takes_the_next_message_and_is_as_long_as_that(ends):
    one, other = ends
    for value in range(5):
        one.send(large(value, LARGE - 1000 * value))
        arrived = other.recv()
        assert (arrived == value).all()
        assert len(arrived) == LARGE - 1000 * value
        del arrived
    assert len(one._files) == 1
    first, second = (one.send(large(value)) or other.recv() for value in (1, 2))
    assert len(one._files) == 2
    del first, second
    one.send("words")
    assert len(one._files) == 1, "the other one is given back"


def test_a_pipe_whose_other_end_is_closed(ends):
    one, other = ends
    other.close()
    with pytest.raises(EOFError):
        one.recv()
    with pytest.raises(OSError, match="Broken pipe"):
        one.send(large(1))
