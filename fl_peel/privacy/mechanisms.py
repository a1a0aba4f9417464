"""Mechanisms: where noise is added, how it is drawn, and what one release costs.

Every device's contribution has a norm of at most ``bound`` (L2 or L1, as the mechanism asks), in each part that is
released. A mechanism adds independent noise of standard ``scale = multiplier x bound x range`` to every number of a
part. To add one, write a subclass and register it under the entry point group ``fl_peel.mechanisms``; it is then a
value of ``privacy.mechanism``. :class:`fl_peel.privacy.contracts.MechanismContract` tests it.

Two notions of neighbours (dp-accounting's names in parentheses): a server that adds noise to sums protects a device
against the same run in which that device sent nothing but zeros (REPLACE_SPECIAL; Kairouz et al., arXiv 2103.00039,
Definition 1.1), so a contribution moves by ``bound``; a device that adds noise itself hides which of any two
contributions it sent, and these lie up to 2 x ``bound`` apart.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.privacy.exact import Bits, discrete_gaussian, discrete_laplace
from fl_peel.scenario.registered import MECHANISMS, NO_MECHANISM

if TYPE_CHECKING:
    from dp_accounting import DpEvent  # takes a second, for what the server alone computes

FloatArray = NDArray[np.float64]


class Mechanism(ABC):
    """Base class of a privacy mechanism; a stateless value."""

    name: ClassVar[str]
    where: ClassVar[Literal["server", "device"]]
    """Who adds noise: the server once to each user group's sums, or every device to its own contribution."""
    norm: ClassVar[Literal["l2", "l1"]]
    """Norm in which contributions are bounded."""
    divides: ClassVar[bool] = False
    """Whether the noise is normal, so that devices can add it in shares to a sum that nobody sees before
    (:func:`noise_share`).
    """

    @property
    def range(self) -> float:
        """Largest distance of two contributions, in clipping bounds: see the module's note on adjacency."""
        return 1.0 if self.where == "server" else 2.0

    @abstractmethod
    def event(self, multiplier: float) -> DpEvent:
        """Return the privacy event of one release whose noise has ``multiplier`` times the largest distance of two
        contributions."""

    @abstractmethod
    def of_share(self, multiplier: float, share: float) -> float:
        """Return the multiplier of a part with ``share`` (0 < share <= 1) of a release of ``multiplier``. The parts of
        all shares, released together, must cost what one release of ``multiplier`` costs."""

    @abstractmethod
    def std(self, scale: float) -> float:
        """Return the standard deviation of noise of this scale."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatArray:
        """Draw independent noise of this scale, from a seed."""

    def draw_whole(self, bits: Bits, count: int, scale: int) -> NDArray[np.int64]:
        """Draw independent integer noise (count,) of this integer scale, for ``privacy.noise_source: system``. Its
        distribution must be exact, with the cost of ``event``: see :mod:`fl_peel.privacy.exact`."""
        raise NotImplementedError

    @property
    def draws_whole(self) -> bool:
        """Whether :meth:`draw_whole` is implemented."""
        return type(self).draw_whole is not Mechanism.draw_whole

    def scale(self, multiplier: float, share: float, bound: float) -> float:
        """Return the scale of the noise on a part with this share and bound."""
        return self.of_share(multiplier, share) * bound * self.range


@dataclass(frozen=True)
class Gaussian(Mechanism):
    """Normal noise; scale: its standard deviation (Dwork et al., EUROCRYPT 2006; Balle & Wang, ICML 2018)."""

    norm = "l2"
    divides = True

    def event(self, multiplier: float) -> DpEvent:
        """A Gaussian mechanism."""
        from dp_accounting import GaussianDpEvent

        return GaussianDpEvent(multiplier)

    def of_share(self, multiplier: float, share: float) -> float:
        """Precisions add up: sum of 1 / z_i^2 is 1 / z^2."""
        return multiplier / math.sqrt(share)

    def std(self, scale: float) -> float:
        """The scale itself."""
        return scale

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatArray:
        """Normal numbers."""
        return rng.normal(0.0, scale, shape)

    def draw_whole(self, bits: Bits, count: int, scale: int) -> NDArray[np.int64]:
        """Discrete Gaussian: as private as normal numbers (Canonne, Kamath & Steinke, NeurIPS 2020, theorem 4)."""
        return discrete_gaussian(bits, count, scale)


@dataclass(frozen=True)
class CentralGaussian(Gaussian):
    """Normal noise once on the sum over a user group's devices (McMahan et al., ICLR 2018): added by the server or,
    where it may learn nothing but sums, by the devices, in shares (Kairouz, Liu & Steinke, ICML 2021).
    """

    name = "central-gaussian"
    where = "server"


@dataclass(frozen=True)
class LocalGaussian(Gaussian):
    """Every device adds normal noise before anything leaves it."""

    name = "local-gaussian"
    where = "device"


@dataclass(frozen=True)
class LocalLaplace(Mechanism):
    """Every device adds Laplace noise (Dwork et al., TCC 2006); contributions are bounded in L1, scale: b."""

    name = "local-laplace"
    where = "device"
    norm = "l1"

    def event(self, multiplier: float) -> DpEvent:
        """A Laplace mechanism: the loss of a vector whose L1 distance is 1 is at most that of one number at 1."""
        from dp_accounting import LaplaceDpEvent

        return LaplaceDpEvent(multiplier)

    def of_share(self, multiplier: float, share: float) -> float:
        """Epsilons add up: sum of 1 / b_i is 1 / b."""
        return multiplier / share

    def std(self, scale: float) -> float:
        """sqrt(2) b."""
        return math.sqrt(2.0) * scale

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatArray:
        """Laplace numbers."""
        return rng.laplace(0.0, scale, shape)

    def draw_whole(self, bits: Bits, count: int, scale: int) -> NDArray[np.int64]:
        """Discrete Laplace: as private as Laplace numbers (Ghosh, Roughgarden & Sundararajan, STOC 2009)."""
        return discrete_laplace(bits, count, scale)


_BUILT_IN: dict[str, Mechanism] = {
    mechanism.name: mechanism for mechanism in (CentralGaussian(), LocalGaussian(), LocalLaplace())
}


def find_mechanism(name: str) -> Mechanism | None:
    """The mechanism of this name; None for ``none``.

    Raises:
        ScenarioError: no mechanism has this name, or a plug-in's entry point is none.
    """
    if name == NO_MECHANISM or name in _BUILT_IN:  # looking for plug-ins reads the metadata of every package
        return _BUILT_IN.get(name)
    try:
        return MECHANISMS.make(name, Mechanism)  # type: ignore[type-abstract]
    except FieldError as error:
        raise ScenarioError(f"privacy.mechanism: {error}") from None


def fixed_point(values: NDArray[np.float64], unit: float) -> NDArray[np.int64]:
    """Values in whole multiples of 1 / unit, int64; ones beyond its range (a multiplier out of all bounds) saturate."""
    limit = float(1 << 62)
    return np.rint(np.clip(values * unit, -limit, limit)).astype(np.int64)


def noise_share(
    rng: np.random.Generator, shape: tuple[int, ...], std: float, num_devices: int, unit: float
) -> NDArray[np.int64]:
    """One device's share of the normal noise on a sum that nobody sees before it is complete (secure aggregation).

    In whole multiples of 1 / unit. The shares of ``num_devices`` devices add up to a standard deviation of ``std``, but
    for the rounding. Give the fewest devices that a sum may be of: when more answer, there is more noise, never less.
    """
    return fixed_point(rng.normal(0.0, std / math.sqrt(num_devices), shape), unit)
