"""Devices of a node that answer a step: which of them take part, their items, and the vectors that they keep on disk.

Devices are away, are late and run out of memory as in a round of refinement. Who takes part depends on the device and
the time alone, so a step that is sent in several messages has the same devices in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.clock import RoundCost, spend
from clients.node.cohort import Cohort
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.errors import EngineError, MessageError
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.randomness import device_uniforms
from fl_peel.steps.base import ContributorsStep, Step, StepVector
from fl_peel.steps.step_cost import AnswerCost, HeldItems, StepCost, hidden
from fl_peel.steps.units import Floats, Ints, add_rows, unit_vectors


@dataclass(frozen=True)
class NodeDevices:
    """The hosted devices at ``places`` (N,); see :class:`fl_peel.steps.base.StepDevices`."""

    cohort: Cohort
    places: IntArray

    @cached_property
    def contributed(self) -> UserItems:
        """See :class:`fl_peel.steps.base.StepDevices`."""
        return self.cohort.splits.contributed_items.select(self.places)

    @cached_property
    def train(self) -> UserItems:
        """See :class:`fl_peel.steps.base.StepDevices`."""
        return self.cohort.splits.train.select(self.places)

    @cached_property
    def validation(self) -> UserItems:
        """See :class:`fl_peel.steps.base.StepDevices`."""
        return self.cohort.splits.validation.select(self.places)

    @cached_property
    def _vectors(self) -> Floats:
        """The vectors of all hosted devices, mapped."""
        return cast(Floats, np.load(self.cohort.vectors_file, mmap_mode="r"))

    def vectors(self, some: Ints | None = None, columns: int | None = None) -> Floats:
        """See :class:`fl_peel.steps.base.StepDevices`.

        Raises:
            MessageError: vectors have fewer columns.
        """
        if columns is not None and columns > self._vectors.shape[1]:
            raise MessageError(f"StepRequest: {columns} columns of vectors of {self._vectors.shape[1]}")
        return np.asarray(self._vectors[:, :columns][self.places if some is None else self.places[some]])

    def keep_vectors(self, table: Floats, first: int, columns: int, default: Floats | None) -> None:
        """See :class:`fl_peel.steps.base.StepDevices`; all hosted devices make their vectors, also those that are
        offline, as soon as they come back: a vector depends on no other device.
        """
        cohort, path = self.cohort, self.cohort.vectors_file
        rows = add_rows(table, cohort.rows, cohort.fading)
        if table.shape[1] < columns:  # as they are, so that any part of them may be asked for again
            rows = _in_parts(path.with_suffix(".parts.npy"), first, columns, rows)
        if first + table.shape[1] == columns:
            vectors = unit_vectors(rows)
            if default is not None:
                vectors[cohort.joining & (cohort.rows.counts() == 0)] = default
            path.parent.mkdir(parents=True, exist_ok=True)
            done = path.with_suffix(".done.npy")
            np.save(done, vectors)
            done.replace(path)


def _in_parts(path: Path, first: int, columns: int, part: Floats) -> Floats:
    """All columns of devices' vectors (N, K) so far, with this part (N, k) of them.

    Raises:
        EngineError: the parts before it are not there.
    """
    shape = (len(part), columns)
    if first == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float32, shape)
    try:
        rows = np.load(path, mmap_mode="r+")
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: devices have not computed the first columns of their vectors") from error
    if rows.shape != shape:
        raise EngineError(f"{path}: of shape {rows.shape}, not {shape}; start the run again")
    rows[:, first : first + part.shape[1]] = part
    rows.flush()
    return cast(Floats, rows)


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
