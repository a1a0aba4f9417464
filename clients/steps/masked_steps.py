"""A step under secure aggregation, on a node: each of its devices sends its part by itself, masked.

The contribution of a device is what a node that hosted it alone would answer in the clear: the same function of its one
row, with a word for whatever it might have contributed. All devices that are there in one of the step's windows are one
group. Keys, shares and their opening are those of a round of refinement (:mod:`clients.round.masked`).

A vector goes in parts, to spare whoever simulates many devices the memory; each part is sent once. Who vanishes or is
late sends none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.round.masked import held_arrays, known_of, make_keys, masked_words, received_shares
from clients.round.secret_store import MASKED, Arrays, SecretStore
from clients.steps.attendance import StepAttendance
from clients.steps.step_round import contribute
from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.secure.keys import Occasion
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.protocol_plan import DropoutStage, needed_of, vanishing
from fl_peel.secure.step_vector import StepVector
from fl_peel.secure.vector import CHECK, Values
from fl_peel.steps.base import Step
from fl_peel.wire import (
    EVERYBODY,
    Inbox,
    MaskedSum,
    SecureKeysReply,
    SecureStepRequest,
    SecureSumsReply,
    SecureSumsRequest,
)

PREPARED = ("devices", "neighbours", "present", "index", "shares")
"""Arrays, (N,) each, that devices keep of the step when their vector is sent; the directory is kept besides."""
SECRET = (*PREPARED, "private")
"""Arrays that devices keep between parts of the step; the directory and the public keys in it are kept besides."""


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
    step, part = request.step, (request.first, request.stop)
    store, num_classes = SecretStore.from_node_folder(cohort.folder), len(cohort.fleet.names)
    members = _StepMembers.from_inbox(cohort, request) if request.first == 0 else None
    known = store.load(request.server_round, EVERYBODY, _stage(request.first)) if members is None else members.known
    devices, announced = known["devices"], len(known["directory"])
    vector, occasion = _vector(cohort, step, announced), Occasion(request.server_round, EVERYBODY)
    needed, _ = needed_of(cohort.scenario, announced)
    layout, offset = vector.part(part), vector.start(part)
    total, places, protocol_s = MaskWords.zeros(*layout.num_words), cohort.places(devices), 0.0
    for i, place in enumerate(places.tolist()):
        values = contribute(cohort, np.array([place]), request, announced)
        if members is not None:
            values |= members.head(i, int(cohort.classes[place]), vector.classes)
        words = layout.words(values)
        began = time.perf_counter()
        masked = words
        if cohort.scenario.secure_aggregation.masked:
            masked = masked_words(known, occasion, i, words, needed, offset)
        total.narrow[:] += masked.narrow
        total.wide[:] += masked.wide
        protocol_s += time.perf_counter() - began
    last = request.stop == step.num_pieces
    kept = {name: known[name] for name in (PREPARED if last else SECRET)} | {"directory": known["directory"]}
    if not last:
        kept |= {name: known[name] for name in ("channel_keys", "mask_keys")}
    store.save(request.server_round, EVERYBODY, MASKED if last else _stage(request.stop), kept)
    masked_sum = MaskedSum(devices, total.narrow, total.wide)
    if members is not None:
        return replace(members.reply, sum=masked_sum, protocol_s=members.reply.protocol_s + protocol_s)
    nothing = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
    return SecureSumsReply(
        masked_sum, ClassCounts.zeros(num_classes), ClockCounts.zeros(num_classes), nothing, protocol_s
    )


def _vector(cohort: Cohort, step: Step, devices: int) -> StepVector:
    """Return the layout of the vector that up to so many devices add up; under noise they withhold their counters."""
    classes = 0 if cohort.scenario.privacy.noised else len(cohort.fleet.names)
    return StepVector(step, cohort.terms, classes, devices)


@dataclass(frozen=True)
class _StepMembers:
    """Devices (N,) that send their vector, with their secrets and what they count, and the reply about the others."""

    known: Arrays
    classes: ClassCounts
    clock: ClockCounts
    reply: SecureSumsReply

    @staticmethod
    def from_inbox(cohort: Cohort, request: SecureSumsRequest) -> _StepMembers:
        """Open the shares of an inbox, before the first part of the vector."""
        inbox, step = request.secure[EVERYBODY], request.step
        known = known_of(cohort, Occasion(request.server_round, EVERYBODY), inbox)
        places, vanishes = cohort.places(inbox.devices), vanishing(cohort.scenario, request.server_round, inbox.devices)
        there = StepAttendance.from_cohort(cohort, step.question, request.time, known["neighbours"].shape[1])
        lost = vanishes == DropoutStage.VECTOR
        spent = there.spent(cohort, places, np.where(lost, _vector(cohort, step, 1).num_bytes, 0))
        stays = ~(spent.late | lost)
        classes, clock = ClassCounts.zeros(len(places)), ClockCounts.zeros(len(places))
        waits = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
        if step is step.question:  # what both parts of a step take is counted once, with its sums
            classes.devices[:] = stays
            classes.download_bytes[:], classes.upload_bytes[:] = spent.download_bytes, spent.upload_bytes
            clock.stragglers[:], clock.time_us[:], clock.energy_mj[:] = spent.late, spent.time_us, spent.energy_mj
            waits = there.waits(cohort, places, spent)
        aside = ~stays | cohort.scenario.privacy.noised  # the simulation's own count, where it is not in the sum
        cells, num_cells = cohort.classes[places[aside]], len(cohort.fleet.names)
        start = time.perf_counter()
        known |= _opened(cohort, request, known, inbox, stays)
        reply = SecureSumsReply(
            MaskedSum(inbox.devices[stays], np.zeros(0, np.uint32), np.zeros(0, np.uint64)),
            classes[aside].by_cell(cells, num_cells),
            clock[aside].by_cell(cells, num_cells),
            waits,
            time.perf_counter() - start,
        )
        return _StepMembers(known, classes[stays], clock[stays], reply)

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


def _opened(
    cohort: Cohort, request: SecureSumsRequest, known: Arrays, inbox: Inbox, stays: NDArray[np.bool_]
) -> Arrays:
    """Return what the devices that stay know once they have opened what their neighbours sealed for them."""
    occasion, masked = Occasion(request.server_round, EVERYBODY), cohort.scenario.secure_aggregation.masked
    held = [received_shares(known, occasion, i, inbox) if masked else {} for i in np.flatnonzero(stays).tolist()]
    mine = {name: known[name][stays] for name in ("devices", "private", "neighbours")}
    return mine | {"present": inbox.present[stays]} | held_arrays(held, inbox.present.shape[1])


def _stage(first: int) -> str:
    """Return the name of the stage that must be over before the part that begins with piece ``first``, so that each
    part is sent once, and in order.
    """
    return f"unit {first}"


__all__ = ["announce_step", "masked_sums"]
