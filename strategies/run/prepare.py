"""Choice of the stage 1 that a scenario asks for."""

from __future__ import annotations

from strategies.run.central_stage1 import prepare_collected
from strategies.run.federated_stage1 import ChosenFilter, FederatedStage1Outcome, prepare_by_sums
from strategies.run.run import Run
from strategies.run.stage1_outcome import Stage1Outcome


def prepare(run: Run, before: Stage1Outcome | ChosenFilter | None = None) -> Stage1Outcome:
    """Stage 1 as the scenario has it, on the server or on the nodes. before: what an earlier one left, on a part of the
    same data.
    """
    if run.scenario.pretraining.model == "spectral":
        directions = before.directions if isinstance(before, FederatedStage1Outcome | ChosenFilter) else None
        return prepare_by_sums(run, directions)
    return prepare_collected(run.scenario, run.paths, run.stages, run.on_event)
