"""Noise on sums, by the server once, by every device or by devices in shares; and on answers which group one is in."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fl_peel.exchange.named_sums import NamedSums
from fl_peel.exchange.release import Part
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.mechanisms import Mechanism
from fl_peel.privacy.sources import Identity, NoiseSource


def noise(
    mechanism: Mechanism,
    scales: dict[Part, float],
    sizes: dict[Part, tuple[int, ...]],
    identity: Identity,
    source: NoiseSource,
) -> NamedSums:
    """Noise on every number of the parts in ``scales``, of the given identity."""
    return NamedSums(
        {
            part: source.noise(mechanism, sizes[part], scale, FIXED_POINT, (*identity, part))
            for part, scale in scales.items()
        }
    )


def with_noise_shares(
    sums: NamedSums,
    stds: dict[Part, float],
    num_devices: int,
    source: NoiseSource,
    server_round: int,
    devices: NDArray[np.int64],
) -> NamedSums:
    """The sums after each of the devices (M,) added its share of normal noise, of which ``num_devices`` shares reach
    ``stds``: more devices, more noise. A share is named by the device and the round alone, not by nodes.
    """
    total = NamedSums({part: values.copy() for part, values in sums.items()})
    for device in devices.tolist():
        for part, values in total.items():
            identity = ("noise-share", server_round, device, part)
            values += source.share(values.shape, stds[part], num_devices, FIXED_POINT, identity)
    return total


def with_device_noise(
    sums: NamedSums,
    plan_scales: dict[Part, float],
    mechanism: Mechanism,
    source: NoiseSource,
    server_round: int,
    devices: NDArray[np.int64],
) -> NamedSums:
    """The sums after each of the devices (M,) added noise of its own to all of its contribution."""
    total = NamedSums({part: values.copy() for part, values in sums.items()})
    sizes: dict[Part, tuple[int, ...]] = {part: values.shape for part, values in sums.items()}
    for device in devices.tolist():
        drawn = noise(mechanism, plan_scales, sizes, ("device-noise", server_round, device), source)
        for part, values in drawn.items():
            total[part] += values
    return total


def randomized_groups(
    groups: NDArray[np.int32], num_groups: int, epsilon: float, source: NoiseSource, devices: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Answers (N,) of devices that were asked for their user group (N,), by k-ary randomized response.

    The own group with probability e^epsilon / (e^epsilon + k - 1), else one of the others (Kairouz, Bonawitz & Ramage,
    ICML 2016): each device's answer is epsilon-differentially private by itself.
    """
    if num_groups < 2:
        return groups
    honest = 1.0 / (1.0 + (num_groups - 1) * math.exp(-epsilon))
    coin, drawn = (source.uniforms((what,), devices) for what in ("group-answer", "other-group"))
    other = 1 + np.floor(drawn * (num_groups - 1))
    return np.where(coin < honest, groups, (groups + other) % num_groups).astype(np.int32)
