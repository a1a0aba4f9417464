"""Runs the server's side of anything on the nodes of an engine: the embedded one, or Flower's on Ray."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from fl_peel.errors import EngineError, LostMachineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.scenario.scenario import Engine, Scenario
from simulations.engine.embedded_engine import run_embedded, workers_ahead
from simulations.engine.memory import WORKERS, lasting_objects, reuse_memory

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from strategies.run.run_paths import RunPaths

logger = logging.getLogger("fl_peel")
Result = TypeVar("Result")
Server = Callable[["Grid", Scenario, "RunPaths", OnEvent], Result]
"""The server's side of whatever is run on the nodes."""
CLIENT = "clients.client_app:app"
"""The ClientApp of nodes."""


def backend_of(engine: Engine) -> Literal["embedded", "ray"]:
    """Return the host of the nodes: the scenario's, or Ray for a cluster or several GPUs, else this machine."""
    if engine.backend != "auto":
        return engine.backend
    needs_ray = engine.ray_address or (engine.device == "cuda" and _several_gpus())
    return "ray" if needs_ray or not hasattr(os, "fork") else "embedded"


def _several_gpus() -> bool:
    import torch

    return torch.cuda.device_count() > 1


@contextmanager
def starting(scenario: Scenario) -> Iterator[None]:
    """Start what the run within the block needs and takes a while: it is ready when :func:`simulated` asks for it."""
    if backend_of(scenario.engine) == "ray":
        yield
        return
    with workers_ahead(scenario.engine, CLIENT, _variables()):
        yield


def simulated(
    scenario: Scenario,
    paths: RunPaths,
    on_event: OnEvent = silent,
    *,
    server: Server[Result],
    client: str = CLIENT,
) -> Result:
    """Run the server's side and the nodes, on the engine that the scenario asks for; returns what ``server`` does.

    client: the ClientApp of nodes, as ``module:name``.

    Raises:
        FlPeelError: whatever stopped the server's side.
        EngineError: the engine itself failed.
    """
    outcome: list[Result] = []

    def serve(grid: Grid, stop: threading.Event) -> None:
        from fl_peel.mmap_arrays import release_memory

        def on_server_event(event: Event) -> None:
            if stop.is_set():
                raise EngineError("the simulation engine has stopped")
            if event.stage not in ("pretraining", "refinement") or event.done == event.total:
                release_memory()
            on_event(event)

        outcome.append(server(grid, scenario, paths, on_server_event))

    reuse_memory()
    if backend_of(scenario.engine) == "ray":
        from simulations.engine.ray_engine import run_on_ray

        run: Callable[..., None] = partial(run_on_ray, run_dir=paths.run_dir)
    else:
        run = run_embedded
    from fl_peel.kernels.compile_ahead import compiling_ahead

    with compiling_ahead(), lasting_objects(), _quiet_flower():
        run(scenario.engine, client, _variables(), serve)
    return outcome[0]


def on_remaining_machines(work: Callable[[bool], Result]) -> Result:
    """Return the result of work that goes on from what it has kept; it is started again whenever a machine of a cluster
    has left, so that devices are hosted on others. work: is given whether it starts for the first time.
    """
    first = True
    while True:
        try:
            return work(first)
        except LostMachineError as error:
            logger.warning("%s", error)
            first = False


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Flower without chatter and tracebacks: what failed is raised."""
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        flower.setLevel(level)


def _variables() -> dict[str, str]:
    """Return environment variables of workers: how they use memory, and the key of devices' secrets."""
    from clients.node.masked import FILE_KEY_BYTES, KEY_VARIABLE

    return WORKERS | {KEY_VARIABLE: secrets.token_hex(FILE_KEY_BYTES)}
