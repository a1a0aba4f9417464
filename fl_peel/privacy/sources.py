"""Where the randomness of privacy comes from, and the noise that devices or the server draw from it.

All that hides a device is drawn here: noise, shares of noise, answers by randomized response, coins of sampling.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import ScenarioError
from fl_peel.exchange.release import NamedSums, Part
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.mechanisms import (
    LARGEST_SCALE,
    Mechanism,
    SystemBits,
    discrete_gaussian,
    fixed_point,
    noise_share,
    uniforms,
)
from fl_peel.randomness import device_uniforms, rng_for
from fl_peel.scenario.scenario import Scenario

Ints = NDArray[np.int64]
Identity = tuple[str | int, ...]


class NoiseSource(ABC):
    """Source of the noise that hides devices. identity: purpose of a draw, named as in :mod:`fl_peel.randomness`."""

    @abstractmethod
    def noise(
        self, mechanism: Mechanism, shape: tuple[int, ...], scale: float, unit: float, identity: Identity
    ) -> Ints:
        """Return a mechanism's noise, in whole multiples of 1 / unit."""

    @abstractmethod
    def share(self, shape: tuple[int, ...], std: float, num_devices: int, unit: float, identity: Identity) -> Ints:
        """Return a device's share of normal noise, one of ``num_devices``: see
        :func:`fl_peel.privacy.mechanisms.noise_share`.
        """

    @abstractmethod
    def uniforms(self, identity: Identity, devices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each device, (N,)."""


@dataclass(frozen=True)
class SeededNoise(NoiseSource):
    """Noise from a seed and the identity alone: the same each time, for everybody who has the seed."""

    seed: int

    def noise(
        self, mechanism: Mechanism, shape: tuple[int, ...], scale: float, unit: float, identity: Identity
    ) -> Ints:
        """See :class:`NoiseSource`; drawn as floats, rounded."""
        return fixed_point(mechanism.draw(rng_for(self.seed, *identity), shape, scale), unit)

    def share(self, shape: tuple[int, ...], std: float, num_devices: int, unit: float, identity: Identity) -> Ints:
        """See :class:`NoiseSource`; drawn as floats, rounded."""
        return noise_share(rng_for(self.seed, *identity), shape, std, num_devices, unit)

    def uniforms(self, identity: Identity, devices: NDArray[np.integer]) -> NDArray[np.float64]:
        return device_uniforms(self.seed, *identity, devices=devices)


@dataclass(frozen=True)
class SystemNoise(NoiseSource):
    """Noise from the operating system: new each time, in whole numbers, exactly (:mod:`fl_peel.privacy.mechanisms`).

    Whoever draws for an identity keeps what was drawn: it cannot be had again.
    """

    def noise(
        self, mechanism: Mechanism, shape: tuple[int, ...], scale: float, unit: float, identity: Identity
    ) -> Ints:
        """See :class:`NoiseSource`; its scale is rounded up to a whole number of units.

        Raises:
            ScenarioError: more noise than is drawn exactly.
        """
        return mechanism.draw_whole(SystemBits(), math.prod(shape), whole_scale(scale, unit)).reshape(shape)

    def share(self, shape: tuple[int, ...], std: float, num_devices: int, unit: float, identity: Identity) -> Ints:
        """See :class:`NoiseSource`; likewise. Sums of discrete normal numbers of this size are as good as one (Kairouz,
        Liu and Steinke, ICML 2021, theorem 1: further away by less than exp(-scale^2)).

        Raises:
            ScenarioError: more noise than is drawn exactly.
        """
        scale = whole_scale(std / math.sqrt(num_devices), unit)
        return discrete_gaussian(SystemBits(), math.prod(shape), scale).reshape(shape)

    def uniforms(self, identity: Identity, devices: NDArray[np.integer]) -> NDArray[np.float64]:
        return uniforms(SystemBits(), len(devices))


def whole_scale(scale: float, unit: float) -> int:
    """Return a scale in whole units, rounded up.

    Raises:
        ScenarioError: the scale is larger than can be drawn exactly.
    """
    if scale * unit > LARGEST_SCALE:
        raise ScenarioError(
            f"privacy.noise_source: system draws no noise of scale {scale:.3g} (at most {LARGEST_SCALE / unit:.3g}); "
            "lower privacy.clipping.norm and the other bounds, or raise privacy.target_epsilon"
        )
    return max(1, math.ceil(scale * unit))


def source_of(scenario: Scenario) -> NoiseSource:
    """Return the noise source that a scenario names."""
    return SystemNoise() if scenario.privacy.noise_source == "system" else SeededNoise(scenario.seed)


def noise(
    mechanism: Mechanism,
    scales: dict[Part, float],
    sizes: dict[Part, tuple[int, ...]],
    identity: Identity,
    source: NoiseSource,
) -> NamedSums:
    """Noise on every number of the parts in ``scales``, of the given identity."""
    return NamedSums(
        {
            part: source.noise(mechanism, sizes[part], scale, FIXED_POINT, (*identity, part))
            for part, scale in scales.items()
        }
    )


def with_noise_shares(
    sums: NamedSums,
    stds: dict[Part, float],
    num_devices: int,
    source: NoiseSource,
    server_round: int,
    devices: NDArray[np.int64],
) -> NamedSums:
    """The sums after each of the devices (M,) added its share of normal noise, of which ``num_devices`` shares reach
    ``stds``: more devices, more noise. A share is named by the device and the round alone, not by nodes.
    """
    total = NamedSums({part: values.copy() for part, values in sums.items()})
    for device in devices.tolist():
        for part, values in total.items():
            identity = ("noise-share", server_round, device, part)
            values += source.share(values.shape, stds[part], num_devices, FIXED_POINT, identity)
    return total


def with_device_noise(
    sums: NamedSums,
    plan_scales: dict[Part, float],
    mechanism: Mechanism,
    source: NoiseSource,
    server_round: int,
    devices: NDArray[np.int64],
) -> NamedSums:
    """The sums after each of the devices (M,) added noise of its own to all of its contribution."""
    total = NamedSums({part: values.copy() for part, values in sums.items()})
    for device in devices.tolist():
        for part, values in total.items():
            identity = ("device-noise", server_round, device, part)
            values += source.noise(mechanism, values.shape, plan_scales[part], FIXED_POINT, identity)
    return total


def randomized_groups(
    groups: NDArray[np.int32], num_groups: int, epsilon: float, source: NoiseSource, devices: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Answers (N,) of devices that were asked for their user group (N,), by k-ary randomized response.

    The own group with probability e^epsilon / (e^epsilon + k - 1), else one of the others (Kairouz, Bonawitz & Ramage,
    ICML 2016): each device's answer is epsilon-differentially private by itself.
    """
    if num_groups < 2:
        return groups
    honest = 1.0 / (1.0 + (num_groups - 1) * math.exp(-epsilon))
    coin, drawn = (source.uniforms((what,), devices) for what in ("group-answer", "other-group"))
    other = 1 + np.floor(drawn * (num_groups - 1))
    return np.where(coin < honest, groups, (groups + other) % num_groups).astype(np.int32)
