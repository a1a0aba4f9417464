"""Grids around another Grid: one that passes everything on, one that sends no more at a time than nodes work on."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_peel.errors import EngineError

logger = logging.getLogger("fl_peel")


class PassingGrid(Grid):
    """Passes every call on to ``grid``; a subclass overrides the one that it is there for."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


# ---- A Grid that sends no more at a time than nodes work on, and stops waiting when the engine has stopped
# When Ray cannot start, or the user presses Ctrl-C, the engine's thread ends, but the server's would wait for replies
# until its timeout, half an hour later.


POLL_S = 0.02
"""Seconds between two looks for replies."""
TELL_S = 10.0
"""Seconds between two lines about what is waited for."""
START_S = 600.0
"""Seconds that nodes may take for their first answer, where a scenario has no ``engine.patience_s`` of its own."""
AT_ONCE = 2
"""Messages that a node is sent before it has answered: one that it works on, one that waits."""


class StoppableGrid(PassingGrid):
    """Waits for replies only until ``stop`` is set; sends messages as nodes have room, and hands replies on at once.

    While it waits for the very first one, it says so every ten seconds. start_s: how long nodes, all of which are there
    unless ``stop`` is set, may take for it; wait: waits until a reply is there, at most so many seconds, if the grid
    can tell; give_up: is given the ids of messages that were not answered in time.
    """

    def __init__(
        self,
        grid: Grid,
        stop: threading.Event,
        wait: Callable[[float], object] | None = None,
        give_up: Callable[[Collection[str]], None] | None = None,
        start_s: float = START_S,
    ) -> None:
        super().__init__(grid)
        self.start_s = start_s
        self._answered = False
        self._stop = stop
        self._wait = wait or stop.wait
        self._give_up = give_up

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, and wait for all replies, for ``timeout`` seconds after the last that came, or until the engine stops.
        The first messages are sent at once, further ones while replies are taken.

        Raises:
            EngineError: the engine has stopped.
        """
        sending = _Sending(self, iter(messages))
        sending.send()
        return self._replies(sending, timeout)

    def _replies(self, sending: _Sending, timeout: float | None) -> Iterator[Message]:
        last = last_line = start = time.monotonic()
        while sending.waiting and (timeout is None or time.monotonic() < last + timeout):
            if self._stop.is_set():
                raise EngineError("the simulation engine has stopped")
            arrived = list(self.pull_messages(sending.waiting))
            for reply in arrived:
                del sending.waiting[reply.metadata.reply_to_message_id]
            sending.send()  # before what came is worked on
            if not arrived:
                self._wait(POLL_S)
                if not self._answered and time.monotonic() > last_line + TELL_S:
                    last_line = time.monotonic()
                    logger.warning("no node has answered yet: waited for since %.0f s", last_line - start)
                continue
            self._answered = True
            while arrived:
                yield arrived.pop(0)
            last = time.monotonic()
        if sending.waiting and self._give_up is not None:
            self._give_up(sending.waiting)


class _Sending:
    """The messages on their way. waiting: ids of unanswered messages, with the node that each went to."""

    def __init__(self, grid: Grid, messages: Iterator[Message]) -> None:
        self.waiting: dict[str, int] = {}
        self._grid, self._messages = grid, messages
        self._held: dict[int, deque[Message]] = {}
        self._more = True

    def send(self) -> None:
        """Send the messages that nodes have room for; one that does not answer delays no other."""
        while True:
            busy = Counter(self.waiting.values())
            ready = [held.popleft() for node, held in self._held.items() if held and busy[node] < AT_ONCE]
            if not ready and not self._has_more(busy):
                return
            for message in ready:
                (number,) = self._grid.push_messages([message])
                self.waiting[number] = message.metadata.dst_node_id

    def _has_more(self, busy: Counter[int]) -> bool:
        """Take one message more, if there is one and some node has room."""
        if not self._more or (self._held and all(busy[node] >= AT_ONCE for node in self._held)):
            return False
        message = next(self._messages, None)
        self._more = message is not None
        if message is not None:
            self._held.setdefault(message.metadata.dst_node_id, deque()).append(message)
        return self._more


# ---- A Grid for Flower's deployment engine: messages one by one, and replies as soon as they are there


REPLIES_POLL_S = 0.5
"""Seconds between two looks for replies."""


class DeployedGrid(PassingGrid):
    """Flower's own reads its messages twice, so that it takes no generator, and looks for replies every three seconds.

    patience_s: how long a node that is lost is waited for where nothing goes on without it.
    """

    def __init__(self, grid: Grid, patience_s: float) -> None:
        super().__init__(grid)
        self.patience_s = patience_s

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send each message when it is made, and wait for all replies, or for ``timeout`` seconds."""
        waiting: set[str] = set()
        for message in messages:
            waiting.update(sent for sent in self.push_messages([message]) if sent)  # None: there is no such node
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if deadline is not None and time.monotonic() > deadline:
                break
            if waiting and not arrived:
                time.sleep(REPLIES_POLL_S)
        return replies


