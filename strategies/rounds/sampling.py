"""Seeded choice of the devices that take part in a round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel.privacy.sources import NoiseSource, SeededNoise
from fl_peel.randomness import device_uniforms


def sample_cohort(
    seed: int,
    server_round: int,
    devices: NDArray[np.int64],
    share: float,
    *,
    poisson: bool = False,
    source: NoiseSource | None = None,
) -> NDArray[np.int64]:
    """A share of the devices (at least one), in ascending order; poisson: each by its own coin, maybe none at all.
    source: of these coins, where they are to hide who takes part; by default the seed.

    Every device draws a number that depends on the seed, the round and itself; the smallest are in. So the choice does
    not depend on the order of devices or on the nodes that host them.
    """
    if poisson:
        coins = (source or SeededNoise(seed)).uniforms(("cohort", server_round), devices)
        return np.sort(devices[coins < share])
    size = max(1, round(share * len(devices)))
    if size >= len(devices):
        return np.sort(devices)
    draws = device_uniforms(seed, "cohort", server_round, devices=devices)
    return np.sort(devices[np.lexsort((devices, draws))[:size]])
