"""Noise on sums: by the server once, by every device, or by devices in shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel.exchange.release import Part
from fl_peel.exchange.sums import Sums
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.mechanisms import Mechanism, fixed_point, noise_share
from fl_peel.randomness import rng_for


def noise(
    mechanism: Mechanism,
    scales: dict[Part, float],
    sizes: dict[Part, tuple[int, ...]],
    identity: tuple[str | int, ...],
    seed: int,
) -> Sums:
    """Noise on every number of the parts in ``scales``, drawn from seeds of the given identity.

    Seeds make a simulation repeatable. Whoever knows them can subtract the noise: a deployment must draw it from the
    operating system's randomness.
    """
    return Sums(
        {
            part: fixed_point(mechanism.draw(rng_for(seed, *identity, part), sizes[part], scale), FIXED_POINT)
            for part, scale in scales.items()
        }
    )


def with_noise_shares(
    sums: Sums,
    stds: dict[Part, float],
    num_devices: int,
    seed: int,
    server_round: int,
    devices: NDArray[np.int64],
) -> Sums:
    """The sums after each of the devices (M,) added its share of normal noise, of which ``num_devices`` shares reach
    ``stds``: more devices, more noise. The share depends on the device and the round alone, not on nodes.
    """
    total = Sums({part: values.copy() for part, values in sums.items()})
    for device in devices.tolist():
        for part, values in total.items():
            rng = rng_for(seed, "noise-share", server_round, device, part)
            values += noise_share(rng, values.shape, stds[part], num_devices, FIXED_POINT)
    return total


def with_device_noise(
    sums: Sums,
    plan_scales: dict[Part, float],
    mechanism: Mechanism,
    seed: int,
    server_round: int,
    devices: NDArray[np.int64],
) -> Sums:
    """The sums after each of the devices (M,) added noise of its own to all of its contribution."""
    total = Sums({part: values.copy() for part, values in sums.items()})
    sizes: dict[Part, tuple[int, ...]] = {part: values.shape for part, values in sums.items()}
    for device in devices.tolist():
        drawn = noise(mechanism, plan_scales, sizes, ("device-noise", server_round, device), seed)
        for part, values in drawn.items():
            total[part] += values
    return total


__all__ = ["noise", "with_device_noise", "with_noise_shares"]
