"""The contract suite of mechanisms, to be subclassed in your own tests.

::

    from fl_peel import MechanismContract
    from my_package import StaircaseMechanism

    class TestStaircase(MechanismContract):
        mechanism = StaircaseMechanism()

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed. What
no test can show is that ``event`` tells the truth about ``draw``: that takes a proof.
"""

from __future__ import annotations

import math
import pickle
from typing import ClassVar

import numpy as np

from fl_peel.privacy.accounting import Schedule, calibrated, event_of, privacy_cost
from fl_peel.privacy.mechanisms import Mechanism, SystemBits


class MechanismContract:
    """Contract suite of a mechanism: subclass it and set ``mechanism``; ``multipliers`` and ``shares`` set how much is
    tested."""

    mechanism: ClassVar[Mechanism]
    multipliers: ClassVar[tuple[float, ...]] = (0.8, 2.0, 7.0)
    shares: ClassVar[tuple[float, ...]] = (0.05, 0.35, 0.6)
    delta: ClassVar[float] = 1e-5

    def test_it_says_what_it_is(self) -> None:
        """The mechanism has a place, a norm and a name, and is a value that travels to workers."""
        mechanism = self.mechanism
        assert mechanism.name not in ("", "none"), "a mechanism needs a name of its own"
        assert mechanism.where in ("server", "device"), "where is server or device"
        assert mechanism.norm in ("l2", "l1"), "norm is l2 or l1"
        assert pickle.loads(pickle.dumps(mechanism)) == mechanism, "a mechanism is a value: make it a frozen dataclass"

    def test_noise_has_mean_zero_and_the_stated_deviation(self) -> None:
        """Noise has mean 0 and the stated deviation: over 200,000 draws, within five standard errors (kurtosis of at
        most 10 assumed)."""
        for scale in (0.01, 3.0):
            drawn = self.mechanism.draw(np.random.default_rng(1), (400, 500), scale)
            assert drawn.shape == (400, 500), f"asked for (400, 500), got {drawn.shape}"
            std, error = self.mechanism.std(scale), math.sqrt(1 / drawn.size)
            assert abs(drawn.mean()) < 5 * std * error, "noise is biased"
            assert abs(drawn.std() / std - 1) < 5 * 1.5 * error, f"std({scale}) says {std}, drawn {drawn.std()}"

    def test_noise_comes_from_the_generator_alone(self) -> None:
        """The same generator gives the same noise, another one other noise."""
        first, again, other = (self.mechanism.draw(np.random.default_rng(seed), (50,), 1.0) for seed in (1, 1, 2))
        assert np.array_equal(first, again), "the same generator gave different noise"
        assert not np.array_equal(first, other), "different generators gave the same noise"

    def test_whole_noise_has_the_stated_deviation(self) -> None:
        """Integer noise of ``privacy.noise_source: system``, if implemented, has the stated deviation over 200,000
        draws."""
        if not self.mechanism.draws_whole:
            return
        for scale in (40, 3 << 30):
            drawn = self.mechanism.draw_whole(SystemBits(), 200_000, scale)
            assert drawn.shape == (200_000,), f"asked for (200000,), got {drawn.shape}"
            assert drawn.dtype == np.int64, f"whole numbers are int64, not {drawn.dtype}"
            std, error = self.mechanism.std(scale), math.sqrt(1 / drawn.size)
            assert abs(drawn.mean()) < 5 * std * error, "whole noise is biased"
            assert abs(drawn.std() / std - 1) < 5 * 1.5 * error, f"std({scale}) says {std}, drawn {drawn.std()}"

    def test_scale_grows_with_bound_and_multiplier(self) -> None:
        """The scale is proportional to the bound and to the multiplier."""
        for multiplier in self.multipliers:
            one = self.mechanism.scale(multiplier, 0.5, 1.0)
            assert math.isclose(self.mechanism.scale(multiplier, 0.5, 3.0), 3 * one), "scale is not linear in the bound"
            assert math.isclose(self.mechanism.scale(2 * multiplier, 0.5, 1.0), 2 * one), "nor in the multiplier"

    def test_more_noise_costs_less(self) -> None:
        """More noise costs strictly less, and some accountant gives a finite cost."""
        costs = [privacy_cost(self.mechanism.event(multiplier), self.delta).epsilon for multiplier in self.multipliers]
        assert all(math.isfinite(cost) for cost in costs), "no accountant knows the event"
        assert costs == sorted(costs, reverse=True), f"more noise costs more: {costs}"
        assert len(set(costs)) == len(costs), f"noise makes no difference: {costs}"

    def test_parts_together_cost_what_the_whole_costs(self) -> None:
        """Parts by ``of_share`` whose shares sum to 1 cost at most as much as one release, within 2%."""
        assert math.isclose(sum(self.shares), 1.0)
        for multiplier in self.multipliers:
            whole = privacy_cost(self.mechanism.event(multiplier), self.delta).epsilon
            schedule = Schedule(tuple((1, share) for share in self.shares))
            parts = privacy_cost(event_of(self.mechanism, multiplier, schedule), self.delta).epsilon
            assert parts <= 1.02 * whole, f"parts cost {parts}, the whole {whole}"

    def test_calibration_meets_its_target(self) -> None:
        """Calibration meets its target from below, by at most 5%."""
        schedule = Schedule(((4, 1.0),))
        for target in (1.0, 8.0):
            multiplier = calibrated(self.mechanism, schedule, target, self.delta)
            cost = privacy_cost(event_of(self.mechanism, multiplier, schedule), self.delta).epsilon
            assert 0.95 * target <= cost <= target, f"target {target}, spent {cost}"
