"""A Grid of our own: Flower's messages between the server's side and nodes of this machine, without Ray."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

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
        """Make a message, as its own constructor does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
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
        """Return what a node knows of itself."""
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
