"""Bounded statistics of a user's own, and what devices know when they contribute to them.

A statistic says what a device would contribute; the framework bounds each device's contribution in the mechanism's
norm, adds up, noises and accounts for it as for every other part. Register one under the entry point group
``fl_peel.statistics`` and name it in a scenario::

    privacy:
      statistics:
        top-list-rows: {share: 0.1, norm: 1.0}

:class:`fl_peel.contracts.StatisticContract` tests it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.settings import STATISTICS
from fl_peel.training.update import GroupUpdate
from fl_peel.weighting.block_statistics import BlockStatistics


@dataclass(frozen=True)
class TrainedDevices:
    """Devices (M,) of one user group, those that count. cutoffs (M,): blocks each holds; users (M, d): new user
    embeddings, which stay on the devices; update: sums over them; best: (M, L) top rows, None in rounds without
    signals; train, validation: their items.
    """

    devices: NDArray[np.int64]
    cutoffs: NDArray[np.int64]
    users: NDArray[np.float32]
    update: GroupUpdate
    best: NDArray[np.int32] | None
    train: UserItems
    validation: UserItems


FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class GroupShape:
    """Shape of what a user group is sent: R ``rows`` of ``slices`` slices and ``dim`` columns, in K ``blocks``."""

    rows: int
    slices: int
    dim: int
    blocks: int

    @staticmethod
    def from_blocks(layout: BlockLayout, blocks: NDArray[np.int64]) -> GroupShape:
        """Return the shape of some blocks (K,), as the server sends them."""
        return GroupShape(layout.num_rows(blocks), layout.num_slices, layout.embedding_dim, len(blocks))

    @staticmethod
    def from_ranked(ranked: RankedBlocks) -> GroupShape:
        """Return the shape of ranked blocks, as a device sees them."""
        layout = ranked.layout
        return GroupShape(len(ranked.items), layout.num_slices, layout.embedding_dim, len(ranked.blocks))


class BoundedStatistic(ABC):
    """Base class of an additional noised statistic; a stateless value, made without arguments."""

    @abstractmethod
    def shape(self, group: GroupShape) -> tuple[int, ...]:
        """Return the shape of one device's contribution, from public quantities alone."""

    @abstractmethod
    def values(self, ranked: RankedBlocks, trained: TrainedDevices) -> FloatArray:
        """Return each device's contribution, (M, *shape), before clipping; finite."""

    @abstractmethod
    def take(
        self,
        total: FloatArray,
        std: float,
        num_devices: float,
        blocks: NDArray[np.int64],
        statistics: BlockStatistics,
    ) -> None:
        """Use a user group's noised sum (shape) on the server; it may change ``statistics`` in place. std: standard
        deviation of the noise on each number; num_devices: divisor of the sums; blocks: (K,) blocks that were sent."""


@lru_cache(maxsize=32)
def find_statistic(name: str) -> BoundedStatistic:
    """The statistic of this name.

    Raises:
        ScenarioError: no statistic has this name, or what is registered under it is none.
    """
    try:
        return STATISTICS.make(name, BoundedStatistic)  # type: ignore[type-abstract]
    except FieldError as error:
        raise ScenarioError(f"privacy.statistics: {error}") from None


def bounded(values: FloatArray, bound: float, *, l1: bool) -> NDArray[np.int64]:
    """Sum over devices of their contributions (M, ...), each scaled into the bound, in units of 1 / FIXED_POINT.

    Every device rounds towards zero, so that no norm passes the bound.
    """
    flat = values.reshape(len(values), -1)
    sizes = np.abs(flat).sum(axis=1) if l1 else np.sqrt((flat**2).sum(axis=1))
    scale = np.minimum(1.0, bound * (1 - 1e-12) / np.maximum(sizes, 1e-300))
    fixed = np.trunc(flat * scale[:, None] * FIXED_POINT).astype(np.int64)
    return np.asarray(fixed.sum(axis=0, dtype=np.int64)).reshape(values.shape[1:])
