"""Answers of a node, whichever engine hosts it: by the ClientApp, or with the error that it raised."""

from __future__ import annotations

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

FAILED = 0
"""Flower's code of errors that it knows no other code for."""


def answer(client: ClientApp, message: Message, context: Context) -> Message:
    """Return the ClientApp's reply to a message; one that raises gives an error reply, as on Flower's engines."""
    try:
        return client(message, context)
    except Exception as error:
        return error_reply(message, f"{type(error).__name__}: {error}")


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply of a node that failed."""
    return Message(Error(FAILED, reason), reply_to=message)
