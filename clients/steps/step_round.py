"""A part of a step on a node: what its devices contribute, with the noise that they add, in the clear or masked.

The contribution of a device is what a node that hosted it alone would answer in the clear: the same function of its one
row, with a word for whatever it might have contributed. All devices that are there in one of the step's windows are one
group. Keys, shares and their opening are those of a round of refinement (:mod:`clients.round.masked_group`).

A vector goes in parts, to spare whoever simulates many devices the memory; each part is sent once. Who vanishes or is
late sends none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.round.masked_group import MaskedGroup, SecretStore, known_of, make_keys
from clients.steps.node_devices import NodeDevices, StepAttendance, StepParticipants
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.privacy.noise_plan import Stage1Scales, in_masked_sums, noise_devices_of
from fl_peel.secure.keys import Occasion
from fl_peel.secure.protocol_plan import DropoutStage, vanishing
from fl_peel.secure.vector import CHECK, Values
from fl_peel.steps.base import Arrays, Draw, Step, StepVector, unpacked_rows
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
    """Return the name of the stage that must be over before the part that begins with piece ``first``, so that each
    part is sent once, and in order.
    """
    return f"unit {first}"
