"""Noise that devices themselves add to their contribution to stage 1: all of it, or their share of a sum's."""

from __future__ import annotations

from collections.abc import Callable

from clients.node.cohort import Cohort
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.privacy.stage1_noise import Stage1Noise, Stage1Scales
from fl_peel.wire import ChoiceRequest, SumsRequest

Noise = Callable[[int], Stage1Noise]
"""Function from a device's number to its noise."""


def noise_of(cohort: Cohort, request: SumsRequest | ChoiceRequest, announced: int | None = None) -> Noise | None:
    """Return the noise that devices add in a step, or None where they add nothing. announced: number of devices that
    began the step under secure aggregation, None in the clear. Noise is drawn by device and step: nodes and messages
    make no difference.
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


__all__ = ["Noise", "noise_of"]
