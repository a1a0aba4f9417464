"""Is one table better than another for the devices of a user group, beyond noise?

Each device compares the two on its own validation items; what is added up is the difference of its recalls and that
squared. Groups are small and their effects alike, so each is judged with what the others say: random effects as in
DerSimonian and Laird, "Meta-analysis in clinical trials" (Controlled Clinical Trials 7(3), 1986). With the same effect
in all groups this is one decision for everybody; with different ones each group has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fl_peel.columns import SUM_SCALE, Counters, IntArray

Doubles = NDArray[np.float64]


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
        """Histograms (num_cells, NUM_BINS) of devices (N,), each in its cell, by values from 0 to 1; only where
        ``counted`` holds.
        """
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
