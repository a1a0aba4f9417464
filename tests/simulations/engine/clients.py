"""A ClientApp that does what engines must survive; and the server's side that asks it to."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
CLIENT = f"{__name__}:app"


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Answer with what came, which process this is, and what it knows of itself."""
    known = dict(context.node_config)
    content = RecordDict({"process": ConfigRecord({"pid": os.getpid(), **known}), **message.content})
    return Message(content, reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    """Raise."""
    raise ZeroDivisionError("of a node")


@app.query("die")
def die(message: Message, context: Context) -> Message:
    """Be killed, as by the system that is short of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is dead")


@app.query("sleep")
def sleep(message: Message, context: Context) -> Message:
    """Answer late."""
    time.sleep(float(message.content.config_records["config"]["seconds"]))
    return Message(message.content, reply_to=message)


@app.query("hold")
def hold(message: Message, context: Context) -> Message:
    """Hold so much memory for a while."""
    held = np.ones(int(message.content.config_records["config"]["bytes"]), np.uint8)
    time.sleep(1.5)
    return Message(RecordDict({"config": ConfigRecord({"sum": int(held.sum())})}), reply_to=message)


def asking(kind: str, node: int, **config: float) -> Message:
    """A question to a node."""
    return Message(RecordDict({"config": ConfigRecord(config)}), node, f"query.{kind}")


def carrying(array: np.ndarray, node: int) -> Message:
    """A question with an array, which the answer has again."""
    return Message(RecordDict({"arrays": ArrayRecord({"array": Array(array)})}), node, "query.echo")
