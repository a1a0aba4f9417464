"""A part of a step on a node: what its devices contribute, with the noise that they add themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clients.node.cohort import Cohort
from clients.steps.attendance import StepParticipants
from clients.steps.node_devices import NodeDevices
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.privacy.stage1_noise import Stage1Scales
from fl_peel.steps.base import Arrays, Draw
from fl_peel.steps.contributors import unpacked_rows
from fl_peel.wire import StepReply, StepRequest


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
