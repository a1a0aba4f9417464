"""Refinement on the nodes of a run: the one way to put a strategy together, and to have it refine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel.events import Event, OnEvent, silent
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.scenario import Scenario
from strategies.groups.state import UserGroupState
from strategies.nodes.members import Members, some_devices
from strategies.nodes.nodes import Nodes
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.choice import channel_of, contents_of
from strategies.rounds.federation import Federation
from strategies.rounds.strategy import PeelStrategy
from strategies.run.checkpoints import RoundCheckpoints, RunCheckpoints
from strategies.run.joining import join, warn_of_small_groups
from strategies.run.run_paths import RunPaths
from strategies.run.stage1_outcome import Stage1Outcome, privacy_plan

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller

Kind = TypeVar("Kind", bound=PeelStrategy)
Refine = Callable[[Scenario], PeelStrategy]
"""Refine once more from the same start, under another scenario."""


def put_together(
    kind: type[Kind],
    federation: Federation,
    plan: Plan | None,
    *,
    traced: NDArray[np.int64] | None = None,
    on_event: OnEvent = silent,
) -> Kind:
    """A strategy with the channel and the contents that its scenario asks for. plan: of the scenario's noise."""
    nobody = federation.members.devices[:0]
    return kind(
        federation,
        channel_of(federation),
        contents_of(federation, plan),
        traced=nobody if traced is None else traced,
        on_event=on_event,
    )


@dataclass(frozen=True)
class Refiner:
    """Refines from the same pretrained tables on the same nodes, once or more often; devices keep a state of their own
    for each refinement. controller: that refinements start with, None for one that knows nothing yet; begin: rounds of
    the fleet's clock that are over by then; checkpoints: where rounds are kept, so that a refinement goes on after the
    last.
    """

    grid: Grid
    paths: RunPaths
    prepared: Stage1Outcome
    nodes: Nodes
    on_event: OnEvent = field(default=silent, repr=False)
    controller: Controller | None = None
    begin: int = 0
    checkpoints: RunCheckpoints | None = None

    def joined(self, scenario: Scenario, plan: Plan | None, *, num_traced: int = 0) -> PeelStrategy:
        """Devices take part; a strategy before its first round, of which the report follows ``num_traced`` devices."""
        federation = self.federation(scenario, join(scenario, self.paths, self.prepared, self.nodes))
        warn_of_small_groups(scenario, federation.members)
        traced = some_devices(scenario, federation.members, "traced", num_traced)
        strategy = put_together(PeelStrategy, federation, plan, traced=traced, on_event=self.on_event)
        if self.controller is not None:
            strategy.controller = copy.deepcopy(self.controller)
        return strategy

    def federation(
        self, scenario: Scenario, members: Members, states: list[UserGroupState] | None = None
    ) -> Federation:
        """The parties of a refinement; states: by default what pretraining gives each user group to start with."""
        start = self.prepared
        return Federation(
            scenario,
            self.paths.setting(scenario, len(members.devices)),
            start.layout,
            start.states(scenario, self.paths.run_dir) if states is None else states,
            members,
            self.nodes,
            start.temperature,
            self.begin,
        )

    def refine(self, strategy: PeelStrategy) -> AcceptanceTest | None:
        """Run all rounds of the strategy's scenario; return which rounds groups accepted, None where no device was
        asked.
        """
        scenario = strategy.scenario
        acceptance = AcceptanceTest(strategy, self.paths.run_dir) if scenario.compares else None
        after = [] if acceptance is None else [acceptance.after]
        if self.checkpoints is not None and self.checkpoints.folder is not None:
            rounds = RoundCheckpoints(self.checkpoints, strategy, acceptance)
            strategy.completed_rounds = rounds.resume()
            after.append(rounds.after)

        def after_round(server_round: int) -> None:
            for listener in after:
                listener(server_round)

        strategy.after_round, before = after_round, strategy.after_round
        try:
            strategy.start(
                self.grid, ArrayRecord(), num_rounds=scenario.refinement.rounds, timeout=scenario.engine.reply_timeout_s
            )
        finally:  # tables of gigabytes: nobody holds them in a circle, waiting to be found
            strategy.after_round = before
        if acceptance is not None:
            acceptance.forget()
        return acceptance

    def refine_again(self, scenario: Scenario) -> PeelStrategy:
        """Refine once more, under another scenario and with the noise that it asks for; its events are those of a
        comparison.
        """

        def on_comparison(event: Event) -> None:
            self.on_event(Event("comparison", event.done, event.total, event.text))

        other = replace(self, on_event=on_comparison)
        strategy = other.joined(scenario, privacy_plan(scenario, self.paths))
        other.refine(strategy)
        return strategy


__all__ = ["Refine", "Refiner", "put_together"]
