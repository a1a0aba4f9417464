"""Nodes are given messages as soon as there are any.

Flower's engine takes one message for each node, then waits for a tenth of a second: a node had ten messages a second at
most, however soon it was done with them, and evaluating hundreds of large tables was mostly waiting. There is no
setting for it. An engine that has no such loop delivers as it does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

ENGINE, LOOP = "flwr.server.superlink.fleet.vce.vce_api", "add_messages_to_queue"
"""Where the engine's loop is, and its name."""
PAUSE_S = 0.005
"""Between two looks for messages."""


class _Soon(threading.Event):
    """Another event, which nobody waits for longer than ``PAUSE_S``."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._other = event

    def is_set(self) -> bool:
        """As the other one."""
        return self._other.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """As for the other one, for less long."""
        return self._other.wait(PAUSE_S if timeout is None else min(timeout, PAUSE_S))


@contextmanager
def delivered_soon() -> Iterator[None]:
    """Within, the engine looks for messages every ``PAUSE_S``."""
    try:
        engine = import_module(ENGINE)
    except ImportError:
        engine = None
    hand_on = getattr(engine, LOOP, None)
    if hand_on is None:
        yield
        return

    def soon(state: Any, queue: Any, nodes_mapping: Any, f_stop: threading.Event) -> None:
        hand_on(state, queue, nodes_mapping, _Soon(f_stop))

    with patch.object(engine, LOOP, soon):
        yield


__all__ = ["delivered_soon"]
