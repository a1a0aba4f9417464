"""Time that a user waits before nodes answer: Python's imports, Ray, and what nodes import."""

from __future__ import annotations

import subprocess
import sys
import time

from fl_peel.errors import EngineError
from fl_peel.package_check import own_environment

TIMES = 3
"""Number of repeats of each measurement, of which the best counts: what else the machine does can only slow it."""
OURS = "import simulations.runner"
NODES = "import clients.client_app"
RAY = "import ray; ray.init(include_dashboard=False, log_to_driver=False, num_cpus=2); ray.shutdown()"


def start_seconds(scenario: str, data_dir: str) -> dict[str, float]:
    """Best seconds of: ``command``, from the command typed to the nodes' first answer; and of what is in it, each as
    a process of its own, Python's start included: ``imports`` of the server's side, ``node_imports``, ``ray`` (an empty
    one started and stopped).

    Raises:
        EngineError: one of them fails.
    """
    return {
        "command": min(_until_nodes(scenario, data_dir) for _ in range(TIMES)),
        "imports": min(_seconds(OURS) for _ in range(TIMES)),
        "node_imports": min(_seconds(NODES) for _ in range(TIMES)),
        "ray": min(_seconds(RAY) for _ in range(TIMES)),
    }


def _environment() -> dict[str, str]:
    return own_environment() | {"COLUMNS": "200"}


def _seconds(program: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program], env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError(f"bench: {program!r} failed: {done.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - start


def _until_nodes(scenario: str, data_dir: str) -> float:
    words = ["run", scenario, *(("--data-dir", data_dir) if data_dir else ())]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "simulations.cli.main", *words],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as running:
        assert running.stdout is not None, "it was asked for"
        line = ""
        for line in running.stdout:
            if "start:" in line:
                seconds = time.perf_counter() - start
                running.terminate()
                for _ in running.stdout:  # until it has ended, Ray too
                    pass
                return seconds
    raise EngineError(f"bench: {scenario} ended before its nodes answered: {line.strip()}")
