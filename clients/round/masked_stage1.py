"""A step of stage 1 under secure aggregation, on a node: each of its devices sends its part by itself, masked.

The contribution of a device is what a node that hosted it alone would answer in the clear: the same function of its one
row, with a word for whatever it might have contributed. All devices that are there in one of the step's windows are one
group. Keys, shares and their opening are those of a round of refinement (:mod:`clients.round.masked`).

A vector goes in parts, to spare whoever simulates many devices the memory; each part is sent once. Who vanishes or is
late sends none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.clock import spend
from clients.node.cohort import Cohort
from clients.round.masked import check_same, held_arrays, make_keys, neighbour_at, secrets_of
from clients.round.noised_stage1 import Noise, noise_of
from clients.round.secret_store import MASKED, SHARED, Arrays, SecretStore
from clients.round.stage1 import STEPS, StepAttendance, choice_panel, chosen, contributors, moments_by_group
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.pretraining.costs import COUNTED, Step, StepCost, StepShape, choice_cost, cost_of, hidden
from fl_peel.secure import device_protocol as protocol
from fl_peel.secure.device_protocol import HeldShares
from fl_peel.secure.keys import Occasion
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.protocol_plan import DropoutStage, needed_of, vanishing
from fl_peel.secure.stage1_vector import Part, StepVector, answer_of, moment_words, words_of
from fl_peel.secure.vector import CHECK
from fl_peel.wire import (
    EVERYBODY,
    Inbox,
    MaskedSum,
    SecureChoiceRequest,
    SecureKeysReply,
    SecureStepRequest,
    SecureSumsReply,
    SecureSumsRequest,
)

Values = dict[str, IntArray]
Contribute = Callable[[int, Noise | None], Values]
"""Function that returns the contribution of the device at a place, under the noise that it adds."""
PREPARED = ("devices", "neighbours", "present", "index", "shares")
"""Arrays, (N,) each, that devices keep of the step when their vector is sent; the directory is kept besides."""
SECRET = (*PREPARED, "private")
"""Arrays that devices keep between parts of the step; the directory and the public keys in it are kept besides."""


def announce_step(cohort: Cohort, request: SecureStepRequest) -> SecureKeysReply:
    """Devices that come, and have the memory, make their keys. What is left of earlier steps is removed."""
    SecretStore.from_node_folder(cohort.folder).forget()
    step = _MaskedStep(cohort, request)
    there = step.attendance(cohort.scenario.secure_aggregation.neighbours)
    clock = ClockCounts.zeros(len(cohort.devices))
    clock.sampled[:] = step.asked
    clock.unavailable[:] = step.asked & (there.window < 0)
    clock.excluded[:] = there.small
    groups = np.full(len(there.reached), EVERYBODY, np.int32)
    start = time.perf_counter()
    channel, mask = make_keys(cohort, request.server_round, there.reached, groups)
    spent = time.perf_counter() - start
    by_class = clock.by_cell(cohort.classes, len(cohort.fleet.names))
    return SecureKeysReply(cohort.devices[there.reached], groups, channel, mask, by_class, spent)


def masked_sums(cohort: Cohort, request: SecureSumsRequest) -> SecureSumsReply:
    """Return a part of the masked sum of a step other than a choice."""
    parts = {
        "pass": (request.first, request.first + (len(request.groups) or request.table.shape[1])),
        "moments": (request.first, request.first + len(request.groups)),
    }
    part = (0, 1) if request.counts_contributors else parts.get(request.step, (0, 1))
    start = SecureStepRequest(
        request.setting,
        request.server_round,
        request.time,
        request.step,
        request.columns,
        len(request.centroids),
        buckets=request.buckets,
        counts_contributors=request.counts_contributors,
    )
    step = _MaskedStep(cohort, start)

    def contribute(place: int, noise: Noise | None) -> Values:
        if request.counts_contributors:
            return {"contributors": contributors(cohort, np.array([place]), request)}
        return _CONTRIBUTIONS[request.step](cohort, np.array([place]), request, noise)

    return _answered(step, part, request, contribute)


def masked_choice(cohort: Cohort, request: SecureChoiceRequest) -> SecureSumsReply:
    """Return the masked votes for the filter that ranks each device's validation items best; a device without such
    items sends zeros, or noise.
    """

    def contribute(place: int, noise: Noise | None) -> Values:
        won, answered = chosen(cohort, np.array([place]), request, noise)
        if request.counts_contributors:
            return {"contributors": np.array([answered])}
        return {"won": won, "answered": np.array([answered])}

    step = SecureStepRequest(
        request.setting,
        request.server_round,
        request.time,
        "choice",
        columns=len(request.values),
        panel=request.panel,
        drawn=len(request.drawn),
        place=request.place,
        shapes=len(request.value_exponents),
        counts_contributors=request.counts_contributors,
    )
    return _answered(_MaskedStep(cohort, step), (0, 1), request, contribute)


@dataclass(frozen=True)
class _MaskedStep:
    """A step as the devices of a node see it."""

    cohort: Cohort
    request: SecureStepRequest

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Return which devices (N,) the step asks."""
        if self.request.panel:
            return choice_panel(self.cohort, self.request.panel)
        return np.ones(len(self.cohort.devices), np.bool_)

    @property
    def withheld(self) -> bool:
        """Return whether devices withhold counters, which carry no noise."""
        return self.cohort.scenario.privacy.noised

    def vector(self, devices: int) -> StepVector:
        """Return the layout of the vector that up to ``devices`` devices sum in this part of the step."""
        whole = self._sums_vector(devices)
        return whole.counting if self.request.counts_contributors else whole

    def _sums_vector(self, devices: int) -> StepVector:
        request, cohort = self.request, self.cohort
        items, classes = cohort.splits.num_items, 0 if self.withheld else len(cohort.fleet.names)
        bits = cohort.scenario.pretraining.sum_bits
        return StepVector(
            cast(Step, request.step),
            request.columns,
            request.groups,
            request.shapes,
            items,
            classes,
            devices,
            request.buckets,
            bits,
        )

    def attendance(self, neighbours: int) -> StepAttendance:
        """Return the devices that come, and what both parts of the step take of a device with that many neighbours."""
        request, splits = self.request, self.cohort.splits
        vector, counted = self._sums_vector(1), self.cohort.scenario.privacy.counts_contributors
        answer = answer_of(vector, neighbours)
        if counted and vector.step in COUNTED:
            answer += answer_of(vector.counting, neighbours)
        items, wanted = splits.train.counts(), splits.validation.counts()

        def cost(budgets: IntArray) -> StepCost:
            if request.step == "choice":
                sizes = (request.columns, request.drawn, request.place, request.shapes)
                step = choice_cost(*sizes, items, wanted, budgets, splits.num_items, counted=counted)
            else:
                asked = StepShape(
                    cast(Step, request.step),
                    request.columns,
                    request.groups,
                    all_rows=splits.num_items,
                    sketched=request.buckets > 0,
                    weighted=self.withheld,
                    counts_contributors=counted,
                )
                step = cost_of(asked, items, budgets)
            return hidden(step, answer, budgets)

        return StepAttendance.from_cohort(self.cohort, cost, request.time, self.asked)


