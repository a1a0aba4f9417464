"""Flower's simulation engine, whose nodes are actors of Ray: on a cluster, on several GPUs, or where it is asked for.

This is the one place that starts ``flwr.simulation``.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psutil
import ray
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fl_peel.errors import EngineError, LostMachineError
from fl_peel.scenario.scenario import Engine
from fl_peel.scenario.settings import is_gpu
from simulations.engine.passing_grid import TELL_S, StoppableGrid


def run_on_ray(
    engine: Engine,
    client: str,
    variables: Mapping[str, str],
    serve: Callable[[Grid, threading.Event], None],
    *,
    run_dir: str,
) -> None:
    """Run the server's side in a thread of this process, and the nodes in Ray's workers.

    client: the ClientApp, as ``module:name``; variables: of the environment of workers that start here; serve:
    the server's side, is given the grid and an event that is set when the engine has stopped; run_dir: the run's
    folder, which all machines must share.

    Raises:
        FlPeelError: whatever stopped the server's side.
        EngineError: the engine itself failed.
        LostMachineError: a machine of the cluster has left.
    """
    backend_config = _backend_config(engine)
    module, _, name = client.partition(":")
    with (
        environment("PYTHONPATH", **_ray_variables(engine, variables)),  # the engine writes the whole search path there
        own_token(engine.ray_address),
        _own_signals(),
        _sharing_machines(engine, run_dir) as started,
    ):
        failed: list[BaseException] = []
        stop, ended = threading.Event(), threading.Event()
        served, lost = threading.Event(), threading.Event()
        gone: list[str] = []
        server_app = ServerApp()

        def without_ray() -> None:
            if started.is_set() and not ended.is_set():  # a start that failed says why
                lost.set()
                stop.set()

        def without_machine(address: str) -> None:
            gone.append(address)
            stop.set()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            try:
                serve(StoppableGrid(grid, stop, start_s=engine.patience_s), stop)
                served.set()
            except BaseException as error:  # handed to the caller below; Flower would print a traceback
                failed.append(error)
            finally:
                ended.set()

        try:
            machines = watched_machines(started, ended, without_machine) if engine.ray_address else nullcontext()
            with watched_raylet(without_ray), machines:
                run_simulation(
                    server_app,
                    getattr(import_module(module), name),
                    num_supernodes=engine.nodes,
                    backend_config=backend_config,
                )
        except Exception as error:
            if not failed and not gone:
                root = _root_of(error)
                if isinstance(root, EngineError):
                    raise root from None
                line = " ".join(str(root).split())
                raise EngineError(f"Flower's simulation engine failed: {line}") from error
        finally:
            stop.set()  # also on Ctrl-C: otherwise the server's thread would wait for replies that never come
            ended.wait(timeout=10)
    if gone and not served.is_set():
        raise LostMachineError(
            f"machine {gone[0]} has left the Ray cluster; run again, which with --out goes on by itself"
        )
    if failed:
        if lost.is_set():
            raise EngineError(
                "Ray has ended: its raylet was killed, perhaps for lack of memory; run again, with fewer nodes if so"
            ) from failed[0]
        raise failed[0]
    if not served.is_set():
        raise EngineError("Flower's simulation engine ended without a result; see its log above")


def _backend_config(engine: Engine) -> dict[str, Any]:
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
    """Return the share of a GPU of each of the nodes that use it, in whole ten-thousandths, as Ray has it."""
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
    start = ray.init

    def init(*args: Any, **kwargs: Any) -> Any:
        try:
            return start(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, handler)  # beneath Python, Ray has replaced it

    with patch("ray.init", init), patch("ray._private.utils.set_sigterm_handler"):
        yield


@contextmanager
def _sharing_machines(engine: Engine, run_dir: str) -> Iterator[threading.Event]:
    """Wait for the Ray that is started or joined within, and look whether its machines share the run's folder. Yields
    an event that is set when Ray has started.

    Workers get an empty working directory: else Ray has them search the user's for packages before all others.
    """
    start, started = ray.init, threading.Event()
    working_dir = Path(run_dir) / "working-dir"
    working_dir.mkdir(exist_ok=True)

    def init(*, runtime_env: Mapping[str, Any], **kwargs: Any) -> Any:
        runtime_env = {**runtime_env, "working_dir": str(working_dir)}
        context = start_patiently(
            lambda: start(runtime_env=runtime_env, **kwargs), engine.patience_s, lambda: _child(RAYLET) is not None
        )
        started.set()
        try:
            require_shared(run_dir, engine.patience_s)
        except EngineError:
            started.clear()  # its end is ours, and says nothing of memory
            ray.shutdown()
            raise
        return context

    with patch("ray.init", init):
        yield started


def _root_of(error: BaseException) -> BaseException:
    """Return the error that was raised first: Flower wraps it three times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _ray_variables(engine: Engine, variables: Mapping[str, str]) -> dict[str, str]:
    """Give the Ray that is started here its workers' environment and the scenario's patience with both its agents and
    its workers: of itself it ends when an agent takes 30 s to start, and ends a worker that takes a minute. Its workers
    are as urgent as other processes: at its niceness of 15 they have a thirtieth of what others get. Those without the
    run's environment, whom nobody would use, are not started beforehand. A cluster has its own. Workers see all GPUs
    with ``cuda:N``, so that N means the same to them; else Ray shows each only its own.
    """
    named = is_gpu(engine.device) and ":" in engine.device
    gpus = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"} if named else {}
    if engine.ray_address:
        return gpus
    return {
        **gpus,
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_agent_register_timeout_ms": str(int(engine.patience_s * 1000)),
        "RAY_worker_register_timeout_seconds": str(int(engine.patience_s)),
        **variables,
    }


# ---- A token for the Ray that a run starts: who does not know it can neither join nor run code there
# Ray listens on every interface of the machine, and without a token takes whoever asks.


TOKEN_BYTES = 32


@contextmanager
def environment(*kept: str, **values: str) -> Iterator[None]:
    """Variables of the environment set, and afterwards as they were. kept: others that are, too, whoever sets them."""
    before = {key: os.environ.get(key) for key in (*kept, *values)}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def own_token(address: str | None) -> Iterator[None]:
    """A fresh token for the Ray that is started within; it has ended afterwards, whatever happened.

    address: of a cluster that is there already; it keeps its own setting, as does a Ray that this process has joined.
    """
    if address or ray.is_initialized():
        yield
        return
    try:
        with environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(TOKEN_BYTES)):
            _read_again()
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        _read_again()


def _read_again() -> None:
    """Ray reads the environment when it is imported, and keeps the first token: for another, it must look again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


# ---- Whether the Ray that a run started is still there: without its raylet every message of every round fails


RAYLET = "raylet"
"""Name of the process that keeps a machine's workers."""
POLL_S = 1.0
"""Seconds between two looks for it."""


def watched_raylet(
    lost: Callable[[], None], poll_s: float = POLL_S, name: str = RAYLET
) -> AbstractContextManager[None]:
    """Meanwhile, call ``lost`` once if a raylet that this process started has ended. None need be there."""

    def watch(over: threading.Event) -> None:
        raylet = None
        while not over.wait(poll_s):
            raylet = raylet or _child(name)
            if raylet is not None and not _is_alive(raylet):
                lost()
                return

    return in_thread(watch)


def _child(name: str) -> psutil.Process | None:
    for process in psutil.Process().children():
        try:
            if process.name() == name and _is_alive(process):
                return process
        except psutil.Error:
            continue
    return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


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
