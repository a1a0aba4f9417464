"""Errors that a node reports to the server."""

from __future__ import annotations

import logging

from pydantic import BaseModel

from fl_peel.errors import FlPeelError, MessageError
from fl_peel.scenario.scenario import Scenario
from fl_peel.wire import NodeError

logger = logging.getLogger("fl_peel")
NODE_CONFIG = "node config"
USUAL_PLACES = {"ProfileError": "fleet", "DataError": "data"}
"""Keys that errors of these classes are about, where they name another place."""


def node_error(mistake: FlPeelError, *, whole: bool) -> NodeError:
    """Return the part of an error that leaves the node: its class and the key it is about. Its line goes too where it
    is ``whole``, is public, or is about the message itself; any other line is for the node's own log.
    """
    code, line = type(mistake).__name__, str(mistake)
    if whole or mistake.public or isinstance(mistake, MessageError):
        return NodeError(code, _place(code, line), line)
    logger.error("%s: %s", code, line)
    return NodeError(code, _place(code, line))


def _place(code: str, line: str) -> str:
    """The key that a line begins with, as lines do."""
    first = line.partition(":")[0]
    if first.startswith(NODE_CONFIG):
        return NODE_CONFIG
    return first if _is_key(first) else USUAL_PLACES.get(code, "")


def _is_key(text: str) -> bool:
    """Whether a scenario has a key of this name, with dots where it is in a part of it."""
    model: object = Scenario
    for name in text.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields):
            return False
        model = model.model_fields[name].annotation
    return True


__all__ = ["node_error"]
