"""Devices that take part, and their user groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.columns import SUM_SCALE
from fl_peel.randomness import rng_for
from fl_peel.ranking.bootstrap import MOST_WEIGHT
from fl_peel.scenario.scenario import Scenario


@dataclass(frozen=True)
class Members:
    """Members of user groups: devices (N,) ascending, their user groups (N,), and each group's largest budget (G,)."""

    devices: NDArray[np.int64]
    groups: NDArray[np.int32]
    ceilings: NDArray[np.int64]
    class_names: tuple[str, ...]

    def groups_of(self, devices: NDArray[np.int64]) -> NDArray[np.int32]:
        """User groups of some of the devices (N,)."""
        return np.asarray(self.groups[np.searchsorted(self.devices, devices)])


def bounds_of(devices: int) -> dict[str, int]:
    """Return what so many devices can add up to, by the names that messages use: "hosted" for their number, "metrics"
    for recall or the like; "drawn" and "drawn metrics" for these in a replicate of the bootstrap.
    """
    metrics = devices * int(SUM_SCALE)
    return {
        "hosted": devices,
        "metrics": metrics,
        "drawn": devices * MOST_WEIGHT,
        "drawn metrics": metrics * MOST_WEIGHT,
    }


NUM_TRACED = 6
"""Devices whose budgets and kept blocks the report shows over rounds."""


def some_devices(scenario: Scenario, members: Members, what: str, count: int) -> NDArray[np.int64]:
    """A few devices, always the same for a seed."""
    return np.sort(rng_for(scenario.seed, what).permutation(members.devices)[:count])
