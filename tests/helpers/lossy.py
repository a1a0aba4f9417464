"""A Grid of a deployment without an engine: nodes are lost, and come back under another id, as Flower tells of it."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Error, Message

from simulations.engine.passing_grid import number_message
from tests.helpers.loopback import Interfere, LoopbackGrid, let_through

SUPERLINK = 1
"""Whom errors are of that a lost node's messages come back with."""


class LossyGrid(LoopbackGrid):
    """Of a node that is gone, the SuperLink answers, or nobody."""

    def __init__(self, num_nodes: int, interfere: Interfere = let_through, *, patience_s: float = 5.0) -> None:
        super().__init__(num_nodes, interfere)
        self.patience_s = patience_s
        self.node_config["num-partitions"] = num_nodes
        self.gone: set[int] = set()
        self.silent: set[int] = set()

    def lose(self, partition: int, *, silent: bool = False) -> None:
        """A node is killed; silent: it had its message, which nobody will answer."""
        (node,) = [node for node, its in self._partition.items() if its == partition and node not in self.gone]
        self.gone.add(node)
        if silent:
            self.silent.add(node)

    def bring_back(self, partition: int) -> int:
        """It comes back; returns its new id."""
        node = max(self._partition) + 1
        self._partition[node] = partition
        return node

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._partition if node not in self.gone]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = [self._reply(message) for message in messages]
        return [reply for reply in replies[::-1] if reply is not None]

    def _reply(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        if node not in self.gone:
            return self._answer(message)
        if node in self.silent:
            return None
        number_message(message)
        reply = Message(Error(9, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK
        return reply
