"""Run a scenario in this process, on Flower's simulation engine.

This is the one place that starts ``flwr.simulation``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import platformdirs
import psutil

from fl_peel.config import Scenario, load_scenario
from fl_peel.errors import EngineError, FlPeelError
from fl_peel.events import OnEvent, silent
from simulations.report import RunResult, write_report

PACKAGES = ("fl_peel", "clients", "strategies", "simulations")


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
    run_dir = Path(tempfile.mkdtemp(prefix="fl-peel-"))
    try:
        with PeakMemory() as memory:
            result = _simulate(scenario, str(data_dir or ""), run_dir, str(cache_dir or ""), on_event)
        result = finished(result, scenario, memory.peak_bytes, command)
        if out is not None:
            write_report(cast(RunResult, result), Path(out))
            copy_artifacts(run_dir, Path(out))
        return result
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def _simulate(scenario: Scenario, data_dir: str, run_dir: Path, cache_dir: str, on_event: OnEvent) -> dict[str, Any]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    from clients.client_app import app as client_app
    from strategies.server_app import Place, serve

    data_dir = os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")
    outcome: list[dict[str, Any]] = []
    failed: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            outcome.append(serve(grid, scenario, Place(data_dir, str(run_dir), cache_dir), on_event))
        except BaseException as error:  # handed to the caller below; Flower would print a traceback
            failed.append(error)

    engine = scenario.engine
    init_args: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if engine.ray_address:
        init_args["address"] = engine.ray_address
    else:
        init_args["num_cpus"] = max(os.cpu_count() or 1, engine.cpus_per_node)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=engine.nodes,
            backend_config={
                "init_args": init_args,
                # an actor that dies must come back, or later rounds lose their node too
                "client_resources": {"num_cpus": engine.cpus_per_node, "num_gpus": 0.0, "max_restarts": -1},
            },
        )
    except Exception as error:
        if not failed:
            raise EngineError(f"Flower's simulation engine failed: {' '.join(str(error).split())}") from error
    if failed:
        if isinstance(failed[0], FlPeelError):
            raise failed[0]
        raise failed[0]
    if not outcome:
        raise EngineError("Flower's simulation engine ended without a result; see its log above")
    return outcome[0]


def finished(result: dict[str, Any], scenario: Scenario, peak_bytes: int, command: str | None) -> dict[str, Any]:
    """Add what identifies the run: scenario, seed, versions, machine."""
    scenario_dict = scenario.model_dump(mode="json")
    versions = {
        name: importlib.metadata.version(name) for name in ("flwr", "torch", "numpy", "scikit-learn", "ray", "numba")
    }
    result = {
        "scenario": scenario_dict,
        "seed": scenario.seed,
        "versions": {"fl-peel": _own_version(), "python": platform.python_version(), **versions},
        **result,
        "peak_rss_bytes": peak_bytes,
    }
    result["environment"] |= {"cpus": os.cpu_count() or 1, "machine": platform.machine(), "system": platform.system()}
    if command:
        result["command"] = command
    return result


def _own_version() -> str:
    from fl_peel import __version__

    return __version__


def copy_artifacts(run_dir: Path, out: Path) -> None:
    """Bring the stored embeddings that simulated devices wrote into the output folder."""
    source = run_dir / "artifacts"
    if source.is_dir():
        shutil.copytree(source, out / "artifacts", dirs_exist_ok=True)


class PeakMemory:
    """Peak resident memory of this process and its children, sampled every half second."""

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
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(0.5):
                return


__all__ = ["copy_artifacts", "default_cache_dir", "finished", "run"]
