"""Runs the server's side of anything on the nodes of an engine: the embedded one, or Flower's on Ray."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import psutil

from fl_peel.errors import EngineError, LostMachineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.scenario.scenario import Engine, Scenario
from simulations.engine.embedded_engine import run_embedded, workers_ahead

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


# ---- Peak memory of a run


EVERY_S = 0.5
"""Seconds between two looks at resident memory, which cost nothing."""
ASKED_S = 30.0
"""Seconds after which the memory that processes share is asked for anew, if a new peak cannot be ruled out."""
SHARE = 0.02
"""Largest share of a processor's time that asking for shared memory takes; in between, a new peak is judged by what was
shared before.
"""
GROWTH = 1.01
"""Factor over the last peak from which a new one is reported: within a percent."""


class PeakMemory:
    """Peak resident memory of this process and its children, sampled every half second: within a percent, or too high
    by what came to be shared since that was last asked.

    Where the system tells, memory that several processes share (Ray's store, libraries) counts once. To tell it, the
    system walks through all pages, a third of a processor's time for a run of ten gigabytes. So it is asked only when
    resident memory, less what was shared when it was last asked, says that there is a new peak.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._shared, self._asked, self._known = 0, -ASKED_S, frozenset[int]()
        self._again = -ASKED_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.look([me, *me.children(recursive=True)], time.monotonic())
            if self._stop.wait(EVERY_S):
                return

    def look(self, processes: Sequence[psutil.Process], now_s: float) -> None:
        """Take in what these processes hold at this time."""
        resident = sum(_resident_bytes(process) for process in processes)
        known = frozenset(process.pid for process in processes)
        grown = resident - self._shared > GROWTH * self.peak_bytes
        due = known != self._known or now_s - self._asked >= ASKED_S
        if grown and now_s < self._again and known == self._known:
            self.peak_bytes = resident - self._shared
        elif grown or (due and resident > self.peak_bytes):
            begun_s = time.thread_time()
            total = sum(_own_bytes(process) for process in processes)
            self.peak_bytes = max(self.peak_bytes, total)
            self._shared, self._asked, self._known = resident - total, now_s, known
            self._again = now_s + (time.thread_time() - begun_s) / SHARE


def _resident_bytes(process: psutil.Process) -> int:
    """Return a process's resident bytes with all that is shared; 0 for a process that has ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _own_bytes(process: psutil.Process) -> int:
    """Return a process's bytes with its part of shared ones, where the system has it; 0 for an ended one."""
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", memory.rss))


# ---- Memory that arrays have freed is used again by the next ones
# A run makes and frees arrays of about ten megabytes by the thousand. The C library hands each back to the system,
# which clears every page anew: that takes longer than most of what is computed in them. And what one thread has freed
# another is not given, unless they share one arena: a server of many groups, whose threads take turns, would need
# half as much again. Only glibc has these settings.


MMAP_THRESHOLD_BYTES = 64 << 20
"""Size in bytes above which freed memory is handed back."""
TRIM_THRESHOLD_BYTES = (1 << 31) - 1
"""Free memory at the end of the heap that is kept."""
ARENAS = 1
"""Number of arenas, from which all threads allocate."""
WORKERS = {
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
    "MALLOC_ARENA_MAX": str(ARENAS),
}
"""The same for processes that are started, in their environment."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def reuse_memory() -> None:
    """Reuse memory in this process from now on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        mallopt(_M_ARENA_MAX, ARENAS)


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Keep what there is by now, modules above all, from searches for garbage, which a round causes many of."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