@dataclass(frozen=True)
class _StepMembers:
    """Devices (N,) that send their vector, with their secrets and what they count, and the reply about the others."""

    known: Arrays
    classes: ClassCounts
    clock: ClockCounts
    reply: SecureSumsReply

    @staticmethod
    def from_inbox(step: _MaskedStep, inbox: Inbox) -> _StepMembers:
        """Open the shares of an inbox, before the first part of the vector."""
        cohort, request = step.cohort, step.request
        known = SecretStore.from_node_folder(cohort.folder).load(request.server_round, EVERYBODY, SHARED)
        here = np.minimum(np.searchsorted(known["devices"], inbox.devices), len(known["devices"]) - 1)
        known |= {name: known[name][here] for name in ("devices", "private", "neighbours")}
        check_same(Occasion(request.server_round, EVERYBODY), known, inbox.devices)
        places, vanishes = cohort.places(inbox.devices), vanishing(cohort.scenario, request.server_round, inbox.devices)
        there = step.attendance(known["neighbours"].shape[1])
        lost = vanishes == DropoutStage.VECTOR
        costs, rates = there.costs, cohort.rates.select(places)
        unsent = step.vector(1).num_bytes
        spent = spend(
            replace(rates, latency_s=costs.exchanges[places] * rates.latency_s),
            costs.download_bytes[places],
            costs.samples[places],
            costs.upload_bytes[places] - np.where(lost, unsent, 0),
            cohort.scenario.pretraining.deadline_s,
        )
        stays = ~(spent.late | lost)
        classes, clock = ClassCounts.zeros(len(places)), ClockCounts.zeros(len(places))
        classes.devices[:] = stays
        classes.download_bytes[:], classes.upload_bytes[:] = spent.download_bytes, spent.upload_bytes
        clock.stragglers[:], clock.time_us[:], clock.energy_mj[:] = spent.late, spent.time_us, spent.energy_mj
        waits = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
        np.maximum.at(waits, there.window[places], spent.time_us)
        aside = ~stays | step.withheld  # the simulation's own count, where it is not in the sum
        cells, num_cells = cohort.classes[places[aside]], len(cohort.fleet.names)
        if request.counts_contributors:  # what both parts of a step take is counted once, with its sums
            classes, clock, waits = ClassCounts.zeros(len(places)), ClockCounts.zeros(len(places)), np.zeros_like(waits)
        start = time.perf_counter()
        known |= _opened(step, known, inbox, stays)
        reply = SecureSumsReply(
            MaskedSum(inbox.devices[stays], np.zeros(0, np.uint32), np.zeros(0, np.uint64)),
            classes[aside].by_cell(cells, num_cells),
            clock[aside].by_cell(cells, num_cells),
            waits,
            time.perf_counter() - start,
        )
        return _StepMembers(known, classes[stays], clock[stays], reply)

    def head(self, i: int, device_class: int, num_classes: int) -> Values:
        """Return what device ``i`` counts, as words."""
        cell, one = np.array([device_class]), slice(i, i + 1)
        return {
            CHECK: np.ones(1, np.int64),
            "classes": self.classes[one].by_cell(cell, num_classes).stacked(),
            "clock": self.clock[one].by_cell(cell, num_classes).stacked(),
        }


