"""Flower's simulation engine.

This is the one place that starts ``flwr.simulation``."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from clients.client_app import app as client_app
from clients.round.secret_store import KEY_BYTES, KEY_VARIABLE
from fl_peel.errors import EngineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.freed import give_back
from fl_peel.kernels.ahead import compiling_ahead
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.settings import is_gpu
from simulations.engine.allocation import WORKERS, lasting_objects, reuse_memory
from simulations.engine.cluster import require_cluster
from simulations.engine.ray_token import environment, own_token
from simulations.engine.raylet import RayletWatch
from simulations.engine.stoppable_grid import StoppableGrid
from strategies.run.place import Place

Result = TypeVar("Result")
Server = Callable[[Grid, Scenario, Place, OnEvent], Result]
"""The server's side of whatever is run on the nodes."""


def simulated(
    scenario: Scenario,
    place: Place,
    on_event: OnEvent = silent,
    *,
    server: Server[Result],
    client: ClientApp = client_app,
) -> Result:
    """Run the server's side and the nodes in this process and its Ray workers; returns what ``server`` does.

    Raises:
        FlPeelError: whatever stopped the server's side.
        EngineError: the engine itself failed.
    """
    backend_config = _backend_config(scenario)
    reuse_memory()
    with (
        compiling_ahead(),
        lasting_objects(),
        _quiet_engine(),
        _visible_gpus(scenario.engine.device),
        _own_signals(),
        _own_environment(scenario),
    ):
        outcome: list[Result] = []
        failed: list[BaseException] = []
        stop, ended = threading.Event(), threading.Event()
        lost = threading.Event()
        server_app = ServerApp()

        def without_ray() -> None:
            if not ended.is_set():
                lost.set()
                stop.set()

        def told(event: Event) -> None:
            if stop.is_set():
                raise EngineError("the simulation engine has stopped")
            if event.stage != "pretraining" or event.done == event.total:
                give_back()
            on_event(event)

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                outcome.append(server(StoppableGrid(grid, stop), scenario, place, told))
            except BaseException as error:  # handed to the caller below; Flower would print a traceback
                failed.append(error)
            finally:
                ended.set()

        try:
            with RayletWatch(without_ray):
                run_simulation(
                    server_app,
                    client,
                    num_supernodes=scenario.engine.nodes,
                    backend_config=backend_config,
                )
        except Exception as error:
            if not failed:
                root = " ".join(str(_root_of(error)).split())
                raise EngineError(f"Flower's simulation engine failed: {root}") from error
        finally:
            stop.set()  # also on Ctrl-C: otherwise the server's thread would wait for replies that never come
            ended.wait(timeout=10)
    if failed:
        if lost.is_set():
            raise EngineError(
                "Ray has ended: its raylet was killed, perhaps for lack of memory; run again, with fewer nodes if so"
            ) from failed[0]
        raise failed[0]
    if not outcome:
        raise EngineError("Flower's simulation engine ended without a result; see its log above")
    return outcome[0]


def _backend_config(scenario: Scenario) -> dict[str, Any]:
    engine = scenario.engine
    init_args: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if engine.ray_address:
        require_cluster(engine.ray_address)
        init_args["address"] = engine.ray_address
    else:
        init_args["address"] = "local"  # never a cluster of somebody else's that happens to run on this machine
        init_args["num_cpus"] = max(os.cpu_count() or 1, engine.cpus_per_node)
    num_gpus = gpu_share(engine.nodes) if is_gpu(engine.device) else 0.0
    # an actor that dies must come back, or later rounds lose their node too
    resources = {"num_cpus": engine.cpus_per_node, "num_gpus": num_gpus, "max_restarts": -1}
    return {"init_args": init_args, "client_resources": resources}


def gpu_share(nodes: int) -> float:
    """What of a GPU each of the nodes that share it gets, in whole ten-thousandths, as Ray has it."""
    return max(10_000 // nodes, 1) / 10_000


@contextmanager
def _own_signals() -> Iterator[None]:
    """Whoever already does something at SIGTERM goes on doing it: while it starts, Ray would end its own processes
    within the signal, and later this one with a dump of its stack.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler in (signal.SIG_DFL, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    import ray

    start = ray.init

    def init(*args: Any, **kwargs: Any) -> Any:
        try:
            return start(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, handler)  # beneath Python, Ray has replaced it

    with patch("ray.init", init), patch("ray._private.utils.set_sigterm_handler"):
        yield


def _root_of(error: BaseException) -> BaseException:
    """What an error was first raised for: Flower wraps it three times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet_engine() -> Iterator[None]:
    """Flower without chatter and tracebacks (what failed is raised), and the search path afterwards as it was."""
    python_path = os.environ.get("PYTHONPATH")
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if python_path is None:
            os.environ.pop("PYTHONPATH", None)  # the engine writes the whole search path into it
        else:
            os.environ["PYTHONPATH"] = python_path


@contextmanager
def _own_environment(scenario: Scenario) -> Iterator[None]:
    """Of the Ray that is started within: its token, the key of what devices keep secret between messages, how memory is
    used. Its workers inherit them; those of a cluster that is there do not.
    """
    address = scenario.engine.ray_address
    if address:
        with own_token(address):
            yield
    else:
        values = WORKERS | {KEY_VARIABLE: secrets.token_hex(KEY_BYTES)}
        with environment(**values), own_token(address):
            yield


@contextmanager
def _visible_gpus(device: str) -> Iterator[None]:
    """With ``cuda:N``, workers see all GPUs, so that N means the same to them; else Ray shows each only its own."""
    if is_gpu(device) and ":" in device:
        with environment(RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES="1"):
            yield
    else:
        yield


__all__ = ["simulated"]
