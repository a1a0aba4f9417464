"""A third of the messages fails, a disk is full, the clock is set back: the right result, or one clear line."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
from flwr.app import Error, Message

from fl_peel import wire
from fl_peel.packages import PACKAGES
from fl_peel.randomness import rng_for
from simulations.scenario_files import load_scenario
from strategies import nodes as asking
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers import without_ray
from tests.helpers.imports import modules
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.root import ROOT
from tests.helpers.runs import figures

ROUNDS = ("refinement.rounds=6", "elasticity.rounds=2", "elasticity.devices=10", "engine.nodes=4")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(asking, "PAUSES_S", (0.0, 0.0, 0.0))


def failing(share, seed):
    """A node's answer is an error, so often."""
    rng = rng_for(seed, "failing")

    def interfere(partition, message):
        if message.metadata.message_type == wire.HELLO or rng.random() >= share:
            return None
        return Message(Error(0, "worker died"), reply_to=message)

    return interfere


@pytest.fixture(scope="module")
def whole(planted_home, tmp_path_factory):
    """The run in which nothing fails."""
    with chdir(planted_home):
        scenario = load_scenario("tiny.yaml", ROUNDS)
        return serve(LoopbackGrid(4), scenario, RunPaths("", str(tmp_path_factory.mktemp("whole"))))


def test_when_only_rounds_are_spared_every_figure_is_right(tiny, tmp_path, whole):
    """What is asked again is said again, to the last digit."""
    scenario, interfere = load_scenario(tiny, ROUNDS), failing(0.1, 3)

    def but_rounds(partition, message):
        return None if message.metadata.message_type == wire.ROUND else interfere(partition, message)

    result = serve(LoopbackGrid(4, but_rounds), scenario, RunPaths("", str(tmp_path / "failing")))
    assert figures(result) == figures(whole)


CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


def test_nothing_waits_by_a_clock_that_can_be_set_back():
    """Times are of the monotonic clock; what the hour is stands in reports alone."""
    asked = {}
    for file in (file for package in PACKAGES for file in modules(package)):
        text = file.read_text(encoding="utf-8")
        if not any(name in text for name in CLOCKS):
            continue
        names = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        if result := names & CLOCKS:
            asked[file.relative_to(ROOT).as_posix()] = result
    assert asked == {
        "simulations/deployment/keys.py": {"datetime.now"},  # from when on a certificate holds
        "fl_peel/store.py": {"time.time"},  # the age that fl-peel cache shows
        "simulations/cli/lists.py": {"time.time"},
    }


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of so many bytes; the test is skipped where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here, so none can be full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fl_peel_run(scenario: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", without_ray.MODULE, "run", str(scenario), *more],
        env=without_ray.environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.faults
def test_a_disk_that_is_full_is_one_line(tiny, tmp_path):
    with small_disk(tmp_path / "disk", 16 << 10) as disk:
        done = fl_peel_run(tiny, "--out", str(disk / "out"), "--no-cache", "--set", "refinement.rounds=0")
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert not (disk / "out" / "report.json").exists()
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("fl-peel: error")]
        assert str(disk) in line
