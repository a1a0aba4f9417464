"""Node, where it is there: the reader of artefacts without Python is asked in one process for many answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients.runtime import READER
from tests.helpers.root import ROOT

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node (18 or newer) is not installed")
DRIVER = ROOT / "tests" / "clients" / "runtime" / "driver.mjs"


def node(script: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script and return how it ended."""
    assert NODE is not None
    command = [NODE, str(script), *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)


def answers(questions: list[dict[str, Any]]) -> list[Any]:
    """What the reader says to each question, as `driver.mjs` has it."""
    done = node(DRIVER, str(READER), given=json.dumps(questions))
    assert done.returncode == 0, done.stderr
    result: list[Any] = json.loads(done.stdout, parse_int=float)  # JavaScript writes 2**60 without a point
    return result
