"""How sure is a mean over devices? A Poisson bootstrap: by sums alone, and paired across all that is ever measured.

In replicate b a device counts as often as a Poisson number of mean 1 says (Hanley and MacGibbon, "Creating
non-parametric bootstrap samples using Poisson frequencies", Computer Methods and Programs in Biomedicine 83, 2006;
Chamandy et al., "Estimating Uncertainty for Massive Data Streams", Google, 2012). The number follows from the device's
own number and b alone: not from the scenario's seed, the node that hosts it, or what is measured. So nodes add up
weighted metrics, in fixed point, and sums do not depend on who hosts whom; and any two figures of the same devices, of
one run or of several, are paired, because in each replicate both have the same devices. docs/statistics.md says what
the intervals mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.array_specs import ArraySpec
from fl_peel.columns import SUM_SCALE, IntArray
from fl_peel.figures import SeedsEstimate
from fl_peel.randomness import device_seeds

Doubles = NDArray[np.float64]

REPLICATES = 1000
"""Number of replicates in studies; a run has ``evaluation.bootstrap`` of them."""
LEVEL = 0.95
"""Confidence level of intervals."""
LIMITS = np.cumsum([1 / math.factorial(k) for k in range(12)]) / math.e
"""Distribution function of Poisson(1), by additions and a division alone: the same bits on every machine. A weight
above 12, of which there is one in 10**10, counts as 12.
"""
MOST_WEIGHT = len(LIMITS)
"""Largest weight of a device in a replicate."""
AT_ONCE = 1 << 19
"""Devices whose sums stay below 2**53, the whole numbers that floating point adds up exactly."""


@dataclass(frozen=True)
class Replicates:
    """Sums over devices under the weights of B replicates, of X figures: recall, ndcg (X, B) in units of 2**-32;
    devices (B,) that count. Those of disjoint sets of devices add up.
    """

    recall: Annotated[IntArray, ArraySpec(("X", "B"), least=0, most="drawn metrics")]
    ndcg: Annotated[IntArray, ArraySpec(("X", "B"), least=0, most="drawn metrics")]
    devices: Annotated[IntArray, ArraySpec(("B",), least=0, most="drawn")]

    @staticmethod
    def from_devices(
        devices: NDArray[np.integer], recall: Doubles, ndcg: Doubles, counted: NDArray[np.bool_], count: int
    ) -> Replicates:
        """Return the sums over single devices with numbers (N,) and metrics (N, X), where ``counted`` holds."""
        figures, seeds = recall.shape[1], weight_seeds(devices[counted])
        columns = [np.ones((len(seeds), 1)), recall[counted] * SUM_SCALE, ndcg[counted] * SUM_SCALE]
        values = np.rint(np.concatenate(columns, axis=1))
        whole = np.zeros((values.shape[1], count), np.int64)
        for first in range(0, len(seeds), AT_ONCE):
            part, sums = slice(first, first + AT_ONCE), np.zeros(whole.shape)
            kernels.weighted_sums(seeds[part], LIMITS, values[part], sums)
            whole += sums.astype(np.int64)
        return Replicates(whole[1 : 1 + figures], whole[1 + figures :], whole[0])

    @staticmethod
    def zeros(figures: int, count: int) -> Replicates:
        """Return the sums over no devices."""
        nothing = np.zeros((figures, count), np.int64)
        return Replicates(nothing, nothing, np.zeros(count, np.int64))

    def only(self, figures: slice) -> Replicates:
        """Return the sums of some of the figures."""
        return Replicates(self.recall[figures], self.ndcg[figures], self.devices)

    def __add__(self, other: Replicates) -> Replicates:
        """Return the sums over both sets of devices."""
        return Replicates(self.recall + other.recall, self.ndcg + other.ndcg, self.devices + other.devices)

    def means(self) -> tuple[Doubles, Doubles]:
        """Return mean recall and NDCG of every figure in every replicate, (X, B); NaN in one that drew no device."""
        with np.errstate(invalid="ignore"):
            return self.recall / SUM_SCALE / self.devices, self.ndcg / SUM_SCALE / self.devices


def weight_seeds(devices: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return the seeds (N,) of devices' weights, which follow from the devices' numbers alone."""
    return device_seeds(0, "bootstrap", devices=devices)


