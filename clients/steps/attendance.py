"""Who takes part in a step, and what it takes of them.

Devices are away, are late and run out of memory as in a round of refinement. Who takes part depends on the device and
the time alone, so a step that is sent in several messages has the same devices in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.clock import RoundCost, spend
from clients.node.cohort import Cohort
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.randomness import device_uniforms
from fl_peel.steps.base import Step
from fl_peel.steps.contributors import ContributorsStep
from fl_peel.steps.step_cost import AnswerCost, HeldItems, StepCost, hidden
from fl_peel.steps.step_vector import StepVector


def requested_devices(cohort: Cohort, step: Step) -> NDArray[np.bool_]:
    """Return which hosted devices (N,) a step asks."""
    if not step.panel:
        return cohort.joining if step.joins else cohort.contributing
    drawn = device_uniforms(cohort.scenario.seed, "panel", devices=cohort.devices)
    panel = np.asarray(drawn * cohort.population < step.panel)
    # that a device answers would say that it has any
    hidden_answers = cohort.scenario.privacy.noised or cohort.scenario.secure_aggregation.enabled
    if step.needs_validation and not hidden_answers:
        panel &= cohort.splits.validation.counts() > 0
    return panel


@dataclass(frozen=True)
class StepAttendance:
    """The attendance of a step, for N hosted devices. requested: (N,) those that are asked; window: (N,) in which each
    is there first, -1 for never; small: (N,) those with too little memory then; reached: places of the others that
    come; costs: (N,).
    """

    requested: NDArray[np.bool_]
    window: IntArray
    small: NDArray[np.bool_]
    reached: IntArray
    costs: StepCost

    @staticmethod
    def from_cohort(cohort: Cohort, step: Step, time: int, neighbours: int | None = None) -> StepAttendance:
        """Determine when each device comes to a step; it does when it is first available, with the memory that it has
        then. neighbours: with which it shares masks, None in the clear.
        """
        requested = requested_devices(cohort, step)
        everybody = np.arange(len(cohort.devices))
        window = np.full(len(everybody), -1)
        budgets = np.zeros(len(everybody), np.int64)
        for number in range(cohort.scenario.pretraining.open_rounds):
            now = requested & (window < 0) & cohort.available(everybody, time + number)
            window[now] = number
            budgets[now] = cohort.budgets.at(time + number)[now]
        costs = _cost(cohort, step, budgets, neighbours)
        small = (window >= 0) & (budgets < costs.least_bytes)
        return StepAttendance(requested, window, small, np.flatnonzero((window >= 0) & ~small), costs)

    def spent(self, cohort: Cohort, places: IntArray, unsent: IntArray | int = 0) -> RoundCost:
        """Return what the devices at these places spend, which leave out ``unsent`` bytes of their upload."""
        costs, rates = self.costs, cohort.rates.select(places)
        return spend(
            replace(rates, latency_s=costs.exchanges[places] * rates.latency_s),
            costs.download_bytes[places],
            costs.samples[places],
            costs.upload_bytes[places] - unsent,
            cohort.scenario.pretraining.deadline_s,
        )

    def waits(self, cohort: Cohort, places: IntArray, spent: RoundCost) -> IntArray:
        """Return the microseconds (W,) of the slowest device in each window."""
        waits = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
        np.maximum.at(waits, self.window[places], spent.time_us)
        return waits


def _cost(cohort: Cohort, step: Step, budgets: IntArray, neighbours: int | None) -> StepCost:
    """Return what all parts of a step take of the devices, with so many bytes of memory (N,)."""
    splits, terms = cohort.splits, cohort.terms
    items = HeldItems(splits.contributed_items.counts(), splits.train.counts(), splits.validation.counts())
    cost = step.whole_cost(terms, items, budgets)
    if not step.sums(terms) or (neighbours is None and not terms.all_rows):
        return cost

    def answer(one: Step) -> AnswerCost:
        noised = cohort.scenario.privacy.noised
        vector = StepVector(one, terms, 0 if noised or neighbours is None else len(cohort.fleet.names), 1)
        return vector.clear_cost() if neighbours is None else vector.masked_cost(neighbours)

    whole = answer(step)
    if terms.counts_contributors and step.num_rows(terms):
        counting = answer(ContributorsStep(step))
        whole += replace(counting, exchanges=0) if neighbours is None else counting
    return hidden(cost, whole, budgets)


@dataclass(frozen=True)
class StepParticipants:
    """The participants of a step in the clear. places: places of devices whose sums count; counts: what the step takes
    of all that are reached; waits_us: (W,) of the slowest device in each window.
    """

    places: IntArray
    counts: RoundCounts
    waits_us: IntArray

    @staticmethod
    def from_cohort(cohort: Cohort, step: Step, time: int) -> StepParticipants:
        """Determine which devices take part in a step."""
        there = StepAttendance.from_cohort(cohort, step, time)
        reached, spent = there.reached, there.spent(cohort, there.reached)
        num_classes, classes = len(cohort.fleet.names), cohort.classes[there.reached]
        away = there.requested & (there.window < 0)
        sampled = {"sampled": there.requested, "unavailable": away, "excluded": there.small}
        clock = ClockCounts.from_columns(cohort.classes, num_classes, **sampled)
        times = {"stragglers": spent.late, "time_us": spent.time_us, "energy_mj": spent.energy_mj}
        clock += ClockCounts.from_columns(classes, num_classes, **times)
        moved = ClassCounts.zeros(len(reached))
        moved.devices[:] = ~spent.late
        moved.download_bytes[:], moved.upload_bytes[:] = spent.download_bytes, spent.upload_bytes
        counts = replace(RoundCounts.nothing(num_classes), classes=moved.by_cell(classes, num_classes), clock=clock)
        return StepParticipants(reached[~spent.late], counts, there.waits(cohort, reached, spent))
