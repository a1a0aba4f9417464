"""Whole runs in this process, and what of a result must not depend on speed, nodes or the engine."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.client_app import app as client_app
from clients.node.cohort import Cohort, open_cohort
from fl_peel import wire
from fl_peel.scenario.scenario import Scenario
from simulations import runner
from simulations.report.drawing import Plot
from simulations.report.render import Chart, run_sections
from simulations.scenario_files import RunOptions, load_scenario
from strategies.figures.schema import RunResult, to_json
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import Interfere, LoopbackGrid, let_through


def served(
    scenario: Scenario, run_dir: Path, nodes: int = 2, interfere: Interfere = let_through
) -> tuple[RunResult, LoopbackGrid]:
    """Run a scenario on nodes in this process; returns the nodes, too, with what crossed."""
    grid = LoopbackGrid(nodes, interfere)
    return serve(grid, scenario, RunPaths("", str(run_dir))), grid


def connected(scenario: Scenario, run_dir: Path, nodes: int = 2, interfere: Interfere = let_through) -> Run:
    """A run that has nodes in this process, before its first stage."""
    return Run.connect(LoopbackGrid(nodes, interfere), scenario, RunPaths("", str(run_dir)))


def run(scenario: Path | Scenario, overrides: Iterable[str] = (), seed: int | None = None, **options: Any) -> Any:
    """Run a scenario or its file as the command line does; returns what was measured."""
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario, overrides, seed=seed)
    return runner.run(scenario, RunOptions(**options))


def hosted_by(scenario: Scenario, run_dir: Path, partition: int = 0, nodes: int = 1) -> Cohort:
    """The cohort of a node of a run, as the node itself opens it."""
    return open_cohort(RunPaths("", str(run_dir)).setting(scenario), partition, nodes)


def node_reply(node_config: dict[str, Any], payload: object, kind: str) -> Message:
    """What the node of partition 0 of 2 replies that was started with these words."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(wire.pack(payload), dst_node_id=5, message_type=kind)
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    config: Any = {"partition-id": 0, "num-partitions": 2} | node_config
    return client_app(message, Context(run_id=1, node_id=5, node_config=config, state=RecordDict(), run_config={}))


def figures(result: RunResult) -> dict[str, Any]:
    """What must not depend on speed, nodes or the engine; as JSON types."""
    content = json.loads(json.dumps(to_json(result)))
    by_round = [{k: v for k, v in row.items() if k not in ("seconds", "message_bytes")} for row in content["rounds"]]
    keys = ("full_table", "budgets", "device_classes", "user_groups", "history", "traces", "bytes_per_device")
    keys += ("fairness", "elasticity", "elastic_traces", "time_to_recall")
    return {"rounds": by_round, **{key: content[key] for key in keys}}


def report_figures(result: RunResult) -> list[Plot]:
    """Draw every figure of a run for which it has data, in reading order."""
    parts = [part for section in run_sections(result) for part in section.parts if isinstance(part, Chart)]
    return [plot for part in parts if (plot := part.draw()) is not None]