def interval(replicates: Doubles) -> tuple[float, float] | None:
    """Ends of the interval that the middle ``LEVEL`` of the replicates (B,) lies in; those without devices left out.
    None where there is no replicate, or one of them is no number.
    """
    drawn = replicates[~np.isnan(replicates)]
    if not len(drawn) or not np.isfinite(drawn).all():
        return None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def over(replicates: Doubles, base: Doubles) -> Doubles:
    """Return ratios (B,), paired: infinite where the base is 0, NaN where nobody was drawn."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base == 0, np.inf, replicates / base)


@dataclass(frozen=True)
class Sample:
    """A mean over devices with its bootstrap replicates (B,), of which those of one set of devices are paired. devices:
    how many it is of; by_seed: its values by seed, where it is a mean over seeds.
    """

    value: float
    drawn: Doubles
    devices: int
    by_seed: tuple[float, ...] = ()

    def estimate(self) -> SeedsEstimate:
        """Return the mean with its interval."""
        return estimate(self.value, self.drawn, self.devices, self.by_seed)

    def less(self, base: Sample, *, same_seeds: bool = True) -> SeedsEstimate:
        """Return the difference to another mean. same_seeds: whether values by seed are paired, too."""
        by_seed = [one - other for one, other in self._pairs(base, same_seeds)]
        return estimate(self.value - base.value, self.drawn - base.drawn, min(self.devices, base.devices), by_seed)

    def over(self, base: Sample, *, same_seeds: bool = True) -> SeedsEstimate | None:
        """Return the ratio to another mean; None where that is 0, in any seed. same_seeds: as for :meth:`less`."""
        if base.value <= 0 or not all(base.by_seed):
            return None
        by_seed = [one / other for one, other in self._pairs(base, same_seeds)]
        ratios = over(self.drawn, base.drawn)
        return estimate(self.value / base.value, ratios, min(self.devices, base.devices), by_seed)

    def _pairs(self, base: Sample, same_seeds: bool) -> Iterable[tuple[float, float]]:
        return zip(self.by_seed, base.by_seed, strict=True) if same_seeds else ()


def estimate(value: float, replicates: Doubles, num_devices: int, by_seed: Sequence[float] = ()) -> SeedsEstimate:
    """A figure with what its replicates (B,) and, where there are several seeds, its values by seed say of it.

    One seed: the percentile interval over devices. Several: devices and seeds vary independently, so that squared
    standard errors add up, that of devices from the replicates and that of seeds from ``by_seed``; the interval is of
    Student's t with degrees of freedom by Satterthwaite (Biometrics Bulletin 2(6), 1946). p: of the same t.
    """
    drawn = replicates[~np.isnan(replicates)]
    if not len(drawn) or not np.isfinite(drawn).all() or num_devices < 2:
        return SeedsEstimate(value, by_seed=tuple(by_seed))
    parts = [(float(drawn.var()), num_devices - 1)]
    spread = None
    if len(by_seed) > 1:
        spread = float(np.std(by_seed, ddof=1))
        parts.append((spread**2 / len(by_seed), len(by_seed) - 1))
    total = sum(part for part, _ in parts)
    if total == 0:
        p_value = 1.0 if value == 0 else 0.0
        return SeedsEstimate(value, value, value, None, p_value, spread, tuple(by_seed))
    from scipy import special  # a tenth of a second, for results of several seeds alone

    freedom = total**2 / sum(part**2 / count for part, count in parts)
    error = math.sqrt(total)
    p_value = float(2 * special.stdtr(freedom, -abs(value) / error))
    ends = interval(drawn)
    assert ends is not None
    if spread is not None:
        half = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * error
        ends = value - half, value + half
    return SeedsEstimate(value, *ends, None, p_value, spread, tuple(by_seed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values of simultaneous tests, corrected (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, largest = list(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
