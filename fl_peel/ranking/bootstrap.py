"""Intervals by bootstrap over devices, and comparisons that are paired device by device.

In replicate b a device counts as often as a Poisson number of mean 1 says (Hanley and MacGibbon, "Creating
non-parametric bootstrap samples using Poisson frequencies", Computer Methods and Programs in Biomedicine 83, 2006;
Chamandy et al., "Estimating Uncertainty for Massive Data Streams", Google, 2012). The number follows from the device's
own number and b alone: not from the scenario's seed, the node that hosts it, or what is measured. So nodes add up
weighted metrics, in fixed point, and sums do not depend on who hosts whom; and any two figures of the same devices, of
one run or of several, are paired, because in each replicate both have the same devices. docs/statistics.md says what
the intervals mean.

Each device compares the two on its own validation items; what is added up is the difference of its recalls and that
squared. Groups are small and their effects alike, so each is judged with what the others say: random effects as in
DerSimonian and Laird, "Meta-analysis in clinical trials" (Controlled Clinical Trials 7(3), 1986). With the same effect
in all groups this is one decision for everybody; with different ones each group has its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.array_specs import SUM_SCALE, ArraySpec, Counters, IntArray
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
        nothing = np.zeros((figures, count), np.int64)
        return Replicates(nothing, nothing, np.zeros(count, np.int64))

    def only(self, figures: slice) -> Replicates:
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


def interval(replicates: Doubles, num_devices: int) -> tuple[float, float] | None:
    """Ends of the interval over devices: percentiles of the replicates (B,), those without devices left out. None where
    there is no replicate, one of them is no number, or fewer than two devices count.

    Percentiles lie as far out as Student's t with n - 1 degrees of freedom lies in a normal distribution, since
    replicates of the mean of n normal numbers are normal (the expanded percentile interval of Hesterberg, "What
    Teachers Should Know about the Bootstrap", The American Statistician 69(4), 2015; without its factor of the square
    root of n / (n - 1), since replicates with Poisson weights do not vary less than means do).
    """
    drawn = replicates[~np.isnan(replicates)]
    if not len(drawn) or not np.isfinite(drawn).all() or num_devices < 2:
        return None
    from scipy import special  # a tenth of a second that runs without intervals do not need

    tail = float(special.ndtr(special.stdtrit(num_devices - 1, (1 - LEVEL) / 2)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
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

    One seed: :func:`interval` over devices. Several: devices and seeds vary independently, so that squared
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
    ends = interval(drawn, num_devices)
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


SURE = 0.95
"""Confidence that groups differ at all, which is needed before each has an effect of its own."""


@dataclass(frozen=True)
class PairedSums(Counters):
    """Over devices, by user group (G,): how many they are; recall with the second table less that with the first, and
    this squared, in units of 2**-32.
    """

    devices: IntArray
    difference: IntArray
    square: IntArray

    @staticmethod
    def from_devices(groups: NDArray[np.integer], num_groups: int, difference: Doubles) -> PairedSums:
        """Return the sums over single devices (N,)."""
        single = PairedSums(
            np.ones(len(groups), np.int64),
            np.rint(difference * SUM_SCALE).astype(np.int64),
            np.rint(difference**2 * SUM_SCALE).astype(np.int64),
        )
        return single.by_cell(groups, num_groups)

    def mean(self) -> Doubles:
        """Return the mean difference (G,), 0 where there is no device."""
        return self.difference / SUM_SCALE / np.maximum(self.devices, 1)

    def variance(self) -> Doubles:
        """Return the variance of that mean, (G,); infinite where there is no device.

        A device's difference is taken to vary within each group as it does within all of them: where most devices see
        no difference, a small group's own variance says more of its mean than of its noise, and weights that follow it
        would favour groups in which nothing happened.
        """
        count = float(self.devices.sum())
        within = float((self.square / SUM_SCALE - self.devices * self.mean() ** 2).sum())
        groups = float((self.devices > 0).sum())
        spread = max(within, 0.0) / max(count - groups, 1.0)
        variance: Doubles = np.divide(
            spread, self.devices, out=np.full(len(self.devices), np.inf), where=self.devices > 0
        )
        return variance


@dataclass(frozen=True)
class Effects:
    """Estimated gain of each user group, given the sums of all groups: mean and standard deviation (G,)."""

    mean: Doubles
    deviation: Doubles

    @staticmethod
    def from_sums(sums: PairedSums) -> Effects:
        """Return the effects under a random-effects model; 0 with no certainty where no device was heard."""
        means, variances = sums.mean(), sums.variance()
        heard = np.isfinite(variances) & (variances > 0)
        if not heard.any():
            return Effects(np.zeros_like(means), np.zeros_like(means))
        m, v = means[heard], variances[heard]
        weights = 1.0 / v
        fixed = float((weights * m).sum() / weights.sum())
        excess = float((weights * (m - fixed) ** 2).sum()) - (len(m) - 1)
        scale = float(weights.sum() - (weights**2).sum() / weights.sum())
        # Cochran's Q, about normal for many groups: where they differ no more than chance lets them, the effect is one
        differ = excess > NormalDist().inv_cdf(SURE) * np.sqrt(2.0 * max(len(m) - 1, 1))
        between = excess / scale if differ else 0.0
        weights = 1.0 / (v + between)
        common, certainty = float((weights * m).sum() / weights.sum()), 1.0 / float(weights.sum())
        share, own = np.zeros((2, len(means)))  # of a group's own mean in what is believed of it; its variance
        share[heard], own[heard] = between / (v + between), v
        deviation = np.sqrt(share**2 * own + (1 - share) ** 2 * (between + certainty))
        return Effects(share * means + (1 - share) * common, deviation)

    def better(self, confidence: float) -> NDArray[np.bool_]:
        """Return for each group (G,) whether its gain is above 0 with that one-sided confidence."""
        return np.asarray(self.mean > NormalDist().inv_cdf(confidence) * self.deviation)


# ---- How a metric is spread over devices, from histograms: the recall of a single device never leaves it
# A device adds itself to one of 101 bins: bin 0 holds a metric of exactly 0, bin b the values in ((b - 1) / 100, b /
# 100]. Bins of disjoint sets of devices add up. Each bin also holds the sum of its values, so that the mean over
# whole bins is exact; where a quantile cuts through a bin, its devices count with the bin's mean.


NUM_BINS = 101


@dataclass(frozen=True)
class Histogram(Counters):
    """counts: (..., NUM_BINS) devices; sums: (..., NUM_BINS) of their values, in units of 1 / SUM_SCALE. Both int64."""

    counts: NDArray[np.int64]
    sums: NDArray[np.int64]

    @staticmethod
    def from_devices(
        cells: NDArray[np.integer], num_cells: int, values: NDArray[np.float64], counted: NDArray[np.bool_]
    ) -> Histogram:
        """Histograms (num_cells, NUM_BINS) of devices (N,), each in its cell, by values in 0..1, where ``counted``."""
        bins = np.ceil(values[counted] * 100 - 1e-9).astype(np.int64)
        places = cells[counted].astype(np.int64) * NUM_BINS + bins
        counts = np.bincount(places, minlength=num_cells * NUM_BINS).astype(np.int64)
        sums = np.zeros(num_cells * NUM_BINS, np.int64)
        np.add.at(sums, places, np.rint(values[counted] * SUM_SCALE).astype(np.int64))
        return Histogram(counts.reshape(num_cells, NUM_BINS), sums.reshape(num_cells, NUM_BINS))

    def worst_mean(self, share: float) -> float | None:
        """Mean value of the worst ``share`` of the devices of one histogram (NUM_BINS,); None without devices."""
        devices = int(self.counts.sum())
        if not devices:
            return None
        wanted = share * devices
        before = np.cumsum(self.counts) - self.counts
        taken = np.clip(wanted - before, 0, self.counts)  # (NUM_BINS,) devices of each bin among the worst
        means = self.sums / np.maximum(self.counts, 1) / SUM_SCALE
        return float((taken * means).sum() / wanted)

    def zero_share(self) -> float | None:
        """Share of the devices of one histogram whose value is 0; None without devices."""
        devices = int(self.counts.sum())
        return float(self.counts[0] / devices) if devices else None
