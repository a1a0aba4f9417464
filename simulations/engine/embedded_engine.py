"""The engine of one machine: the same ServerApp, ClientApp and messages as on Flower's, on a Grid of our own.

It starts in the time that imports take, and a run does not depend on Ray, whose start fails on a busy machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from fl_peel.errors import EngineError
from fl_peel.scenario.scenario import Engine
from simulations.engine.worker_pool import WorkerPool

if TYPE_CHECKING:
    from flwr.serverapp import Grid

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
        started[2].prepare_drawing()


@contextmanager
def helpers_ahead(count: int) -> Iterator[list[Connection]]:
    """Fork processes beside workers that were started ahead, which call what they are sent; fewer where it fails."""
    started, helpers = _started_ahead.get(None), list[Connection]()
    with ExitStack() as stack:
        with suppress(EOFError, EngineError, OSError):  # whoever asks does without
            while started is not None and len(helpers) < count:
                helpers.append(stack.enter_context(started[2].helper()))
        yield helpers


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

        from simulations.engine.embedded_grid import EmbeddedGrid
        from simulations.engine.flower_identity import RUN_ID
        from simulations.engine.passing_grid import StoppableGrid

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
