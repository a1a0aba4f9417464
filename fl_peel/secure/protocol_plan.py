"""What a scenario asks of secure aggregation, as both sides work it out: widths, bytes, neighbours, who vanishes when.

Bell et al. (CCS 2020), section 3: with every device masked towards k neighbours rather than towards all, work per
device grows with k. A device's secrets are shared among its k neighbours, t of which must answer to open either one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fl_peel.randomness import device_uniforms
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import ID_BYTES, INDEX_BYTES, SEALED_BYTES
from fl_peel.secure.keys import KEY_BYTES, SHARE_BYTES


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


EXCHANGES = 4
"""Times a device answers the server in a round: keys, shares, vector, opened shares."""


class DropoutStage(IntEnum):
    """Stage of the protocol before which a device drops out, where a study makes devices drop out."""

    NEVER = 0
    SHARES = 1
    VECTOR = 2
    OPENING = 3


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes of one device in a round beside blocks: to it, from it, and of the latter its vector alone."""

    download: int
    upload: int
    vector: int

    @staticmethod
    def from_sizes(neighbours: int, vector: int) -> DeviceBytes:
        """Return the bytes of a device with so many neighbours and a vector of so many bytes.

        Down: number and two keys, then number and sealed shares of every neighbour, and whether each survived. Up: two
        keys, sealed shares, the vector, and a number and a share for each neighbour.
        """
        down = neighbours * (ID_BYTES + 2 * KEY_BYTES + ID_BYTES + SEALED_BYTES + ID_BYTES + 1)
        up = 2 * KEY_BYTES + neighbours * (ID_BYTES + SEALED_BYTES + ID_BYTES + INDEX_BYTES + SHARE_BYTES)
        return DeviceBytes(down, up + vector, vector)


def needed_of(scenario: Scenario, num_devices: int) -> tuple[int, int]:
    """Return how many neighbours of a device must answer, and how many devices of a group must send vectors."""
    part = scenario.secure_aggregation
    neighbours = num_neighbours(num_devices, part.neighbours)
    return answers_needed(neighbours, part.threshold), answers_needed(num_devices, part.threshold)


def vanishing(scenario: Scenario, server_round: int, devices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return when each device (N,) is lost, as :class:`DropoutStage`: by ``dropout_share``, stages alike."""
    share = scenario.secure_aggregation.dropout_share
    lost = device_uniforms(scenario.seed, "secure-dropout", server_round, devices=devices) < share
    stage = device_uniforms(scenario.seed, "secure-dropout-stage", server_round, devices=devices)
    return np.where(lost, 1 + np.floor(3 * stage).astype(np.int64), int(DropoutStage.NEVER))
