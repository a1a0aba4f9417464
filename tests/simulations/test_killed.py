"""Killed at any moment, and called again: the same report, to the last digit; nothing half-written on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fl_peel.store import Store
from simulations.resumable import CHECKPOINTS, NAME
from tests.helpers import without_ray
from tests.helpers.planted_timeline import FLEET, TIMELINE, csv_of, planted
from tests.strategies.run.test_checkpoints import timeless

ENGINE, NONE = "simulations.cli.main", without_ray.MODULE
"""Modules that are the command line: on Ray, and with nodes in its own process."""
CHANGES = ("refinement.acceptance.rule=validation", "data.validation_share=20%", "refinement.rounds=4")
RUN = ["run", "tiny.yaml", "--no-cache", *(word for change in CHANGES for word in ("--set", change))]
TIMELINE_RUN = ["run", "timeline.yaml", "--set", "data.timeline.periods=2", "--nodes", "2"]
AUDIT = ["audit", "tiny.yaml", "--only", "none; clipping", "--devices", "40", "--rounds", "2", "--budget", "50%"]
AUDIT += ["--attacks", "touched-rows"]


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    """A folder with both scenarios."""
    (tmp_path / "planted-fleet.yaml").write_text(FLEET)
    (tmp_path / "rows.csv").write_text(csv_of(planted()))
    timeline = TIMELINE.format(path=tmp_path / "rows.csv", fleet=tmp_path / "planted-fleet.yaml")
    (tmp_path / "timeline.yaml").write_text(timeline)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(file: Path) -> Any:
    """All that does not depend on the hour."""
    return timeless(json.loads(file.read_text()), and_not={"peak_rss_bytes", "command"})


def killed_at(reached: str, place: Path, module: str, words: list[str]) -> None:
    """Kill a command as soon as an entry is there, and what it has started with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=without_ray.environment(),
    )
    while reached not in {entry.name for entry in Store(place).entries()}:
        assert process.poll() is None, f"it ended before {reached}"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.engine
@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "kept", "kills", "name"),
    [
        (RUN, NAME, (("stage-1", NONE), ("rounds", NONE)), "report.json"),
        pytest.param(TIMELINE_RUN, NAME, (("timeline", NONE),), "timeline.json", marks=pytest.mark.hostile),
        pytest.param(AUDIT, CHECKPOINTS, (("none", NONE),), "audit.json", marks=pytest.mark.hostile),
    ],
    ids=["run", "timeline", "audit"],
)
def test_killed_again_and_again_it_ends_in_the_same_report_on_the_engine(
    words, kept, kills, name, folder, command_line
):
    """As that of one whose nodes are in its own process, and which nobody kills."""
    out = folder / "out"
    for reached, module in kills:
        killed_at(reached, out / kept, module, [*words, "--out", str(out)])
        assert not (out / name).exists()
    command = [sys.executable, "-m", ENGINE, *words, "--out", str(out)]
    again = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resumed from " in again.stderr
    assert command_line(*words, "--out", folder / "whole")[0] == 0
    assert report(out / name) == report(folder / "whole" / name)
    assert not (out / NAME).exists()
