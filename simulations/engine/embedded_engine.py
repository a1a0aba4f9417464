"""The engine of one machine: the same ServerApp, ClientApp and messages as on Flower's, on a Grid of our own.

It starts in the time that imports take, and a run does not depend on Ray, whose start fails on a busy machine.

Nodes are worker processes, not threads of the run's own: what they do in Python would hold the server up, and it them;
one that the system kills for lack of memory costs its message, not the run. A node stays with one worker, which keeps
what it has read of the node's devices.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from fl_peel.errors import EngineError
from fl_peel.packages import own_root
from fl_peel.scenario.scenario import Engine
from simulations.engine.message_pipe import MessagePipe
from simulations.engine.worker import DRAWS, WANTED, error_reply

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid

Key = TypeVar("Key")
Made = TypeVar("Made")
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

    def fork(self) -> MessagePipe:
        """Start a worker; returns the pipe to it.

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
        return MessagePipe(ours)

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
        self._pipe: MessagePipe | None = None
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
        if self._pipe is not None:
            self._pipe.close()

    def _reply(self, question: _Question) -> Message:
        started = False
        try:
            if self._pipe is None:
                self._pipe = self._fork_server.fork()
                self._pid = self._pipe.recv()
            started = True
            self._pipe.send((question.message, question.context))
            reply: Message = self._pipe.recv()
            return reply
        except (EOFError, OSError, EngineError) as error:
            with self._lock:
                self._pid = None
            if self._pipe is not None:
                self._pipe.close()
                self._pipe = None
            if started:
                return error_reply(question.message, "its worker process has died, perhaps for lack of memory")
            why = self._fork_server.last_words() or str(error)
            return error_reply(question.message, f"no worker process starts: {why}")


class WorkerPool:
    """So many worker processes, until the block ends. Node p is hosted by number p modulo their count."""

    def __init__(self, count: int, client: str, environment: Mapping[str, str], preloaded: Sequence[str] = ()) -> None:
        self.fork_server = ForkServer(client, environment, preloaded)
        self._workers = [_Worker(self.fork_server) for _ in range(count)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.fork_server.close()
        for worker in self._workers:
            worker.ask(None)
        for worker in self._workers:
            worker.thread.join(JOIN_S)

    def ask(self, message: Message, context: Context, on_reply: Callable[[Message], None]) -> None:
        partition = int(context.node_config["partition-id"])
        self._workers[partition % len(self._workers)].ask(_Question(message, context, on_reply))

    def give_up(self, numbers: Collection[str]) -> None:
        """End workers that work on messages of these numbers, and leave out those that wait."""
        for worker in self._workers:
            worker.give_up(numbers)


_started_ahead: ContextVar[tuple[Engine, str, WorkerPool] | None] = ContextVar("workers that were started ahead")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_workers(engine: Engine, client: str, variables: Mapping[str, str]) -> WorkerPool:
    """Start as many workers as the machine has room for, and nodes need. variables: of their environment."""
    count = min(engine.nodes, max(processors() // engine.cpus_per_node, 1))
    # libraries compute a node's sums with as many threads as it has processors: figures depend on it
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(engine.cpus_per_node))}
    return WorkerPool(count, client, threads | dict(variables), () if engine.device == "cpu" else ("torch",))


@contextmanager
def workers_ahead(engine: Engine, client: str, variables: Mapping[str, str]) -> Iterator[None]:
    """Start the workers of the run within the block: they import what nodes need while this process does other things.

    Nothing is started where they have been already.
    """
    if _ahead(engine, client) is not None:
        yield
        return
    with start_workers(engine, client, variables) as workers:
        token = _started_ahead.set((engine, client, workers))
        try:
            yield
        finally:
            _started_ahead.reset(token)


def prepare_drawing() -> None:
    """Have what draws imported beside the workers that were started ahead, while the run goes on."""
    started = _started_ahead.get(None)
    if started is not None:
        started[2].fork_server.prepare_drawing()


@contextmanager
def helpers_ahead(count: int) -> Iterator[list[MessagePipe]]:
    """Fork processes beside workers that were started ahead, which call what they are sent; fewer where it fails."""
    started, helpers = _started_ahead.get(None), list[MessagePipe]()
    with ExitStack() as stack:
        with suppress(EOFError, EngineError, OSError):  # whoever asks does without
            while started is not None and len(helpers) < count:
                helper = stack.enter_context(started[2].fork_server.fork())
                helper.recv()  # which process it is
                helpers.append(helper)
        yield helpers


def called(
    helpers: Sequence[MessagePipe], calls: Iterable[tuple[Key, Callable[[], Made]]]
) -> Iterator[tuple[Key, Made]]:
    """Yield what calls return, each with its key, as soon as a helper is done with one; it then gets the next.

    calls: functions of importable modules, with arguments that can be pickled.

    Raises:
        EngineError: a helper has died.
    """
    waiting, free, asked = iter(calls), list(helpers), dict[MessagePipe, Key]()
    while True:
        try:
            for key, call in islice(waiting, len(free)):
                asked[free[-1]] = key
                free.pop().send(call)
            if not asked:
                return
            for helper in select.select(list(asked), (), ())[0]:
                made: Made = helper.recv()
                free.append(helper)
                yield asked.pop(helper), made
        except (EOFError, OSError) as error:
            raise EngineError("a process that helps has died, perhaps for lack of memory") from error


def _ahead(engine: Engine, client: str) -> WorkerPool | None:
    started = _started_ahead.get(None)
    return started[2] if started is not None and started[:2] == (engine, client) else None


def run_embedded(
    engine: Engine, client: str, variables: Mapping[str, str], serve: Callable[[Grid, threading.Event], None]
) -> None:
    """Run the server's side in this thread, and the nodes in worker processes.

    client: the ClientApp, as ``module:name``; variables: of the workers' environment; serve: the server's side, is
    given the grid and an event that is never set, as this engine stops with it alone.

    Raises:
        FlPeelError: whatever stopped the server's side.
    """
    with workers_ahead(engine, client, variables):
        from flwr.app import Context, RecordDict
        from flwr.serverapp import ServerApp

        from simulations.engine.passing_grid import RUN_ID, EmbeddedGrid, StoppableGrid

        workers = _ahead(engine, client)
        assert workers is not None, "they were started above"
        grid, stop = EmbeddedGrid(engine.nodes, workers), threading.Event()
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            serve(grid, stop)

        server_app(
            StoppableGrid(grid, stop, grid.wait, grid.give_up, engine.patience_s),
            Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        )
