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
from simulations.resumable import NAME
from tests.helpers import without_ray
from tests.strategies.run.test_checkpoints import timeless

CHANGES = ("refinement.acceptance.rule=validation", "data.validation_share=20%", "refinement.rounds=4")
ENGINE, NONE = "simulations.cli.main", without_ray.MODULE
"""Modules that are the command line: on Ray, and with nodes in its own process."""


def words(scenario: Path, out: Path) -> list[str]:
    changes = [word for change in CHANGES for word in ("--set", change)]
    return ["run", str(scenario), "--out", str(out), "--no-cache", *changes]


def report(out: Path) -> Any:
    """All that does not depend on the hour."""
    return timeless(json.loads((out / "report.json").read_text()), and_not={"peak_rss_bytes", "command"})


@pytest.mark.engine
@pytest.mark.faults
def test_killed_in_every_part_of_a_run_it_ends_in_the_same_report(tiny, tmp_path, command_line):
    """While rounds go on, nodes are killed with it that are processes of their own."""
    assert command_line(*words(tiny, tmp_path / "whole"))[0] == 0
    out = tmp_path / "out"
    for reached, module in (("stage-1", NONE), ("rounds", ENGINE), ("evaluation", NONE)):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words(tiny, out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=without_ray.environment(),
        )
        while reached not in {entry.name for entry in Store(out / NAME).entries()}:
            assert process.poll() is None, f"it ended before {reached}"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "report.json").exists()
    code, _, events = command_line(*words(tiny, out))
    assert code == 0, events
    assert "resumed from a checkpoint" in events
    assert report(out) == report(tmp_path / "whole")
    assert not (out / NAME).exists()
