"""A Grid for Flower's deployment engine: messages one by one, and replies as soon as they are there."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from simulations.engine.passing_grid import PassingGrid

POLL_S = 0.5
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
                time.sleep(POLL_S)
        return replies


def deployment_grid(grid: Grid, patience_s: float) -> Grid:
    """The grid itself where it is the simulation's, which has its messages in its own memory."""
    return grid if is_simulated(grid) else DeployedGrid(grid, patience_s)


def is_simulated(grid: Grid) -> bool:
    """Whether nodes are Flower's simulation; of its kinds of grids, that of simulations alone can be told how often to
    look for replies.
    """
    return hasattr(grid, "pull_interval")
