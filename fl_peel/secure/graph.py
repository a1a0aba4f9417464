"""Who is whose neighbour in secure aggregation: a random k-regular graph over the devices of a user group.

Bell et al. (CCS 2020), section 3: with every device masked towards k neighbours rather than towards all, work per
device grows with k. A device's secrets are shared among its k neighbours, t of which must answer to open either one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def num_neighbours(devices: int, wanted: int) -> int:
    """Neighbours of each of ``devices`` devices: ``wanted`` (even), or all the others where there are no more."""
    return min(wanted, devices - 1)


def answers_needed(count: int, share: float) -> int:
    """How many of ``count`` must answer: a share of them, rounded up, and always more than half.

    With more than half, no two disjoint sets of neighbours could open a device's two secrets, one each.
    """
    return max(count // 2 + 1, math.ceil(share * count - 1e-9))


def neighbour_graph(devices: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Neighbours (N, k) of N devices, as places 0..N-1, ascending; the relation is symmetric.

    Devices are set on a ring in random order; each has the k / 2 next on either side (a Harary graph, so that it stays
    connected while fewer than k devices leave).
    """
    k = num_neighbours(devices, wanted)
    if k == devices - 1:
        others = np.tile(np.arange(devices), (devices, 1))
        return others[~np.eye(devices, dtype=bool)].reshape(devices, k)
    assert k % 2 == 0, "a sparse graph needs an even number of neighbours"
    ring = rng.permutation(devices)
    place = np.argsort(ring)
    offsets = np.concatenate([np.arange(1, k // 2 + 1), -np.arange(1, k // 2 + 1)])
    return np.sort(ring[(place[:, None] + offsets) % devices], axis=1).astype(np.int64)
