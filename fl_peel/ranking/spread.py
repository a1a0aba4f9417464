"""How a metric is spread over devices, from histograms: the recall of a single device never leaves it.

A device adds itself to one of 101 bins: bin 0 holds a metric of exactly 0, bin b the values in ((b - 1) / 100,
b / 100]. Bins of disjoint sets of devices add up. Each bin also holds the sum of its values, so that the mean over
whole bins is exact; where a quantile cuts through a bin, its devices count with the bin's mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.exchange.columns import Counters
from fl_peel.ranking.top import SUM_SCALE

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


__all__ = ["NUM_BINS", "Histogram"]
