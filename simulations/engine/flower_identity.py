"""Identity that a Grid of our own needs of Flower beyond its public names: the only place that reaches for it.

Flower makes messages for whoever its own engines started: ``Message(...)`` reads who this process is from
``TaskIdentity``, and whoever sends a message numbers it in place (:class:`flwr.superlink.grid.InMemoryGrid` does it in
the same way). No public name does either. ``tests/simulations/engine/test_grids.py`` fails when Flower
changes this.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
"""Number of the run in an engine of our own, which has one run."""
_SERVER = 1
"""Node of the server's side, as Flower numbers it."""
_numbers: Iterator[int] = itertools.count(1)


def identify_server() -> None:
    """Let this process make messages as the server's side of a run."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, _SERVER


def number_message(message: Message) -> str:
    """Give a message that is sent its number, which its reply names; returns it."""
    number = str(next(_numbers))
    message.metadata.__dict__["_message_id"] = number
    return number
