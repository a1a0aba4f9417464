"""Whole runs in this process, and what of a result must not depend on speed, nodes or the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl_peel.scenario.scenario import Scenario
from strategies.figures.schema import RunResult, to_json
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import Interfere, LoopbackGrid, let_through


def served(
    scenario: Scenario, run_dir: Path, nodes: int = 2, interfere: Interfere = let_through
) -> tuple[RunResult, LoopbackGrid]:
    """Run a scenario on nodes in this process; returns the nodes, too, with what crossed."""
    grid = LoopbackGrid(nodes, interfere)
    return serve(grid, scenario, RunPaths("", str(run_dir))), grid


def figures(result: RunResult) -> dict[str, Any]:
    """What must not depend on speed, nodes or the engine; as JSON types."""
    content = json.loads(json.dumps(to_json(result)))
    by_round = [{k: v for k, v in row.items() if k not in ("seconds", "message_bytes")} for row in content["rounds"]]
    keys = ("full_table", "budgets", "device_classes", "user_groups", "history", "traces", "bytes_per_device")
    keys += ("fairness", "elasticity", "elastic_traces", "time_to_recall")
    return {"rounds": by_round, **{key: content[key] for key in keys}}
