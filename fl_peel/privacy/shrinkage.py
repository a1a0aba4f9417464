"""What the server makes of noised sums: shrunk towards what it knew before, by the variance of the noise.

Post-processing: it costs no privacy. The variance of the noise is public, the strength of the signal is not, but can be
estimated from the noised numbers themselves: of m numbers with noise of variance v, the mean square is on average the
mean square of the signal plus v. The positive-part James-Stein factor 1 - m v / sum of squares (Efron & Morris, JASA
1973; Stein's estimator) multiplies what is left of the signal. Where noise drowns the signal the factor is 0, and
what was known before stays.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SAFETY = 3.0
"""Standard deviations of pure noise's mean square that a signal must exceed before any of it is believed."""
BUCKET = 4096
"""Numbers that share a factor: enough for an estimate good to a few per cent, few enough to tell strong from weak."""


def shrink_factor(values: FloatArray, variance: float) -> float:
    """Factor in [0, 1] for noisy values (m,) around zero."""
    if variance <= 0:
        return 1.0
    total, m = float(np.square(values).sum()), values.size
    noise = m * variance * (1 + SAFETY * math.sqrt(2.0 / max(m, 1)))
    return max(0.0, 1.0 - noise / total) if total > 0 else 0.0


def shrunk(values: FloatArray, variance: float, bucket: int = BUCKET) -> FloatArray:
    """Values (R,) or (R, d) times the factor of their bucket: neighbouring rows, ``bucket`` numbers at a time.

    Rows come ranked, the most shown first, so that neighbours have signals of like strength.
    """
    width = int(np.prod(values.shape[1:], dtype=np.int64))
    rows = max(1, bucket // max(width, 1))
    result = np.empty_like(values)
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        result[start : start + rows] = shrink_factor(part, variance) * part
    return result


def posterior_rate(
    prior: FloatArray, prior_count: float, observed: FloatArray, count: float, noise_std: FloatArray
) -> FloatArray:
    """Rates (R,): the precision-weighted mean of a prior rate, known from ``prior_count`` devices, and a noised sum of
    ``count`` devices (Gaussian approximation of both; the prior's sampling variance is p (1 - p) / n).
    """
    spread = np.maximum(prior * (1 - np.minimum(prior, 1)), 1e-4)
    prior_variance = spread / max(prior_count, 1.0)
    variance = spread / max(count, 1.0) + (noise_std / max(count, 1.0)) ** 2
    weight = prior_variance / (prior_variance + variance)
    rate: FloatArray = np.maximum(prior + weight * (observed / max(count, 1.0) - prior), 0.0)
    return rate
