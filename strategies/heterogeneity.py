"""Fairness and elasticity of a run, and the further refinements that they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fl_peel import wire
from fl_peel.config import Scenario
from fl_peel.events import Event, OnEvent
from strategies.fairness import Refine, measure_fairness
from strategies.groups import starting_states
from strategies.moving_budgets import IntArray, measure_elasticity
from strategies.nodes import Nodes
from strategies.peel import Members, PeelStrategy

if TYPE_CHECKING:
    from strategies.server_app import Place, Prepared

Join = Callable[[Scenario], Members]


def refiner(grid: Grid, place: Place, prepared: Prepared, nodes: Nodes, join: Join, on_event: OnEvent) -> Refine:
    """Refine once more from the pretrained tables, on the same nodes, where devices keep a state of its own for it."""

    def told(event: Event) -> None:
        on_event(Event("comparison", event.done, event.total, event.text))

    def refine(scenario: Scenario) -> PeelStrategy:
        members = join(scenario)
        states = starting_states(scenario, prepared.layout, prepared.pretrained, prepared.groups, prepared.given)
        strategy = PeelStrategy(
            scenario,
            wire.Setting(scenario.to_json(), place.data_dir, place.run_dir),
            prepared.layout,
            states,
            members,
            nodes,
            temperature=prepared.pretrained.temperature,
            traced=members.devices[:0],
            on_event=told,
        )
        strategy.start(
            grid, ArrayRecord(), num_rounds=scenario.refinement.rounds, timeout=scenario.engine.reply_timeout_s
        )
        return strategy

    return refine


def measure_heterogeneity(
    strategy: PeelStrategy,
    own: wire.EvaluateReply,
    full: dict[str, wire.EvaluateReply | None],
    refine: Refine,
    traced: IntArray,
) -> dict[str, Any]:
    """``fairness``, ``elasticity`` and ``elastic_traces`` of report.json.

    own: everybody under their own budgets; full: full tables by name, None where they were not evaluated.
    """
    tables = {name: reply for name, reply in full.items() if reply is not None}
    elasticity, traces = measure_elasticity(strategy, tables, refine, traced)
    return {
        "fairness": measure_fairness(strategy, own, tables, refine),
        "elasticity": elasticity,
        "elastic_traces": traces,
    }


__all__ = ["Join", "measure_heterogeneity", "refiner"]
