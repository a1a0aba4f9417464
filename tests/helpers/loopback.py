"""The product's own Grid with its nodes in this process: messages are answered one after the other, by the real
ClientApp, when they are sent.

What engines add (processes, Ray) is tested in tests/simulations/engine/test_engines.py and test_flwr_run.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_peel.wire import MessageKind, unpack
from simulations.engine.passing_grid import EmbeddedGrid
from simulations.engine.worker import answer

Interfere = Callable[[int, Message], "Message | None"]
"""(partition, message) -> a reply instead of the node's own, or None to let the node answer."""


def let_through(partition: int, message: Message) -> Message | None:
    """Interfere with nothing."""
    return None


def failing(kind: MessageKind[Any], fails: Callable[[int, Any], bool], why: str = "out of memory") -> Interfere:
    """An error for an answer to each message of a kind of which ``fails`` says so, by partition and request."""

    def interfere(partition: int, message: Message) -> Message | None:
        if message.metadata.message_type != kind or not fails(partition, unpack(kind.request, message.content)):
            return None
        return Message(Error(0, why), reply_to=message)

    return interfere


class LoopbackGrid(EmbeddedGrid):
    """``crossed``: every record that crossed; ``client``: the app that answers, by default the one that pyproject.toml
    names. Replies come in the reverse order, which must not matter.
    """

    def __init__(self, num_nodes: int, interfere: Interfere = let_through, client: ClientApp | None = None) -> None:
        super().__init__(num_nodes, self)
        if client is None:
            from clients.client_app import app as client
        self._client = client
        self._interfere = interfere
        self.crossed: list[tuple[str, RecordDict]] = []

    def ask(self, message: Message, context: Context, on_reply: Callable[[Message], None]) -> None:
        self.crossed.append((message.metadata.message_type, message.content))
        reply = self._interfere(self._partition[context.node_id], message)
        if reply is None:
            reply = answer(self._client, message, context)
        if not reply.has_error():
            self.crossed.append((f"reply to {message.metadata.message_type}", reply.content))
        on_reply(reply)

    def give_up(self, message_ids: Collection[str]) -> None:
        """All are answered when they are sent."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = [self._answer(message) for message in messages]
        return replies[::-1]

    def _answer(self, message: Message) -> Message:
        (reply,) = self.pull_messages(self.push_messages([message]))
        return reply
