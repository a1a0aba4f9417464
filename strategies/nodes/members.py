"""The devices of a federation by user group, and batches of groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
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


Item = TypeVar("Item")
EVALUATED_BYTES = 32 << 20
"""Bytes of blocks in one message to a node that evaluates. Flower's simulation delivers at most about ten messages a
second to a node.
"""


def batches(items: Iterable[Item], num_bytes: Callable[[Item], int], most_bytes: int) -> Iterator[list[Item]]:
    """Items in their order, in batches of at most ``most_bytes``; one that is larger is a batch of its own."""
    batch: list[Item] = []
    size = 0
    for item in items:
        mine = num_bytes(item)
        if batch and size + mine > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += mine
    if batch:
        yield batch


def packed_batches(
    groups: Iterable[int], pack: Callable[[int], wire.Arrays], most_bytes: int
) -> Iterator[dict[int, wire.Arrays]]:
    """User groups' blocks, packed one group after the other while batches are sent, as payloads of messages."""
    packed = ((group, *_packed_once(pack(group))) for group in groups)
    for batch in batches(packed, lambda one: one[1], most_bytes):
        yield {group: arrays for group, _, arrays in batch}


def _packed_once(arrays: wire.Arrays) -> tuple[int, wire.Arrays]:
    """Return the size of arrays, and the arrays as a message has them, which is all that memory holds then."""
    return sum(array.nbytes for array in arrays.values()), wire.packed_once(arrays)
