"""A Grid that stops waiting when the engine has stopped.

When Ray cannot start, or the user presses Ctrl-C, the engine's thread ends, but the server's would wait for replies
until its timeout, half an hour later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fl_peel.errors import EngineError
from simulations.engine.passing_grid import PassingGrid

POLL_S = 0.02
"""Seconds between two looks for replies."""


class StoppableGrid(PassingGrid):
    """Waits for replies only until ``stop`` is set."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        super().__init__(grid)
        self._stop = stop

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send, and wait for all replies, for ``timeout`` seconds, or until the engine stops.

        Raises:
            EngineError: the engine has stopped.
        """
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            if self._stop.is_set():
                raise EngineError("the simulation engine has stopped")
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if waiting and not arrived:
                self._stop.wait(POLL_S)
        return replies
