"""Mechanisms: where noise is added, how it is drawn, exactly and in whole numbers, and what one release costs.

A sampler of floating-point numbers leaves holes between its numbers, from which noise can be told (Mironov, "On
Significance of the Least Significant Bits for Differential Privacy", CCS 2012). The algorithms here are those of
Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020: rejection from a discrete
Laplace distribution, by coins that come true with probability exp(-x) for a rational x. A coin is a uniform number that
lies below exp(-x) or does not. Doubles tell which wherever it lies further away than they can err (``MARGIN``);
elsewhere more of its bits are drawn, and compared to exp(-x) in as many decimals as it takes. So the distributions are
exact, at the speed of NumPy: about 0.1 microseconds a number. (OpenDP 0.16, a library that has them, takes 12 to 20;
the devices of ``fl-peel run private`` draw 5e8 numbers.)

Every device's contribution has a norm of at most ``bound`` (L2 or L1, as the mechanism asks), in each part that is
released. A mechanism adds independent noise of standard ``scale = multiplier x bound x range`` to every number of a
part. To add one, write a subclass and register it under the entry point group ``fl_peel.mechanisms``; it is then a
value of ``privacy.mechanism``. :class:`fl_peel.contracts.MechanismContract` tests it.

Two notions of neighbours (dp-accounting's names in parentheses): a server that adds noise to sums protects a device
against the same run in which that device sent nothing but zeros (REPLACE_SPECIAL; Kairouz et al., arXiv 2103.00039,
Definition 1.1), so a contribution moves by ``bound``; a device that adds noise itself hides which of any two
contributions it sent, and these lie up to 2 x ``bound`` apart.

What a run spends is (epsilon, delta) of every noised release together, by dp-accounting. Two accountants, of which the
tighter counts: Renyi differential privacy (Mironov, CSF 2017) and privacy loss distributions (Koskela et al., AISTATS
2020), both upper bounds. Noise is calibrated by bisection on the same figure.

A device is in one user group, whose sums are the only ones it is in: releases of different groups compose in parallel
and cost what one group's cost. Rounds compose. What a round releases (updates, signals, counts, the clipping quantile)
are parts of one vector: see :meth:`fl_peel.privacy.mechanisms.Mechanism.of_share`.

Sampling. ``poisson``: each device is in a round by its own coin with probability q, so that each round is a Poisson
subsampled release of that q, for whoever does not see which devices take part. ``fixed``: no amplification is claimed;
the choice of devices does not depend on data, so a device pays for the rounds it is in, and the figure is that of the
device that is in most.
"""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fl_peel.errors import FieldError, ScenarioError
from fl_peel.scenario.settings import LARGEST_MULTIPLIER, MECHANISMS, NO_MECHANISM

if TYPE_CHECKING:
    from dp_accounting import DpEvent  # takes a second, for what the server alone computes
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Doubles = NDArray[np.float64]
Rational = tuple[int, int]
"""Numerator and denominator."""

MARGIN = 2.0**-40
"""Distance from exp(-x) beyond which doubles decide on which side of it a number lies: their errors add up to 2^-48."""
LARGEST_SCALE = 1 << 56
"""Largest scale of noise, in units: the largest number that is ever drawn stays within 63 bits."""
KNOWN_BITS = 53
"""Bits of a uniform number that a double holds."""
BATCH = 1 << 15
"""Numbers that are tried at once: enough to vectorize, few enough for a processor's cache."""
_POWERS = np.exp(-np.arange(1.0, 45.0))


class Bits(Protocol):
    """A source of random bits."""

    def words(self, count: int) -> Words:
        """Return independent uniform words, (count,)."""


class SystemBits:
    """Random bits of AES-256 in counter mode, under a key of the system's randomness that is kept nowhere else."""

    def __init__(self) -> None:
        self._stream = Cipher(AES256(os.urandom(32)), CTR(os.urandom(16))).encryptor()

    def words(self, count: int) -> Words:
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)


def discrete_laplace(bits: Bits, count: int, scale: int) -> Ints:
    """Return numbers k (count,) with probability proportional to exp(-|k| / scale); 1 <= scale <= ``LARGEST_SCALE``."""
    assert 1 <= scale <= LARGEST_SCALE, scale
    return _collected(count, lambda tries: _laplace(bits, tries, scale))


def discrete_gaussian(bits: Bits, count: int, scale: int) -> Ints:
    """Return numbers k (count,) with probability proportional to exp(-k^2 / (2 scale^2)).

    scale: 1 <= scale <= ``LARGEST_SCALE``.
    """
    assert 1 <= scale <= LARGEST_SCALE, scale
    return _collected(count, lambda tries: _gaussian(bits, tries, scale))


def uniforms(bits: Bits, count: int) -> Doubles:
    """Return numbers in [0, 1), (count,), in steps of 2^-53."""
    return _known(bits.words(count))


