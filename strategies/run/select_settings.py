"""Choose on validation items, then refit on train and validation items together: ``data.refit``.

What is chosen: the filter of spectral pretraining, the controller, and how many rounds of refinement are kept. The last
stage 1 and those rounds take validation items for train items; nothing is left to choose on, and nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_peel.events import Event, figures_under
from fl_peel.scenario.scenario import Scenario
from strategies.nodes.members import Members
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.federation import RoundRecord
from strategies.rounds.strategy import PeelStrategy
from strategies.run.prepare import ChosenFilter, choose_by_sums, prepare
from strategies.run.refinement import Refiner
from strategies.run.run import Run
from strategies.run.stage1_outcome import Stage1Outcome
from strategies.steps.step_channels import SumsRecord

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller


@dataclass(frozen=True)
class SettingsSelection:
    """The result of the selection run. scenario: scenario of the refit; controller: as trained, if it was; the rest:
    what the selection took.
    """

    scenario: Scenario
    controller: Controller | None
    acceptance: AcceptanceTest | None
    records: tuple[RoundRecord, ...]
    prepared: Stage1Outcome | ChosenFilter

    @property
    def steps(self) -> tuple[SumsRecord, ...]:
        """Return the records of the steps that devices took part in, in stage 1 of the selection run."""
        return self.prepared.steps


def select_settings(run: Run) -> SettingsSelection:
    """Run both stages on train items, measure on validation items alone, and choose the settings of the refit."""
    scenario, checkpoints = run.scenario, run.checkpoints
    run = replace(run, on_event=figures_under("rehearsal", run.on_event))
    if scenario.pretraining.model == "spectral" and not scenario.refinement.rounds:  # the filter is all there is
        chosen = choose_by_sums(run)
        return SettingsSelection(refitting(scenario, chosen, 0), None, None, (), chosen)
    prepared = checkpoints.stage("rehearsal-stage-1", lambda: prepare(run), disks=True)
    strategy, keeping, rounds = try_rounds(Refiner(run, prepared))
    run.on_event(Event("refinement", 1, 1, f"refit with {rounds} rounds"))
    return SettingsSelection(
        refitting(scenario, prepared, rounds), strategy.controller, keeping, tuple(strategy.rounds), prepared
    )


def try_rounds(refiner: Refiner) -> tuple[PeelStrategy, AcceptanceTest | None, int]:
    """Refine in all rounds of the run's scenario; return how they went, and how many of them to keep."""
    with refiner.run.stages("joining"):
        strategy = refiner.joined()
    with refiner.run.stages("refinement"):
        keeping = refiner.refine(strategy)
    tried = refiner.run.scenario.refinement.rounds
    return strategy, keeping, tried if keeping is None else kept_by_most(keeping, strategy.members)


def kept_by_most(acceptance: AcceptanceTest, members: Members) -> int:
    """Rounds of refinement that the median device kept; the refit has user groups of its own."""
    return int(np.median(acceptance.accepted_rounds[members.groups])) if len(members.groups) else 0


def refitting(scenario: Scenario, prepared: Stage1Outcome | ChosenFilter, rounds: int) -> Scenario:
    """Return the scenario of the refit, with everything that was chosen."""
    parts = {
        "data": {"validation_share": 0.0, "refit": False},
        "pretraining": prepared.chosen(),
        "fairness": {"tiers": ()},  # that are chosen on validation items
    }
    return with_parts(with_rounds(scenario, rounds), parts)


def with_rounds(scenario: Scenario, rounds: int) -> Scenario:
    """Return a scenario with so many rounds of refinement, all of which are kept: nothing is left to compare on."""
    acceptance = scenario.refinement.acceptance.model_copy(update={"rule": "always"})
    parts = {
        "refinement": {"rounds": rounds, "acceptance": acceptance},
        "controller": {"every": rounds + 1},  # no validation items, no signals
    }
    return with_parts(scenario, parts)


def with_parts(scenario: Scenario, parts: Mapping[str, Any]) -> Scenario:
    """Return a scenario with some keys of some of its parts changed."""
    changed = {name: getattr(scenario, name).model_copy(update=part) for name, part in parts.items()}
    return scenario.model_copy(update=changed)
