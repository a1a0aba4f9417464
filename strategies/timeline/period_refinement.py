"""Refinement before a period: first in a selection run on what lies behind, then done with everything there is.

How many rounds help is asked of devices one period earlier (``fl_peel.data.timeline``, the part to choose): from the
tables of the last period they refine on what they had done before it, and report for what they did in it whether that
ranks it better. As many rounds as the median device kept are then refined from the new tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

from fl_peel.exchange.counters import ClassCounts
from fl_peel.scenario.scenario import Scenario
from strategies.groups.state import UserGroupState
from strategies.nodes.members import Members
from strategies.rounds.record import RoundRecord
from strategies.rounds.strategy import PeelStrategy
from strategies.run.refinement import Refiner, put_together
from strategies.run.select_settings import kept_by_most


@dataclass(frozen=True)
class PeriodRefinement:
    """The cost of a refinement. rounds: number kept of those that were tried, or done; on the clock: ``ends`` is the
    round after; compared_bytes: bytes sent to devices that compared.
    """

    rounds: int
    ends: int
    records: tuple[RoundRecord, ...] = ()
    compared_bytes: int = 0

    def moved(self) -> ClassCounts | None:
        """Bytes of devices, by class."""
        return reduce(add, (record.classes for record in self.records)) if self.records else None

    @property
    def virtual_seconds(self) -> float:
        """One round after the other."""
        return sum(record.virtual_seconds for record in self.records)


def select_rounds(refiner: Refiner, scenario: Scenario) -> PeriodRefinement:
    """Try all rounds of a scenario, of the part to choose."""
    strategy = refiner.joined(scenario, None)
    keeping = refiner.refine(strategy)
    ends = refiner.begin + 1 + scenario.refinement.rounds
    if keeping is None:
        return PeriodRefinement(scenario.refinement.rounds, ends, tuple(strategy.rounds))
    compared = sum(one.download_bytes for one in keeping.comparisons)
    return PeriodRefinement(kept_by_most(keeping, strategy.members), ends, tuple(strategy.rounds), compared)


def refined(
    refiner: Refiner, scenario: Scenario, members: Members, states: list[UserGroupState], rounds: int
) -> PeriodRefinement:
    """Refine tables for so many rounds, with nothing left to compare on; ``states`` have them then."""
    ends = refiner.begin + 1 + rounds
    if not rounds:
        return PeriodRefinement(0, ends)
    acceptance = scenario.refinement.acceptance.model_copy(update={"rule": "always"})
    parts = {
        "refinement": scenario.refinement.model_copy(update={"rounds": rounds, "acceptance": acceptance}),
        "controller": scenario.controller.model_copy(update={"every": rounds + 1}),  # it learns from what devices keep
    }
    federation = refiner.federation(scenario.model_copy(update=parts), members, states)
    strategy = put_together(PeelStrategy, federation, None)
    refiner.refine(strategy)
    return PeriodRefinement(rounds, ends, tuple(strategy.rounds))


__all__ = ["PeriodRefinement", "refined", "select_rounds"]
