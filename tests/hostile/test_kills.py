"""Killed, signalled, with a full or a read-only disk again and again: the same command ends in the same report. So it
does where clocks jump, and beside others who have all processors.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers import without_ray
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import figures, run
from tests.simulations.test_killed import AUDIT, RUN, TIMELINE_RUN, folder, report  # noqa: F401, a fixture

FEW = ["--set", "refinement.rounds=2"]
KINDS = {
    "run": (RUN, "report.json", 8),
    "timeline": (TIMELINE_RUN, "timeline.json", 7),
    "seeds": (["run", "tiny.yaml", *FEW, "--no-cache", "--seeds", "3"], "seeds.json", 7),
    "sweep": (["sweep", "tiny.yaml", *FEW, "--set", "refinement.local.learning_rate=0.01,0.1,1"], "sweep.json", 6),
    "audit": (AUDIT, "audit.json", 6),
    "compare": (
        ["compare", "tiny.yaml", *FEW, "--budgets", "50%", "--rivals", "hashing,cached-list"],
        "compare.json",
        6,
    ),
}
"""Of each kind of run: its command, its report, and how often it is ended."""
FULL_BYTES = 20_000
"""Bytes that a file may have on a disk that is as good as full: less than any table."""


def entries(out):
    seen = set()
    for place, _, names in os.walk(out):  # which passes over folders that go meanwhile
        with suppress(FileNotFoundError):
            seen |= {(place, os.stat(Path(place, name)).st_mtime_ns) for name in names if name == "entry"}
    return seen


def before_it(way):
    """A shell's background jobs ignore Ctrl-C; a file that is too large for the disk is an error like others."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if way == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))


READ_ONLY = ["unshare", "-rm", "sh", "-c", 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"']
"""A command that another one follows, which finds a folder read-only."""
WAYS = ("SIGKILL", "SIGTERM", "full", "SIGINT", "read-only")


def ended(words, out, way, rng):
    """Start a command, and end it soon after it has kept something more, or on a bad disk; returns its code."""
    signalled, before = way.startswith("SIG"), entries(out)
    out.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*([*READ_ONLY, str(out)] if way == "read-only" else []), sys.executable, "-m", without_ray.MODULE, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=without_ray.environment(),
        preexec_fn=lambda: before_it(way),
    )
    while signalled and process.poll() is None and entries(out) <= before:
        time.sleep(0.02)
    if signalled:
        time.sleep(float(rng.uniform(0, 0.5)))
        if process.poll() is None:
            os.killpg(process.pid, getattr(signal, way))
    _, said = process.communicate(timeout=300)
    assert "Traceback" not in said
    return process.returncode


def test_a_clock_that_jumps_changes_nothing(tiny_run, tiny, tmp_path, monkeypatch):
    """By up to a month in either direction, each time that somebody looks; deadlines are of one that does not."""
    rng, right = np.random.default_rng(0), time.time
    looks = []

    def jumping():
        looks.append(right() + float(rng.uniform(-1, 1)) * 30 * 86_400)
        return looks[-1]

    monkeypatch.setattr(time, "time", jumping)
    start = time.monotonic()
    scenario = load_scenario(tiny)
    whole = serve(LoopbackGrid(2), scenario, RunPaths("", str(tmp_path / "run"), checkpoint_dir=str(tmp_path / "kept")))
    assert looks
    assert time.monotonic() - start < 60
    assert figures(whole) == figures(tiny_run[0])


BUSY = 20
"""Processes that do nothing, as fast as they can."""
MOST_S = {"embedded": 600, "ray": 1800}
"""Seconds after which a run beside them gives up, by engine: Ray's own eight processes and its workers load what they
need on a twelfth of a processor each.
"""


@contextmanager
def busy():
    """On two processors, whoever else wants one has it for a tenth of the time."""
    idle = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        yield
    finally:
        for one in idle:
            one.kill()
            one.wait()


@pytest.mark.engine
@pytest.mark.hostile
@pytest.mark.parametrize("backend", ["embedded", "ray"])
def test_a_busy_machine_is_waited_for(backend, tiny_run, tiny, trial):
    """As long as something is alive there: it ends with the same figures, or in one line when patience ends."""
    trial(f"runs beside {BUSY} busy processes", backend)
    words = [f"engine.backend={backend}", "engine.nodes=2", f"engine.patience_s={MOST_S[backend]}"]
    start = time.monotonic()
    with busy():
        result = run(tiny, words)
    assert time.monotonic() - start < MOST_S[backend]
    assert figures(result) == figures(tiny_run[0])


@pytest.mark.hostile
@pytest.mark.parametrize("kind", list(KINDS))
def test_whatever_ends_it_the_same_command_ends_in_the_same_report(kind, folder, trial):  # noqa: F811
    words, name, times = KINDS[kind]
    whole, out, rng = folder / "whole", folder / "out", np.random.default_rng(0)
    done = [sys.executable, "-m", without_ray.MODULE, *words]
    subprocess.run([*done, "--out", str(whole)], check=True, env=without_ray.environment(), capture_output=True)
    number = over = 0
    while number < times:
        way = WAYS[number % len(WAYS)]
        if ended([*words, "--out", str(out)], out, way, rng):
            trial("ended, then the same command", f"{kind}, {way}")
            number += 1
        else:  # it was over before: from the beginning
            assert report(out / name) == report(whole / name)
            shutil.rmtree(out)
            over += 1
            assert over < times
    finished = subprocess.run([*done, "--out", str(out)], env=without_ray.environment(), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert report(out / name) == report(whole / name)
