"""A Grid without an engine: messages are answered in this process, one after the other, by the real ClientApp.

What an engine adds (processes, Ray, Flower's own messages) is tested in test_run.py and test_flwr_run.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity  # what an engine sets before messages can be made

Interfere = Callable[[int, Message], "Message | None"]
"""(partition, message) -> a reply instead of the node's own, or None to let the node answer."""


def let_through(partition: int, message: Message) -> Message | None:
    """Interfere with nothing."""
    return None


class LoopbackGrid(Grid):
    """``num_nodes`` nodes whose ids tell nothing about their partitions. ``crossed``: every record that crossed;
    ``client``: the app that answers, by default the one that pyproject.toml names.
    """

    def __init__(self, num_nodes: int, interfere: Interfere = let_through, client: ClientApp | None = None) -> None:
        if client is None:
            from clients.client_app import app as client
        self._client = client
        self._interfere = interfere
        self._replies: dict[str, Message] = {}
        self._partition = {(7919 * (p + 1)) % 10_007: p for p in range(num_nodes)}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.crossed: list[tuple[str, RecordDict]] = []
        self.node_config: dict[str, Any] = {"simulated": True}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._partition)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers = []
        for message in messages:
            reply = self._answer(message)
            numbers.append(message.metadata.message_id)
            self._replies[numbers[-1]] = reply
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(number) for number in list(message_ids) if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = [self._answer(message) for message in messages]
        return replies[::-1]  # the order of arrival must not matter

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        partition = self._partition[node]
        message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        self.crossed.append((message.metadata.message_type, message.content))
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": partition, "num-partitions": len(self._partition)} | self.node_config,
            state=RecordDict(),
            run_config={},
        )
        reply = self._interfere(partition, message)
        if reply is None:
            try:
                reply = self._client(message, context)
            except Exception as error:
                reply = Message(Error(0, f"{type(error).__name__}: {error}"), reply_to=message)
        if not reply.has_error():
            self.crossed.append((f"reply to {message.metadata.message_type}", reply.content))
        return reply
