"""Worker processes that host the nodes of a run on this machine.

Nodes are processes, not threads of the run's own: what they do in Python would hold the server up, and it them; one
that the system kills for lack of memory costs its message, not the run. A node stays with one worker, which keeps what
it has read of the node's devices.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from fl_peel.errors import EngineError
from fl_peel.packages import own_root
from simulations.engine.worker import DRAWS, WANTED, error_reply

if TYPE_CHECKING:
    from flwr.app import Context, Message

ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment of the process that forks: pyarrow's allocator would start another thread."""
JOIN_S = 5.0
"""Seconds that a thread has to end in, once its worker is gone."""


class ForkServer:
    """The process that forks workers (:mod:`simulations.engine.worker`); one that has died is started again."""

    def __init__(self, client: str, environment: Mapping[str, str], preloaded: Sequence[str] = ()) -> None:
        self._words = [client, *preloaded]
        # a worker finds what this process finds, but nothing that merely lies in the working directory
        path = os.pathsep.join([str(own_root()), *filter(None, sys.path)])
        self._environment = os.environ | environment | ONE_THREAD | {"PYTHONPATH": path}
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "simulations.engine.worker", str(theirs.fileno()), *self._words],
                env=self._environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the run, which ends this
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
            )

    def fork(self) -> Connection:
        """Start a worker; returns the connection to it.

        Raises:
            EngineError: no more are wanted.
            OSError: the process that forks has just died.
        """
        with self._lock:
            if self._closed:
                raise EngineError("the run has ended")
            if self._process.poll() is not None:
                self._end()
                self._start()
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self._control, [WANTED], [theirs.fileno()])
        return Connection(ours.detach())

    def prepare_drawing(self) -> None:
        """Have what draws imported, for workers that are forked later."""
        with self._lock, suppress(OSError):
            self._control.send(DRAWS)

    def last_words(self) -> str:
        """Return the last line that the process or its workers wrote as an error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End the process and all workers."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        self._control.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a group of its own, which its workers are in
        self._process.wait()


@dataclass(frozen=True)
class _Question:
    """A message, the configuration of its node, and the receiver of the reply."""

    message: Message
    context: Context
    on_reply: Callable[[Message], None]

    @property
    def number(self) -> str:
        return self.message.metadata.message_id


class _Worker:
    """A worker process, started when it is first asked, and again after it has died; and a thread that speaks with it.

    The process gets one message at a time, and answers it before it gets the next one.
    """

    def __init__(self, fork_server: ForkServer) -> None:
        self._fork_server = fork_server
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._asked: str | None = None
        self._pid: int | None = None
        self._connection: Connection | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def ask(self, question: _Question | None) -> None:
        """Have a question answered after those before it; None: there will be no more."""
        if question is not None:
            with self._lock:
                self._open.add(question.number)
        self._questions.put(question)

    def give_up(self, numbers: Collection[str]) -> None:
        """Leave these out; a process that works on one of them is ended, as it may never come back from it."""
        with self._lock:
            self._open.difference_update(numbers)
            if self._asked in numbers and self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)

    def _serve(self) -> None:
        while (question := self._questions.get()) is not None:
            with self._lock:
                if question.number not in self._open:
                    continue
                self._asked = question.number
            reply = self._reply(question)
            with self._lock:
                self._open.discard(question.number)
                self._asked = None
            question.on_reply(reply)
            del question, reply  # not kept until the next one comes
        if self._connection is not None:
            self._connection.close()

    def _reply(self, question: _Question) -> Message:
        started = False
        try:
            if self._connection is None:
                self._connection = self._fork_server.fork()
                self._pid = self._connection.recv()
            started = True
            self._connection.send((question.message, question.context))
            reply: Message = self._connection.recv()
            return reply
        except (EOFError, OSError, EngineError) as error:
            with self._lock:
                self._pid = None
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if started:
                return error_reply(question.message, "its worker process has died, perhaps for lack of memory")
            why = self._fork_server.last_words() or str(error)
            return error_reply(question.message, f"no worker process starts: {why}")


class WorkerPool:
    """So many worker processes, until the block ends. Node p is hosted by number p modulo their count."""

    def __init__(self, count: int, client: str, environment: Mapping[str, str], preloaded: Sequence[str] = ()) -> None:
        self._fork_server = ForkServer(client, environment, preloaded)
        self._workers = [_Worker(self._fork_server) for _ in range(count)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._fork_server.close()
        for worker in self._workers:
            worker.ask(None)
        for worker in self._workers:
            worker.thread.join(JOIN_S)

    def ask(self, message: Message, context: Context, on_reply: Callable[[Message], None]) -> None:
        """Have the worker of the message's node answer it."""
        partition = int(context.node_config["partition-id"])
        self._workers[partition % len(self._workers)].ask(_Question(message, context, on_reply))

    def prepare_drawing(self) -> None:
        """Have helpers find imported what draws."""
        self._fork_server.prepare_drawing()

    def helper(self) -> Connection:
        """Fork a process that calls what it is sent, and sends what that returns, until the connection is closed.

        Raises:
            EOFError, EngineError, OSError: it does not start.
        """
        connection = self._fork_server.fork()
        connection.recv()  # which process it is
        return connection

    def give_up(self, numbers: Collection[str]) -> None:
        """End workers that work on messages of these numbers, and leave out those that wait."""
        for worker in self._workers:
            worker.give_up(numbers)
