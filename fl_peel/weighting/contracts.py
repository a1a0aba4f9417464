"""The contract suite of block selectors, to be subclassed in your own tests.

::

    from fl_peel import SelectorContract
    from my_package import newest_first

    class TestNewestFirst(SelectorContract):
        selector = staticmethod(newest_first)

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np

from fl_peel.blocks.ranked_blocks import ranking
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.weighting.selectors import BlockSelector, FloatArray


def example_statistics(seed: int, num_blocks: int) -> BlockStatistics:
    """Statistics with many ties and zeros, as a small user group has them."""
    rng = np.random.default_rng(seed)
    group = BlockStatistics(
        popularity=(rng.integers(0, 4, num_blocks) / 8).astype(np.float32),
        shown=(rng.integers(0, 4, num_blocks) / 8).astype(np.float32),
        global_popularity=(rng.integers(0, 9, num_blocks) / 64).astype(np.float32),
        loss=np.where(rng.random(num_blocks) < 0.5, 0, rng.random(num_blocks)).astype(np.float32),
        energy=rng.exponential(size=num_blocks).astype(np.float32),
    )
    exposure = rng.integers(0, 9, num_blocks).astype(np.float64)
    group.add_signals(exposure * rng.random(num_blocks), exposure, 0.5)
    return group


class SelectorContract:
    """Contract suite of a selector: subclass it and set ``selector``; ``sizes``, ``seeds`` set how much is tested."""

    selector: ClassVar[BlockSelector]
    sizes: ClassVar[tuple[int, ...]] = (1, 2, 7, 300)
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2**31)

    def weights(self, statistics: BlockStatistics, seed: int = 0, user_group: int = 0) -> FloatArray:
        """Return the weights of the selector under test."""
        return type(self).selector(statistics, seed, user_group)

    def test_one_finite_non_negative_weight_per_block(self) -> None:
        """Weights are finite and non-negative, one per block, also for groups with ties and for one without
        observations."""
        for size in self.sizes:
            nothing = np.zeros(size, np.float32)
            unknown = BlockStatistics(nothing, nothing, nothing, nothing, nothing)
            for statistics in (*(example_statistics(seed, size) for seed in self.seeds), unknown):
                weights = np.asarray(self.weights(statistics))
                assert weights.shape == (size,), f"{size} blocks gave weights of shape {weights.shape}"
                assert np.isfinite(weights).all(), "weights must be finite"
                assert (weights >= 0).all(), "weights must not be negative"

    def test_the_same_question_has_the_same_answer(self) -> None:
        """Weights depend neither on earlier calls nor on the state of global randomness."""
        for seed in self.seeds:
            statistics = example_statistics(seed, 50)
            first = self.weights(statistics, seed, 3)
            self.weights(example_statistics(seed + 1, 50), seed + 1, 4)
            np.random.seed(seed % 97)  # noqa: NPY002
            assert np.array_equal(self.weights(copy.deepcopy(statistics), seed, 3), first), "the answer changed"

    def test_the_statistics_stay_as_they_are(self) -> None:
        """The statistics are not changed, since other selectors read them too."""
        statistics = example_statistics(0, 50)
        before = copy.deepcopy(statistics)
        self.weights(statistics)
        for name, values in vars(before).items():
            assert np.array_equal(getattr(statistics, name), values), f"{name} was changed"

    def test_weights_make_a_ranking_of_all_blocks(self) -> None:
        """The ranking by weight has every block once."""
        order = ranking(np.asarray(self.weights(example_statistics(0, 300))))
        assert np.array_equal(np.sort(order), np.arange(300)), "not a ranking of all blocks"