def deployment_grid(grid: Grid, patience_s: float) -> Grid:
    """The grid itself where it is the simulation's, which has its messages in its own memory."""
    return grid if is_simulated(grid) else DeployedGrid(grid, patience_s)


def is_simulated(grid: Grid) -> bool:
    """Whether nodes are Flower's simulation, whose grid alone can be told how often to look for replies."""
    return hasattr(grid, "pull_interval")


# ---- A Grid of our own: Flower's messages between the server's side and nodes of this machine, without Ray


RUN_ID = 1
"""Number of the run in an engine of our own, which has one run."""
_SERVER = 1
"""Node of the server's side, as Flower numbers it."""
STEP, IDS = 7919, 2**31 - 1
"""Node ids are multiples of the one modulo the other: they tell nothing about partitions, as Flower's do not."""


_numbers = itertools.count(1)

# Flower makes messages for whoever its own engines started: `Message(...)` reads who this process is from
# `TaskIdentity`, and whoever sends a message numbers it in place, as flwr.superlink.grid.InMemoryGrid does. No public
# name does either; tests/simulations/engine/test_grids.py fails when Flower changes this.


def identify_server() -> None:
    """Let this process make messages as the server's side of a run."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, _SERVER


def number_message(message: Message) -> str:
    """Give a message that is sent its number, which its reply names; returns it."""
    number = str(next(_numbers))
    message.metadata.__dict__["_message_id"] = number
    return number


class Host(Protocol):
    """The host of the nodes."""

    def ask(self, message: Message, context: Context, on_reply: Callable[[Message], None]) -> None:
        """Have a message answered, now or later; ``on_reply`` is called once, from any thread."""

    def give_up(self, numbers: Collection[str]) -> None:
        """Give up the answers to messages of these numbers, which are not awaited any more."""


class EmbeddedGrid(Grid):
    """``num_nodes`` nodes of one machine. node_config: what every node knows of itself beside its partition."""

    def __init__(self, num_nodes: int, host: Host) -> None:
        identify_server()
        self._host = host
        self._partition = {STEP * (partition + 1) % IDS: partition for partition in range(num_nodes)}
        self.node_config: dict[str, Any] = {"simulated": True}
        self._arrived = threading.Condition()
        self._waiting: set[str] = set()
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run, which Flower need not know."""

    @property
    def run(self) -> Any:
        """Do nothing: there is one run, which Flower need not know."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._partition)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their nodes; returns their numbers."""
        numbers = []
        for message in messages:
            number = number_message(message)
            with self._arrived:
                self._waiting.add(number)
            self._host.ask(message, self.context(message.metadata.dst_node_id), self._on_reply)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages of these numbers that are there, in the order in which they came."""
        wanted = set(message_ids)
        with self._arrived:
            there = [number for number in self._replies if number in wanted]
            return [self._replies.pop(number) for number in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """:class:`simulations.engine.passing_grid.StoppableGrid` around this one does that."""
        raise NotImplementedError

    def wait(self, seconds: float) -> None:
        """Wait until a reply is there, at most so long."""
        with self._arrived:
            if not self._replies:
                self._arrived.wait(seconds)

    def give_up(self, message_ids: Collection[str]) -> None:
        """Wait no more for replies to messages of these numbers."""
        with self._arrived:
            self._waiting.difference_update(message_ids)
            for number in message_ids:
                self._replies.pop(number, None)
        self._host.give_up(message_ids)

    def context(self, node: int) -> Context:
        place = {"partition-id": self._partition[node], "num-partitions": len(self._partition)}
        return Context(
            run_id=RUN_ID, node_id=node, node_config=place | self.node_config, state=RecordDict(), run_config={}
        )

    def _on_reply(self, reply: Message) -> None:
        number = reply.metadata.reply_to_message_id
        with self._arrived:
            if number in self._waiting:
                self._waiting.remove(number)
                self._replies[number] = reply
                self._arrived.notify_all()
