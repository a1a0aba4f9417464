"""The contract suite of bounded statistics, to be subclassed in your own tests.

::

    from fl_peel.exchange.contracts import StatisticContract
    from my_package import TopBlock

    class TestTopBlock(StatisticContract):
        statistic = TopBlock

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, rank_blocks
from fl_peel.data.interactions import UserItems
from fl_peel.exchange.bounded_statistic import BoundedStatistic, FloatArray, GroupShape, TrainedDevices, bounded
from fl_peel.kernels import FIXED_POINT
from fl_peel.ranking.top import top_rows
from fl_peel.training.group import train_group
from fl_peel.training.settings import LocalTraining
from fl_peel.training.update import LocalWork
from fl_peel.weighting.contracts import example_statistics


def example_devices(seed: int, num_devices: int = 9, num_items: int = 14) -> tuple[RankedBlocks, TrainedDevices]:
    """Devices of one user group after a round: some hold few blocks, one has no items."""
    rng = np.random.default_rng(seed)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), 4, 2)
    ranked = rank_blocks(
        layout, "fp32", rng.random(layout.num_blocks), rng.normal(size=(num_items, 4)).astype(np.float32)
    )
    who = np.repeat(np.arange(1, num_devices), 3)
    items = np.concatenate([rng.permutation(num_items)[:3] for _ in range(1, num_devices)]).astype(np.int32)
    train = UserItems.from_pairs(who, items, num_devices)
    cutoffs = rng.integers(1, layout.num_blocks + 1, num_devices)
    users = rng.normal(size=(num_devices, 4)).astype(np.float32)
    seeds = rng.integers(0, 2**62, num_devices).astype(np.uint64)
    users, update = train_group(LocalWork(ranked, cutoffs, users, train, seeds, LocalTraining()))
    best = top_rows(ranked, cutoffs, users, train, 5)
    return ranked, TrainedDevices(np.arange(num_devices), cutoffs, users, update, best, train, train)


class StatisticContract:
    """Contract suite of a statistic: subclass it and set ``statistic``; ``seeds`` sets how much is tested."""

    statistic: ClassVar[type[BoundedStatistic]]
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def values(self, seed: int) -> tuple[RankedBlocks, TrainedDevices, FloatArray]:
        """Return the contributions of example devices."""
        ranked, trained = example_devices(seed)
        return ranked, trained, np.asarray(self.statistic().values(ranked, trained), np.float64)

    def test_every_device_says_numbers_of_the_stated_shape(self) -> None:
        """Contributions have the stated shape, also in rounds without signals, when there are no top lists."""
        for seed in self.seeds:
            ranked, trained, values = self.values(seed)
            shape = (len(trained.devices), *self.statistic().shape(GroupShape.from_ranked(ranked)))
            assert values.shape == shape, f"said {values.shape}, stated {shape}"
            assert np.isfinite(values).all(), "numbers must be finite"
            silent = TrainedDevices(**{**vars(trained), "best": None})
            assert np.asarray(self.statistic().values(ranked, silent)).shape == shape, "another shape without signals"

    def test_the_shape_depends_on_what_everybody_knows_alone(self) -> None:
        """The shape depends on public quantities alone: devices with other items have the same shape."""
        shapes = {self.statistic().shape(GroupShape.from_ranked(self.values(seed)[0])) for seed in self.seeds}
        assert len(shapes) == 1, f"{shapes}: the shape would tell something of the devices"

    def test_a_device_speaks_for_itself(self) -> None:
        """The contribution of a device does not depend on other devices."""
        ranked, trained, values = self.values(0)
        for i in range(len(trained.devices)):
            one = TrainedDevices(
                trained.devices[[i]],
                trained.cutoffs[[i]],
                trained.users[[i]],
                trained.update,
                None if trained.best is None else trained.best[[i]],
                trained.train.select(np.array([i])),
                trained.validation.select(np.array([i])),
            )
            alone = np.asarray(self.statistic().values(ranked, one), np.float64)
            assert np.array_equal(alone[0], values[i]), "what a device says depends on the others"

    def test_no_contribution_passes_its_bound(self) -> None:
        """No contribution exceeds its bound after clipping."""
        for l1 in (False, True):
            for row in self.values(0)[2]:
                sums = bounded(row[None], 0.5, l1=l1) / FIXED_POINT
                assert (np.abs(sums).sum() if l1 else np.sqrt((sums**2).sum())) <= 0.5

    def test_the_server_takes_any_noised_sum(self) -> None:
        """The server accepts any noised sum, negative ones too; its statistics of the blocks stay finite."""
        for seed in self.seeds:
            ranked, trained, values = self.values(seed)
            statistics = example_statistics(seed, ranked.layout.num_blocks)
            before = copy.deepcopy(statistics)
            noised = values.sum(axis=0) + np.random.default_rng(seed).normal(0, 3, values.shape[1:])
            self.statistic().take(noised, 3.0, float(len(trained.devices)), ranked.blocks, statistics)
            for name, array in vars(statistics).items():
                assert np.isfinite(array).all(), f"{name} is no longer finite"
                assert array.shape == getattr(before, name).shape, f"{name} has another shape"
