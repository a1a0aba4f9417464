"""A process that forks workers, each of which answers messages and calls: ``python -P -m simulations.engine.worker``.

It imports the ClientApp once, so that a worker starts within milliseconds and shares what was imported. It starts no
thread, which a fork would not survive: a fork of the run's own process, with its pools of threads, might hang. Whoever
started it asks for a worker through a socket, by sending the worker's end of another one. When the run's process is
gone, however it ended, that socket closes, and all of them end.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from simulations.engine.message_pipe import MessagePipe

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

WANTED, DRAWS = b"w", b"d"
"""Byte that comes with the socket of a worker that is wanted, and alone where workers will draw."""
DRAWING = "simulations.report.run_files", "matplotlib.figure", "matplotlib.backends.backend_svg"
"""Modules that workers that draw find imported."""
FAILED = 0
"""Flower's code of errors that it knows no other code for."""


def serve_forks(control: socket.socket, client: str, preloaded: tuple[str, ...] = ()) -> NoReturn:
    """Fork a worker for every socket that comes, until nobody can send any more.

    client: the ClientApp, as ``module:name``; preloaded: modules that workers import beside it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers: their sockets tell when they end
    module, _, name = client.partition(":")
    app: ClientApp = getattr(import_module(module), name)
    for other in preloaded:
        import_module(other)
    gc.collect()
    gc.freeze()  # what is shared stays shared: a search for garbage would write to it
    while True:
        wanted, sockets, *_ = socket.recv_fds(control, 1, 1)
        if not wanted:
            os.killpg(0, signal.SIGKILL)
        if wanted == DRAWS:
            for other in DRAWING:
                import_module(other)
            continue
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answer_all(MessagePipe(socket.socket(fileno=sockets[0])), app)
        os.close(sockets[0])


def answer_all(pipe: MessagePipe, app: ClientApp) -> NoReturn:
    """Say which process this is; answer messages, or call what comes instead, until nobody sends any more."""
    pipe.send(os.getpid())
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            os._exit(0)
        reply = request() if callable(request) else answer(app, *request)
        del request
        pipe.send(reply)
        del reply


def answer(client: ClientApp, message: Message, context: Context) -> Message:
    """Return the ClientApp's reply to a message; one that raises gives an error reply, as on Flower's engines."""
    try:
        return client(message, context)
    except Exception as error:
        return error_reply(message, f"{type(error).__name__}: {error}")


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply of a node that failed."""
    from flwr.app import Error, Message

    return Message(Error(FAILED, reason), reply_to=message)


if __name__ == "__main__":
    serve_forks(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], tuple(sys.argv[3:]))