def _collected(count: int, tried: Callable[[int], Ints]) -> Ints:
    """Enough of what comes out of rejection; more than a third of the tries do."""
    numbers: Ints = np.empty(count, np.int64)
    done = 0
    while done < count:
        some = tried(min(BATCH, 5 * (count - done) // 2 + 8))[: count - done]
        numbers[done : done + len(some)] = some
        done += len(some)
    return numbers


def _laplace(bits: Bits, tries: int, scale: int) -> Ints:
    """A number below ``scale``, kept with probability exp(-number / scale), and ``scale`` for each coin of exp(-1)."""
    below = bits.words(tries) & np.uint64((1 << (scale - 1).bit_length()) - 1)
    below = below[below < scale].astype(np.int64)
    below = below[_comes_true(bits, below / scale, lambda i: (int(below[i]), scale))]
    words = bits.words(len(below))
    sizes = below + scale * _times(bits, words)
    negative = (words & np.uint64(1)) == 1  # no bit of a uniform number's
    numbers: Ints = np.where(negative, -sizes, sizes)[(sizes > 0) | ~negative]
    return numbers


def _gaussian(bits: Bits, tries: int, scale: int) -> Ints:
    """Discrete Laplace numbers, of scale t near s, kept with probability exp(-(|k| - s^2 / t)^2 / (2 s^2))."""
    proposal = 1 << max(0, round(float(np.log2(scale))))
    proposed = _laplace(bits, tries, proposal)
    away = np.abs(proposed) / scale - scale / proposal

    def exact(i: int) -> Rational:
        return (abs(int(proposed[i])) * proposal - scale**2) ** 2, 2 * (scale * proposal) ** 2

    return proposed[_comes_true(bits, away * away / 2, exact)]


def _comes_true(bits: Bits, exponents: Doubles, exact: Callable[[int], Rational]) -> NDArray[np.bool_]:
    """Coins (N,) that come true with probability exp(-x). exponents: x, as doubles have it; exact: all of it."""
    words = bits.words(len(exponents))
    known, chance = _known(words), np.exp(-exponents)
    true = known < chance
    for i in np.flatnonzero(np.abs(known - chance) <= MARGIN).tolist():
        true[i] = _Uniform(bits, words[i]).is_below(*exact(i))
    return true


def _times(bits: Bits, words: Words) -> Ints:
    """How many coins of exp(-1) come true before one does not, (N,): the k with exp(-k - 1) <= uniform < exp(-k)."""
    known = _known(words)
    times, fewest = (np.searchsorted(-_POWERS, -known - sign * MARGIN) for sign in (0.0, 1.0))
    for i in np.flatnonzero(fewest != np.searchsorted(-_POWERS, -known + MARGIN)).tolist():
        uniform, times[i] = _Uniform(bits, words[i]), 0
        while uniform.is_below(int(times[i]) + 1, 1):
            times[i] += 1
    return times.astype(np.int64)


def _known(words: Words) -> Doubles:
    return (words >> np.uint64(64 - KNOWN_BITS)).astype(np.float64) * 2.0**-KNOWN_BITS


class _Uniform:
    """A uniform number in [0, 1) of which only the first bits are drawn, as many as somebody asked for."""

    def __init__(self, bits: Bits, word: np.uint64) -> None:
        self._bits, self._top, self._length = bits, int(word) >> (64 - KNOWN_BITS), KNOWN_BITS

    def is_below(self, over: int, under: int) -> bool:
        """Return whether the number is below exp(-over / under)."""
        while True:
            low, high = between(over, under, digits=10 + self._length // 3)
            if self._top + 1 <= low * 2**self._length:
                return True
            if self._top >= high * 2**self._length:
                return False
            self._top, self._length = (self._top << 64) | int(self._bits.words(1)[0]), self._length + 64


def between(over: int, under: int, *, digits: int) -> tuple[Fraction, Fraction]:
    """Bounds of exp(-over / under), closer with more digits; Python's decimal exponential is rounded correctly."""
    least, most = (
        Context(digits, rounding, MIN_EMIN, MAX_EMAX).divide(Decimal(over), Decimal(under))
        for rounding in (ROUND_FLOOR, ROUND_CEILING)
    )
    near = Context(digits, ROUND_HALF_EVEN, MIN_EMIN, MAX_EMAX)
    low, high = near.next_minus(near.exp(most.copy_negate())), near.next_plus(near.exp(least.copy_negate()))
    return Fraction(low), Fraction(high)


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
        """Return the privacy event of a release; ``multiplier``: of the largest distance of two contributions."""

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
        distribution must be exact, with the cost of ``event``: see :mod:`fl_peel.privacy.mechanisms`."""
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
        from dp_accounting import GaussianDpEvent

        return GaussianDpEvent(multiplier)

    def of_share(self, multiplier: float, share: float) -> float:
        """Precisions add up: sum of 1 / z_i^2 is 1 / z^2."""
        return multiplier / math.sqrt(share)

    def std(self, scale: float) -> float:
        return scale

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatArray:
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
        return math.sqrt(2.0) * scale

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> FloatArray:
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


SMALLEST_MULTIPLIER = 0.1
"""Calibration gives no less, even where a target would allow it: such a target protects nobody."""
NO_PRIVACY = 200.0
"""Epsilons beyond this are those of Renyi divergence alone: they protect nobody, to whatever digit."""
TOLERANCE = 1e-3
"""Calibrated noise is at most this much, relatively, above the least that meets the target."""


@dataclass(frozen=True)
class Schedule:
    """How often what is released. rounds: (times, share of a full release) of the different kinds of rounds, summed
    over a device's rounds; sampling: probability of a device's coin, 1 where it is in all of these rounds for certain;
    certain: likewise, of what a device is in whatever its coin says.
    """

    rounds: tuple[tuple[int, float], ...]
    sampling: float = 1.0
    certain: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PrivacyCost:
    """The tighter epsilon at a delta, whose accountant it is of, and both (None: no answer); or infinity."""

    epsilon: float
    delta: float
    accountant: str
    rdp: float | None
    pld: float | None


def event_of(mechanism: Mechanism, multiplier: float, schedule: Schedule) -> DpEvent:
    """All of a run's noised rounds."""
    from dp_accounting import ComposedDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    events: list[DpEvent] = []
    kinds = [(schedule.sampling, kind) for kind in schedule.rounds] + [(1.0, kind) for kind in schedule.certain]
    for sampling, (times, share) in kinds:
        if times == 0 or share == 0:
            continue
        one = mechanism.event(mechanism.of_share(multiplier, share))
        if sampling < 1:
            one = PoissonSampledDpEvent(sampling, one)
        events.append(SelfComposedDpEvent(one, times))
    return ComposedDpEvent(events)


def privacy_cost(event: DpEvent, delta: float, *, discretization: float = 1e-4) -> PrivacyCost:
    """Epsilon of an event at ``delta`` against a neighbour that sends nothing but zeros."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    relation = NeighboringRelation.REPLACE_SPECIAL
    rdp = _epsilon(RdpAccountant(neighboring_relation=relation), event, delta)
    pld = None
    if rdp is None or rdp < NO_PRIVACY:  # the grid of losses would not fit in memory
        pld = _epsilon(PLDAccountant(relation, discretization), event, delta)
    figures = {"RDP": rdp, "PLD": pld}
    known = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    best = min(known, key=lambda name: known[name]) if known else "none"
    return PrivacyCost(known.get(best, math.inf), delta, best, known.get("RDP"), known.get("PLD"))


def cost_of(
    mechanism: Mechanism, multiplier: float, schedule: Schedule, delta: float, *, discretization: float = 1e-4
) -> PrivacyCost:
    """What a run spends: :func:`privacy_cost` of :func:`event_of`; kept, as it takes up to a second."""
    # a plug-in may compare its values without being frozen: then it has no hash to be kept by
    ask = _kept_cost.__wrapped__ if type(mechanism).__hash__ is None else _kept_cost
    return ask(mechanism, multiplier, schedule, delta, discretization)


@lru_cache(maxsize=1024)
def _kept_cost(
    mechanism: Mechanism, multiplier: float, schedule: Schedule, delta: float, discretization: float
) -> PrivacyCost:
    return privacy_cost(event_of(mechanism, multiplier, schedule), delta, discretization=discretization)


def _epsilon(accountant: RdpAccountant | PLDAccountant, event: DpEvent, delta: float) -> float | None:
    if not accountant.supports(event):
        return None
    with _quiet():
        accountant.compose(event)
        return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning for every order of Renyi divergence that is left out: the others bound epsilon as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def calibrated(mechanism: Mechanism, schedule: Schedule, epsilon: float, delta: float) -> float:
    """The least noise multiplier, to within ``TOLERANCE``, whose run spends at most ``epsilon`` at ``delta``.

    Raises:
        ScenarioError: no noise that leaves anything meets the target.
    """

    def cost(multiplier: float) -> float:
        # fine enough a grid for the losses of this target: large ones need not be resolved to 1e-4
        step = min(1e-3, max(1e-4, epsilon * 1e-4))
        return cost_of(mechanism, multiplier, schedule, delta, discretization=step).epsilon

    low, high = SMALLEST_MULTIPLIER, 1.0
    while cost(high) > epsilon:
        low, high = high, min(4 * high, LARGEST_MULTIPLIER)
        if low == LARGEST_MULTIPLIER:
            raise ScenarioError(
                f"privacy.target_epsilon: {epsilon:g} at delta {delta:g} cannot be met over the rounds of this run "
                f"with noise below {LARGEST_MULTIPLIER:g} times the clipping bound; raise it, or lower "
                "refinement.rounds"
            )
    if low == SMALLEST_MULTIPLIER and cost(high / 4) <= epsilon:
        high /= 4
    low = max(low, high / 4)
    while high / low > 1 + TOLERANCE:
        middle = math.sqrt(low * high)
        if cost(middle) > epsilon:
            low = middle
        else:
            high = middle
    return high
