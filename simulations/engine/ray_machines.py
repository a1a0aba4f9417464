"""Whether a Ray cluster answers, how long Ray may take to start on a busy machine, and what the machines of a cluster
share, while they are there.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import ray
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fl_peel.errors import EngineError
from simulations.engine.passing_grid import TELL_S

logger = logging.getLogger("fl_peel")

Started = TypeVar("Started")
LOOK_S = 1.0
"""Seconds between two looks for machines."""
CONNECT_S = 10.0
"""Seconds that a Ray cluster may take to answer."""
TIMED_OUT = "timed out during startup"
"""What Ray says when it has counted half a minute, however busy the machine is."""


@contextmanager
def in_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Have a thread work meanwhile. work: is given the event that ends it."""
    over = threading.Event()
    worker = threading.Thread(target=work, args=(over,), daemon=True)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


def waited_for(what: str) -> AbstractContextManager[None]:
    """Say every ten seconds that something is still waited for."""
    start = time.monotonic()

    def tell(over: threading.Event) -> None:
        while not over.wait(TELL_S):
            logger.warning("%s: waited for since %.0f s", what, time.monotonic() - start)

    return in_thread(tell)


def start_patiently(start: Callable[[], Started], patience_s: float, is_alive: Callable[[], bool]) -> Started:
    """Start Ray, again where it gave up since the machine is busy, for as long as ``patience_s``. is_alive: whether its
    raylet is, which takes minutes to say so on such a machine: Ray itself would begin anew after half of one.

    Raises:
        EngineError: it did not start in that time.
    """
    deadline = time.monotonic() + patience_s
    look: Callable[..., Any] = services.get_node

    def get_node(*asked: Any) -> Any:
        while True:
            try:
                return look(*asked)
            except RuntimeError:
                if not is_alive() or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S / 10)

    with waited_for("the start of Ray"), patch("ray._private.services.get_node", get_node):
        while True:
            try:
                return start()
            except Exception as error:
                if TIMED_OUT not in str(error):
                    raise
                ray.shutdown()
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"Ray did not start within engine.patience_s, {patience_s:g} s: the machine is too busy; "
                        "raise it, or run with fewer nodes"
                    ) from error


def require_cluster(address: str) -> None:
    """Look whether a cluster answers at ``host:port`` or ``ray://host:port``; Ray itself would try for many minutes.

    Raises:
        EngineError: that is no address, nobody answers there, or somebody who is no Ray.
    """
    if address == "auto":
        return  # Ray looks for the cluster of this machine, and finds none at once
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535 or "/" in host:
        raise EngineError(
            f"engine.ray_address: {address!r} is not an address of a Ray cluster; write HOST:PORT, ray://HOST:PORT or "
            "auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise EngineError(
            f"engine.ray_address: no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head` or correct the address"
        ) from error
    if os.environ.get("RAY_USE_TLS", "0") in ("0", "", "false"):
        _require_grpc(address, f"{host}:{port}")


def _require_grpc(address: str, target: str) -> None:
    """Whoever listens there must greet as gRPC does: a web server, or one that stays silent, is no Ray."""
    import grpc

    with grpc.insecure_channel(target, (("grpc.enable_http_proxy", 0),)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_S)
        except grpc.FutureTimeoutError as error:
            raise EngineError(
                f"engine.ray_address: the server at {address} is not a Ray cluster; correct the address"
            ) from error


def alive_machines() -> dict[str, str]:
    """Return the addresses of the cluster's machines that are there, by their id."""
    machines = ray.nodes()  # type: ignore[no-untyped-call]
    return {one["NodeID"]: one["NodeManagerAddress"] for one in machines if one["Alive"]}


def watched_machines(
    started: threading.Event, ended: threading.Event, lost: Callable[[str], None]
) -> AbstractContextManager[None]:
    """Look every second whether a machine has left. lost: is given its address; Ray itself takes half a minute."""

    def watch(over: threading.Event) -> None:
        before: dict[str, str] = {}
        while not over.wait(LOOK_S) and not ended.is_set():
            if started.is_set():
                alive = alive_machines()
                before = before or alive
                if before.keys() - alive.keys():
                    lost(min(before[machine] for machine in before.keys() - alive.keys()))
                    return

    return in_thread(watch)


def require_shared(folder: str, patience_s: float) -> None:
    """Have every machine read a nonce in the run's folder, in which nodes keep what devices know between messages. On a
    busy one the worker that reads it takes minutes to start: ``patience_s`` at most.

    Raises:
        EngineError: a machine does not see it.
    """
    file, nonce = Path(folder) / f"shared-{secrets.token_hex(8)}", secrets.token_hex()

    def read(path: str) -> str:
        try:
            with open(path, encoding="ascii") as opened:  # the machine may have nothing of ours
                return opened.read()
        except OSError:
            return ""

    file.write_text(nonce, encoding="ascii")
    try:
        task = ray.remote(num_cpus=0)(read)
        machines = alive_machines()
        answers = {
            machine: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)).remote(
                str(file)
            )
            for machine in machines
        }
        for machine, answer in answers.items():
            address = machines[machine]
            try:
                seen = ray.get(answer, timeout=patience_s) == nonce
            except ray.exceptions.RayError as error:
                line = " ".join(str(error).split())[:200]
                raise EngineError(f"machine {address} of the Ray cluster does not work: {line}") from None
            if not seen:
                raise EngineError(
                    f"machine {address} of the Ray cluster does not see the run's folder {folder}; set TMPDIR to a "
                    "folder that all machines share under the same path"
                )
    finally:
        file.unlink(missing_ok=True)