def _opened(step: _MaskedStep, known: Arrays, inbox: Inbox, stays: NDArray[np.bool_]) -> Arrays:
    """Return what the devices that stay know once they have opened what their neighbours sealed for them."""
    occasion = Occasion(step.request.server_round, EVERYBODY)
    held: list[dict[int, HeldShares]] = []
    for i in np.flatnonzero(stays).tolist():
        slots = np.flatnonzero(inbox.present[i]).tolist()
        if not step.cohort.scenario.secure_aggregation.masked:
            held.append({})
            continue
        others = [neighbour_at(known, int(known["neighbours"][i, j])) for j in slots]
        sealed = [inbox.sealed[i, j].tobytes() for j in slots]
        shares = protocol.received_shares(secrets_of(known, i), occasion, int(inbox.devices[i]), others, sealed)
        held.append(dict(zip(slots, shares, strict=True)))
    mine = {name: known[name][stays] for name in ("devices", "private", "neighbours")}
    return mine | {"present": inbox.present[stays]} | held_arrays(held, inbox.present.shape[1])


def _answered(
    step: _MaskedStep, part: Part, request: SecureSumsRequest | SecureChoiceRequest, contribute: Contribute
) -> SecureSumsReply:
    """Return a part of the masked sum: each device in turn contributes its part and masks it."""
    cohort, start, (first, stop) = step.cohort, step.request, part
    store, num_classes = SecretStore.from_node_folder(cohort.folder), len(cohort.fleet.names)
    members = _StepMembers.from_inbox(step, request.secure[EVERYBODY]) if first == 0 else None
    known = store.load(start.server_round, EVERYBODY, _stage(first)) if members is None else members.known
    devices = known["devices"]
    vector = step.vector(len(known["directory"]))
    layout, offset = vector.part(part), vector.start(part)
    noise = noise_of(cohort, request, len(known["directory"]))
    total, places, protocol_s = MaskWords.zeros(*layout.num_words), cohort.places(devices), 0.0
    for i, place in enumerate(places.tolist()):
        values = contribute(place, noise)
        if members is not None:
            head = members.head(i, int(cohort.classes[place]), num_classes)
            values |= {CHECK: head[CHECK]} if step.withheld else head
        words = layout.words(values)
        began = time.perf_counter()
        masked = _masked(step, known, i, words, offset)
        total.narrow[:] += masked.narrow
        total.wide[:] += masked.wide
        protocol_s += time.perf_counter() - began
    last = stop == vector.units
    kept = {name: known[name] for name in (PREPARED if last else SECRET)} | {"directory": known["directory"]}
    if not last:
        kept |= {name: known[name] for name in ("channel_keys", "mask_keys")}
    store.save(start.server_round, EVERYBODY, MASKED if last else _stage(stop), kept)
    masked_sum = MaskedSum(devices, total.narrow, total.wide)
    if members is not None:
        return replace(members.reply, sum=masked_sum, protocol_s=members.reply.protocol_s + protocol_s)
    nothing = np.zeros(cohort.scenario.pretraining.open_rounds, np.int64)
    return SecureSumsReply(
        masked_sum, ClassCounts.zeros(num_classes), ClockCounts.zeros(num_classes), nothing, protocol_s
    )


