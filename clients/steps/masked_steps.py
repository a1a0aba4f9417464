"""A step under secure aggregation, on a node: each of its devices sends its part by itself, masked.

The contribution of a device is what a node that hosted it alone would answer in the clear: the same function of its one
row, with a word for whatever it might have contributed. All devices that are there in one of the step's windows are one
group. Keys, shares and their opening are those of a round of refinement (:mod:`clients.round.masked_group`).

A vector goes in parts, to spare whoever simulates many devices the memory; each part is sent once. Who vanishes or is
late sends none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.round.masked_group import MaskedGroup, known_of, make_keys
from clients.round.secret_store import SecretStore
from clients.steps.attendance import StepAttendance
from clients.steps.step_round import contribute
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.secure.keys import Occasion
from fl_peel.secure.protocol_plan import DropoutStage, vanishing
from fl_peel.secure.vector import CHECK, Values
from fl_peel.steps.base import Step
from fl_peel.steps.step_vector import StepVector
from fl_peel.wire import EVERYBODY, Inbox, SecureKeysReply, SecureStepRequest, SecureSumsReply, SecureSumsRequest


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
