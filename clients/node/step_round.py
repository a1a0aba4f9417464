"""A part of a step on a node: which devices answer, and what they contribute, noised or masked as the scenario asks.

Devices are away, are late and run out of memory as in a round of refinement. Who takes part depends on the device and
the time alone, so a step that is sent in several messages has the same devices in all of them.

The contribution of a device is what a node that hosted it alone would answer in the clear: the same function of its one
row, with a word for whatever it might have contributed. All devices that are there in one of the step's windows are one
group. Keys, shares and their opening are those of a round of refinement (:mod:`clients.node.masked`).

A vector goes in parts, to spare whoever simulates many devices the memory; each part is sent once. Who vanishes or is
late sends none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort, RoundCost, spend
from clients.node.masked import MaskedGroup, SecretStore, known_of, make_keys
from fl_peel.data.interactions import IntArray, UserItems
from fl_peel.errors import EngineError, MessageError
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.privacy.noise_plan import Stage1Scales, in_masked_sums, noise_devices_of
from fl_peel.randomness import device_uniforms
from fl_peel.secure.device_protocol import DropoutStage, vanishing
from fl_peel.secure.keys import Occasion
from fl_peel.secure.vector import CHECK, Values
from fl_peel.steps.base import (
    AnswerCost,
    Arrays,
    ContributorsStep,
    Draw,
    Floats,
    HeldItems,
    Ints,
    Step,
    StepCost,
    StepVector,
    add_rows,
    hidden,
    unit_vectors,
    unpacked_rows,
)
from fl_peel.wire import (
    EVERYBODY,
    Inbox,
    SecureKeysReply,
    SecureStepRequest,
    SecureSumsReply,
    SecureSumsRequest,
    StepReply,
    StepRequest,
)


@dataclass(frozen=True)
class NodeDevices:
    """The hosted devices at ``places`` (N,); see :class:`fl_peel.steps.base.StepDevices`."""

    cohort: Cohort
    places: IntArray

    @cached_property
    def contributed(self) -> UserItems:
        return self.cohort.contributed_by(self.places)

    @cached_property
    def train(self) -> UserItems:
        return self.cohort.splits.train.select(self.places)

    @cached_property
    def validation(self) -> UserItems:
        return self.cohort.splits.validation.select(self.places)

    @cached_property
    def _vectors(self) -> Floats:
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


def step_round(cohort: Cohort, request: StepRequest) -> StepReply:
    """Return the sums of a part of a step, over all devices of a node that take part."""
    question = request.step.question
    reached = StepParticipants.from_cohort(cohort, question, request.time)
    sums = contribute(cohort, reached.places, request)
    # what both parts of a step take is counted once, with its sums
    counted = request.first == 0 and request.step is question
    for field in request.step.fields(cohort.terms, (request.first, request.stop)):
        if field.bits == 32:  # half of the bytes to move where such words hold all sums
            sums[field.name] = sums[field.name].astype(np.int32)
    return StepReply(
        sums, reached.counts if counted else RoundCounts.nothing(len(cohort.fleet.names)), reached.waits_us
    )


def contribute(cohort: Cohort, places: IntArray, request: StepRequest, announced: int | None = None) -> Arrays:
    """Return what the devices at these places add to a part of a step, with the noise that they add. announced: number
    of devices that began the step under secure aggregation, None in the clear.
    """
    step, terms, part = request.step, cohort.terms, (request.first, request.stop)
    rows = step.num_rows(terms) if terms.counts_contributors else 0
    opened = unpacked_rows(request.opened, rows) if rows else None
    sums = step.contribute(NodeDevices(cohort, places), request.sent, part, terms, opened)
    noise_of = _noise(cohort, request, announced) if step.noised else None
    if noise_of is not None:
        for device in cohort.devices[places].tolist():
            for name, noise in step.noise(noise_of(device), terms, part).items():
                sums[name] = sums[name] + noise
    return sums


def _noise(cohort: Cohort, request: StepRequest, announced: int | None) -> Callable[[int], Draw] | None:
    """Return the function from a device to its noise, all of it or its share of a sum's; None where it adds none. Noise
    is drawn by device and step: nodes and messages make no difference.
    """
    scenario = cohort.scenario
    if not scenario.privacy.noised:
        return None
    scales = Stage1Scales.from_scenario(scenario, request.noise_multiplier)
    if scales.mechanism.where == "device":
        return lambda device: scales.whole(request.time, device)
    if announced is not None and in_masked_sums(scenario, scales.mechanism):
        shares = noise_devices_of(scenario, announced)
        return lambda device: scales.shared(shares, request.time, device)
    return None


def announce_step(cohort: Cohort, request: SecureStepRequest) -> SecureKeysReply:
    """Devices that come, and have the memory, make their keys. What is left of earlier steps is removed."""
    SecretStore.from_node_folder(cohort.folder).forget()
    neighbours = cohort.scenario.secure_aggregation.neighbours
    there = StepAttendance.from_cohort(cohort, request.step.question, request.time, neighbours)
    clock = ClockCounts.zeros(len(cohort.devices))
    clock.sampled[:] = there.requested
    clock.unavailable[:] = there.requested & (there.window < 0)
    clock.excluded[:] = there.small
    groups = np.full(len(there.reached), EVERYBODY, np.int32)
    start = time.perf_counter()
    channel, mask = make_keys(cohort, request.server_round, there.reached, groups)
    spent = time.perf_counter() - start
    by_class = clock.by_cell(cohort.classes, len(cohort.fleet.names))
    return SecureKeysReply(cohort.devices[there.reached], groups, channel, mask, by_class, spent)


def masked_sums(cohort: Cohort, request: SecureSumsRequest) -> SecureSumsReply:
    """Return a part of the masked sum of a step: each device in turn contributes its part and masks it."""
    step, part, occasion = request.step, (request.first, request.stop), Occasion(request.server_round, EVERYBODY)
    inbox = request.secure[EVERYBODY] if request.first == 0 else None
    if inbox is None:
        known = SecretStore.from_node_folder(cohort.folder).load(request.server_round, EVERYBODY, _stage(request.first))
        counts = _StepCounts.nothing(cohort, len(known["devices"]))
    else:
        known = known_of(cohort, occasion, inbox)
        counts = _StepCounts.from_inbox(cohort, request, inbox, known["neighbours"].shape[1])
    places, announced = cohort.places(known["devices"]), len(known["directory"])
    vector = _vector(cohort, step, announced)
    masked = MaskedGroup(cohort, occasion, known, vector.part(part), vector.start(part), inbox)
    for i in np.flatnonzero(counts.stays).tolist():
        values = contribute(cohort, places[i : i + 1], request, announced)
        if inbox is not None:
            values |= counts.head(i, int(cohort.classes[places[i]]), vector.classes)
        if not masked.add(i, values):
            counts.stays[i], counts.classes.devices[i] = False, 0
    last = request.stop == step.num_pieces
    masked_sum = masked.finish() if last else masked.finish(_stage(request.stop))
    aside = ~counts.stays | cohort.scenario.privacy.noised  # the simulation's own count, where it is not in the sum
    cells, num_cells = cohort.classes[places[aside]], len(cohort.fleet.names)
    return SecureSumsReply(
        masked_sum,
        counts.classes[aside].by_cell(cells, num_cells),
        counts.clock[aside].by_cell(cells, num_cells),
        counts.waits_us,
        masked.protocol_s,
    )


def _vector(cohort: Cohort, step: Step, devices: int) -> StepVector:
    """Return the layout of the vector that up to so many devices add up; under noise they withhold their counters."""
    classes = 0 if cohort.scenario.privacy.noised else len(cohort.fleet.names)
    return StepVector(step, cohort.terms, classes, devices)


@dataclass(frozen=True)
class _StepCounts:
    """What the devices (N,) of a step count with the first part of their vector. stays: those that send it; waits_us:
    (W,) of the slowest device in each window.
    """

    stays: NDArray[np.bool_]
    classes: ClassCounts
    clock: ClockCounts
    waits_us: IntArray

    @staticmethod
    def nothing(cohort: Cohort, devices: int) -> _StepCounts:
        """Return the counts of so many devices that all stay, and were counted before."""
        waits = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
        return _StepCounts(np.ones(devices, np.bool_), ClassCounts.zeros(devices), ClockCounts.zeros(devices), waits)

    @staticmethod
    def from_inbox(cohort: Cohort, request: SecureSumsRequest, inbox: Inbox, neighbours: int) -> _StepCounts:
        """Determine which devices stay until their vector is sent, and what the step takes of all of them."""
        step, places = request.step, cohort.places(inbox.devices)
        there = StepAttendance.from_cohort(cohort, step.question, request.time, neighbours)
        lost = vanishing(cohort.scenario, request.server_round, inbox.devices) == DropoutStage.VECTOR
        spent = there.spent(cohort, places, np.where(lost, _vector(cohort, step, 1).num_bytes, 0))
        stays = ~(spent.late | lost)
        counts = replace(_StepCounts.nothing(cohort, len(places)), stays=stays)
        if step is not step.question:  # what both parts of a step take is counted once, with its sums
            return counts
        classes, clock = counts.classes, counts.clock
        classes.devices[:] = stays
        classes.download_bytes[:], classes.upload_bytes[:] = spent.download_bytes, spent.upload_bytes
        clock.stragglers[:], clock.time_us[:], clock.energy_mj[:] = spent.late, spent.time_us, spent.energy_mj
        return replace(counts, waits_us=there.waits(cohort, places, spent))

    def head(self, i: int, device_class: int, num_classes: int) -> Values:
        """Return what device ``i`` counts, as words; no counters for no classes."""
        check = {CHECK: np.ones(1, np.int64)}
        if not num_classes:
            return check
        cell, one = np.array([device_class]), slice(i, i + 1)
        return check | {
            "classes": self.classes[one].by_cell(cell, num_classes).stacked(),
            "clock": self.clock[one].by_cell(cell, num_classes).stacked(),
        }


def _stage(first: int) -> str:
    """Name the stage that must be over before the part from piece ``first``: each part once, and in order."""
    return f"unit {first}"