def _stage(first: int) -> str:
    """Return the name of the stage that must be over before the part that begins with unit ``first``, so that each part
    is sent once, and in order.
    """
    return f"unit {first}"


def _masked(step: _MaskedStep, known: Arrays, i: int, words: MaskWords, start: int) -> MaskWords:
    """Mask a part of the vector of device ``i``. start: bytes of the vector that went before."""
    scenario = step.cohort.scenario
    if not scenario.secure_aggregation.masked:
        return words
    others = [neighbour_at(known, int(known["neighbours"][i, j])) for j in np.flatnonzero(known["present"][i]).tolist()]
    occasion, device = Occasion(step.request.server_round, EVERYBODY), int(known["devices"][i])
    needed, _ = needed_of(scenario, len(known["directory"]))
    return protocol.mask_vector(words, secrets_of(known, i), occasion, device, others, needed, start)


def _counted(cohort: Cohort, place: IntArray, request: SecureSumsRequest, noise: Noise | None) -> Values:
    return {"items": STEPS["counts"](cohort, place, request, noise)[EVERYBODY].items}


def _passed(cohort: Cohort, place: IntArray, request: SecureSumsRequest, noise: Noise | None) -> Values:
    return {"columns": STEPS["pass"](cohort, place, request, noise)[EVERYBODY].first.T}


def _grouped(cohort: Cohort, place: IntArray, request: SecureSumsRequest, noise: Noise | None) -> Values:
    sums = STEPS["groups"](cohort, place, request, noise)[EVERYBODY]
    return {"sizes": sums.sizes, "sums": sums.first}


def _moments(cohort: Cohort, place: IntArray, request: SecureSumsRequest, noise: Noise | None) -> Values:
    words = np.zeros((len(request.groups), moment_words(request.columns, cohort.splits.num_items)), np.int64)
    for group, moments in moments_by_group(cohort, place, request, noise, empty=False):
        words[group - request.first] = words_of(moments)
    return {"moments": words}


_CONTRIBUTIONS = {"counts": _counted, "pass": _passed, "groups": _grouped, "moments": _moments}

__all__ = ["announce_step", "masked_choice", "masked_sums"]
