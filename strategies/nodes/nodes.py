"""The nodes of a run: who hosts which partition, asking all of them, and what to do when one fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_peel import errors, wire
from fl_peel.errors import EngineError, FlPeelError, ScenarioError, SecureAggregationError
from fl_peel.roots import code_digest, own_root

logger = logging.getLogger("fl_peel")
Reply = TypeVar("Reply")
PULL_INTERVAL_S = 0.01
"""Seconds between looks for replies in simulation."""


@dataclass(frozen=True)
class Nodes:
    """Node ids by partition. Node ids are random, partitions are not: everything is ordered by partition."""

    grid: Grid
    ids: tuple[int, ...]
    timeout_s: float

    @staticmethod
    def connect(grid: Grid, scenario: str, *, root: str, timeout_s: float, patience_s: float = 120.0) -> Nodes:
        """Find the node of every partition.

        Raises:
            EngineError: not all partitions answered in time, or nodes run another copy of the packages.
        """
        deadline = time.monotonic() + patience_s
        if hasattr(grid, "pull_interval"):  # of the simulation's grid, which else looks for replies 10 times a second
            grid.pull_interval = PULL_INTERVAL_S
        found: dict[int, int] = {}
        wanted: int | None = None
        while True:
            asked = [node for node in grid.get_node_ids() if node not in found.values()]
            content = wire.pack(wire.HelloRequest(scenario))
            messages = [Message(content, dst_node_id=node, message_type=wire.HELLO) for node in asked]
            for reply in grid.send_and_receive(messages, timeout=min(timeout_s, patience_s)) if messages else []:
                if reply.has_error():
                    raise failure(reply, f"node {reply.metadata.src_node_id}")
                answer = wire.unpack(wire.HelloReply, reply.content)
                if answer.root != root and answer.code != code_digest(own_root()):
                    raise EngineError(
                        f"the node of partition {answer.partition} runs other code, from {answer.root}, than the "
                        f"server, from {root}; install the same version, or start the SuperLink in another folder"
                    )
                found[answer.partition] = reply.metadata.src_node_id
                wanted = answer.num_partitions
            if wanted is not None and set(found) >= set(range(wanted)):
                return Nodes(grid, tuple(found[partition] for partition in range(wanted)), timeout_s)
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{len(found)} of {wanted or 'unknown'} nodes answered within {patience_s:.0f} s; "
                    "start the missing nodes or look for their errors in the log above"
                )
            time.sleep(0.5)

    def messages(self, kind: str, content: Callable[[int], object | None]) -> Iterable[Message]:
        """One message for each partition for which ``content`` has a payload."""
        for partition, node in enumerate(self.ids):
            payload = content(partition)
            if payload is not None:
                record: RecordDict = wire.pack(payload)
                yield Message(record, dst_node_id=node, message_type=kind)

    def ask(self, kind: str, reply_type: type[Reply], content: Callable[[int], object | None]) -> list[Reply]:
        """Ask nodes and wait for all of them.

        Raises:
            EngineError: a node failed or did not answer in time.
            FlPeelError: a node found a mistake of the user's, which it names.
        """
        messages = list(self.messages(kind, content))
        replies = list(self.grid.send_and_receive(messages, timeout=self.timeout_s))
        for reply in replies:
            if reply.has_error():
                raise failure(reply, f"node {self.partition(reply)} ({kind})")
        if len(replies) < len(messages):
            raise EngineError(
                f"{len(messages) - len(replies)} of {len(messages)} nodes did not answer {kind} within "
                f"{self.timeout_s:.0f} s; raise engine.reply_timeout_s or look for their errors in the log"
            )
        ordered = sorted(replies, key=self.partition)
        return [wire.unpack(reply_type, reply.content) for reply in ordered]

    def ask_some(self, kind: str, reply_type: type[Reply], content: Callable[[int], object | None]) -> dict[int, Reply]:
        """Ask nodes; replies by partition, ascending, of those that answer.

        Raises:
            ScenarioError, SecureAggregationError: a node names a mistake, or its devices refuse.
        """
        messages = list(self.messages(kind, content))
        replies = list(self.grid.send_and_receive(messages, timeout=self.timeout_s)) if messages else []
        good = {}
        for message in sorted(replies, key=self.partition):
            if message.has_error():
                raise_or_log(failure(message, f"node {self.partition(message)} ({kind})"))
            else:
                good[self.partition(message)] = wire.unpack(reply_type, message.content)
        if len(replies) < len(messages):
            logger.warning(
                "%d of %d nodes did not answer %s in time", len(messages) - len(replies), len(messages), kind
            )
        return good

    def partition(self, reply: Message) -> int:
        """Partition of the node that sent a reply."""
        return self.ids.index(reply.metadata.src_node_id)


def failure(reply: Message, who: str) -> FlPeelError:
    """The error that an error reply stands for."""
    if reply.error.code == wire.USER_MISTAKE:
        name, _, text = (reply.error.reason or "").partition("|")
        kind = getattr(errors, name, EngineError)
        if isinstance(kind, type) and issubclass(kind, FlPeelError):
            return kind(text)
    reason = " ".join((reply.error.reason or "no reason given").split())
    return EngineError(f"{who} failed: {reason[-500:]}")


def raise_or_log(error: Exception) -> None:
    """Raise what every node would say again; log what befell one node."""
    if isinstance(error, (ScenarioError, SecureAggregationError)):
        raise error
    logger.warning("%s", error)
