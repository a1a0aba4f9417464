"""Choice of the stage 1 that a scenario asks for."""

from __future__ import annotations

from fl_peel.events import OnEvent, silent
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.scenario import Scenario
from strategies.nodes.nodes import Nodes
from strategies.run.central_stage1 import prepare_collected
from strategies.run.checkpoints import RunCheckpoints
from strategies.run.federated_stage1 import ChosenFilter, FederatedStage1Outcome, prepare_by_sums
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import Stage1Outcome


def prepare(
    scenario: Scenario,
    plan: Plan | None,
    paths: RunPaths,
    stages: StageTimes,
    nodes: Nodes,
    on_event: OnEvent = silent,
    before: Stage1Outcome | ChosenFilter | None = None,
    checkpoints: RunCheckpoints | None = None,
) -> Stage1Outcome:
    """Stage 1 as the scenario has it, on the server or on the nodes. plan: of the scenario's noise; before: what an
    earlier one left, on a part of the same data; checkpoints: where its steps are kept, so that it goes on after the
    last.
    """
    if scenario.pretraining.model == "spectral":
        directions = before.directions if isinstance(before, FederatedStage1Outcome | ChosenFilter) else None
        return prepare_by_sums(scenario, plan, paths, stages, nodes, on_event, directions, checkpoints)
    return prepare_collected(scenario, paths, stages, on_event)


__all__ = ["prepare"]
