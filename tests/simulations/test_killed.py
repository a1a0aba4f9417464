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

from simulations.unfinished import NAME
from tests.strategies.run.test_kept import timeless

FL_PEEL = (sys.executable, "-m", "simulations.cli.main")
CHANGES = ("refinement.acceptance.rule=validation", "data.validation_share=20%", "refinement.rounds=4")


def command(scenario: Path, out: Path, *more: str) -> list[str]:
    changes = [word for change in CHANGES for word in ("--set", change)]
    return [*FL_PEEL, "run", str(scenario), "--out", str(out), "--no-cache", *changes, *more]


def report(out: Path) -> Any:
    """All that does not depend on the hour."""
    return timeless(json.loads((out / "report.json").read_text()), and_not={"peak_rss_bytes", "command"})


@pytest.mark.engine
@pytest.mark.faults
def test_killed_in_every_part_of_a_run_it_ends_in_the_same_report(tiny, tmp_path):
    subprocess.run(command(tiny, tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "out"
    for reached in ("stage-1.kept", "rounds-*.disks-2", "evaluation.kept"):
        process = subprocess.Popen(
            command(tiny, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not list((out / NAME).glob(reached)):
            assert process.poll() is None, f"it ended before {reached}"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "report.json").exists()
    last = subprocess.run(command(tiny, out), check=True, capture_output=True, text=True)
    assert "kept from before the run was stopped" in last.stderr
    assert report(out) == report(tmp_path / "whole")
    assert not (out / NAME).exists()
