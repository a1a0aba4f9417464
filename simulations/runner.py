"""Run a scenario in this process, on Flower's simulation engine.

This is the one place that starts ``flwr.simulation``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import platformdirs
import psutil
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from clients.client_app import app as client_app
from fl_peel import __version__
from fl_peel.config import Scenario, load_scenario
from fl_peel.devices import device_splits
from fl_peel.errors import EngineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.processor import is_gpu
from simulations.fleet_summary import fleet_summary
from simulations.inputs import checked
from simulations.report import ReportError, RunResult, write_report
from simulations.report_files import write_files
from simulations.stoppable_grid import StoppableGrid
from strategies.server_app import Place, serve

CONNECT_S = 10.0
"""How long a Ray cluster may take to answer."""


def default_cache_dir() -> Path:
    """Where pretrained tables are kept between runs."""
    return Path(platformdirs.user_cache_dir("fl-peel")) / "pretrained"


def run(
    scenario: str | Path | Scenario = "ml-100k",
    *,
    overrides: Iterable[str] = (),
    seed: int | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    cache_dir: str | Path | None = None,
    on_event: OnEvent = silent,
    command: str | None = None,
) -> dict[str, Any]:
    """Run a scenario and return the content of its report.json; with ``out``, also write the report files there.

    scenario: a shipped name, a YAML file or a Scenario; overrides: ``path=value``; cache_dir: where pretrained tables
    are kept by content (None keeps none).

    Raises:
        FlPeelError: a mistake in the scenario, data or profiles, or a failed engine; one line each.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides, seed=seed)
    scenario = checked(scenario, None if out is None else Path(out), working_dir=Path.cwd())
    with run_folder() as run_dir:
        place = Place(
            os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", ""),
            str(run_dir),
            str(cache_dir or ""),
        )
        with PeakMemory() as memory:
            start = time.perf_counter()
            device_splits(scenario, place.data_dir, place.run_dir)  # a bad file shows before the engine starts
            reading_s = time.perf_counter() - start
            result = simulated(scenario, place, on_event)
            result["stages"]["data"] += reading_s
        result = finished(result, scenario, memory.peak_bytes, command)
        if out is not None:
            save(result, scenario, run_dir, Path(out))
        return result


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder for the simulated devices' disks."""
    folder = Path(tempfile.mkdtemp(prefix="fl-peel-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Server = Callable[[Grid, Scenario, Place, OnEvent], dict[str, Any]]
"""The server's side of whatever is run on the nodes."""


def simulated(
    scenario: Scenario,
    place: Place,
    on_event: OnEvent = silent,
    *,
    server: Server = serve,
    client: ClientApp = client_app,
) -> dict[str, Any]:
    """Run the server's side and the nodes in this process and its Ray workers; returns what ``server`` does.

    Raises:
        FlPeelError: whatever stopped the server's side.
        EngineError: the engine itself failed.
    """
    backend_config = _backend_config(scenario)
    with _quiet_engine(), _visible_gpus(scenario.engine.device):
        outcome: list[dict[str, Any]] = []
        failed: list[BaseException] = []
        stop, ended = threading.Event(), threading.Event()
        server_app = ServerApp()

        def told(event: Event) -> None:
            if stop.is_set():
                raise EngineError("the simulation engine has stopped")
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
            run_simulation(
                server_app,
                client,
                num_supernodes=scenario.engine.nodes,
                backend_config=backend_config,
            )
        except Exception as error:
            if not failed:
                raise EngineError(f"Flower's simulation engine failed: {' '.join(str(error).split())}") from error
        finally:
            stop.set()  # also on Ctrl-C: otherwise the server's thread would wait for replies that never come
            ended.wait(timeout=10)
    if failed:
        raise failed[0]
    if not outcome:
        raise EngineError("Flower's simulation engine ended without a result; see its log above")
    return outcome[0]


def _backend_config(scenario: Scenario) -> dict[str, Any]:
    engine = scenario.engine
    init_args: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if engine.ray_address:
        _require_cluster(engine.ray_address)
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


def _require_cluster(address: str) -> None:
    """Look whether somebody listens at ``host:port``; Ray itself would go on trying for many minutes.

    Raises:
        EngineError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like: Ray knows what they mean
    try:
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise EngineError(
            f"engine.ray_address: no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head` or correct the address"
        ) from error


@contextmanager
def _quiet_engine() -> Iterator[None]:
    """Flower without chatter, and the process's search path as it was afterwards."""
    python_path = os.environ.get("PYTHONPATH")
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if python_path is None:
            os.environ.pop("PYTHONPATH", None)  # the engine writes the whole search path into it
        else:
            os.environ["PYTHONPATH"] = python_path


@contextmanager
def _visible_gpus(device: str) -> Iterator[None]:
    """With ``cuda:N``, workers see all GPUs, so that N means the same to them; else Ray shows each only its own."""
    key = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
    before = os.environ.get(key)
    if is_gpu(device) and ":" in device:
        os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before


def save(result: dict[str, Any], scenario: Scenario, run_dir: Path, out: Path) -> None:
    """Write a run's files: report.json, metrics.csv, report.html, scenario.yaml and artifacts/.

    Raises:
        ReportError: the folder cannot be written, or the result is not a report.
    """
    write_report(cast(RunResult, result), out)
    write_files(out, {"scenario.yaml": scenario.to_yaml().encode()})
    try:
        shutil.rmtree(out / "artifacts", ignore_errors=True)  # those of an earlier run
        if (run_dir / "artifacts").is_dir():
            shutil.copytree(run_dir / "artifacts", out / "artifacts")
    except OSError as error:
        raise ReportError(f"{out / 'artifacts'}: cannot be written ({error}); give another --out") from error


def finished(result: dict[str, Any], scenario: Scenario, peak_bytes: int, command: str | None) -> dict[str, Any]:
    """Add what identifies the run: scenario, seed, versions, machine."""
    scenario_dict = scenario.model_dump(mode="json")
    result = {
        "scenario": scenario_dict,
        "seed": scenario.seed,
        "versions": versions(),
        **result,
        "peak_rss_bytes": peak_bytes,
    }
    result["environment"] |= {"cpus": os.cpu_count() or 1, "machine": platform.machine(), "system": platform.system()}
    result["fleet"] = fleet_summary(
        scenario, num_devices=result["environment"]["devices"], full_table_bytes=result["full_table"]["bytes"]
    )
    if command:
        result["command"] = command
    return result


def versions() -> dict[str, str]:
    """Of this package, of Python, and of what figures depend on."""
    others = ("flwr", "torch", "numpy", "scikit-learn", "ray", "numba")
    found = {name: importlib.metadata.version(name) for name in others}
    return {"fl-peel": __version__, "python": platform.python_version(), **found}


class PeakMemory:
    """Peak resident memory of this process and its children, sampled every half second.

    Where the system tells, memory that several processes share (Ray's store) counts once.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
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
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                    total += getattr(memory, "pss", memory.rss)
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(0.5):
                return


__all__ = ["PeakMemory", "default_cache_dir", "finished", "run", "run_folder", "save", "simulated", "versions"]
