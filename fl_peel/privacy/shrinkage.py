"""What the server makes of noised sums and signals, by the variance of their noise.

Post-processing: it costs no privacy. The variance of the noise is public, the strength of the signal is not, but can be
estimated from the noised numbers themselves: of m numbers with noise of variance v, the mean square is on average the
mean square of the signal plus v. The positive-part James-Stein factor 1 - m v / sum of squares (Efron & Morris, JASA
1973; Stein's estimator) multiplies what is left of the signal. Where noise drowns the signal the factor is 0, and
what was known before stays.

Adam turns the smallest gradient into a full step, and so noise into steps. Here, instead, the coefficients theta of the
controller's features are estimated with everything known about the noise. Hits h of a user group's blocks are
multinomial with probability p proportional to exposure x exp(theta . x); with x centred under p, the score

    g = sum over groups of X^T h,    E[g] = H (theta* - theta),    H = sum of T X^T diag(p) X   (T: hits in all)
    Cov[g] = C = sum of X^T diag(v) X + H                               (v: variance of the noise; and of sampling)

and the prior theta* ~ N(theta_0, SPREAD^2) give the posterior mode, by Gauss-Newton steps. A few coefficients for all
blocks of all groups see sums in which the noise of single blocks averages out; and where noise drowns even those, the
mode is theta_0: the order of blocks that pretraining gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

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


SPREAD = 1.0
"""Standard deviation of the prior of a coefficient, of a feature of standard deviation 1."""
CERTAIN = 3.0
"""Standard deviations of its noise that the number of all hits must be above zero: else nothing is known."""
STEPS = 8


@dataclass(frozen=True)
class NoisedSignals:
    """One user group's blocks (K,): standardized features (K, F), exposure > 0, noised hits, their noise's variance."""

    features: FloatArray
    exposure: FloatArray
    hits: FloatArray
    variance: FloatArray


def tilted(groups: Sequence[NoisedSignals], start: FloatArray, *, spread: float = SPREAD) -> FloatArray:
    """Coefficients (F,), given those that they start from (F,)."""
    total = sum(float(group.hits.sum()) for group in groups)
    weight = sum(float(group.exposure.sum()) for group in groups)
    variance = sum(float(group.variance.sum()) for group in groups)
    if weight <= 0 or total <= CERTAIN * variance**0.5:
        return start.copy()
    total -= variance / total  # James-Stein: positive noise is not a hit
    theta, prior = start.copy(), np.eye(len(start)) / spread**2
    for _ in range(STEPS):
        score = np.zeros(len(start))
        fisher, noise = np.zeros((len(start),) * 2), np.zeros((len(start),) * 2)
        for group in groups:
            p = softmax(group.features @ theta + np.log(group.exposure))
            centred = group.features - p @ group.features  # (K, F)
            score += centred.T @ group.hits
            fisher += total * float(group.exposure.sum()) / weight * (centred.T * p) @ centred
            noise += (centred.T * group.variance) @ centred
        # a feature that does not vary has neither score nor noise: the ridge keeps its coefficient where it is
        covariance = noise + fisher + 1e-9 * np.eye(len(start))
        precise = fisher @ np.linalg.inv(covariance)
        step = np.linalg.solve(precise @ fisher + prior, precise @ score - prior @ (theta - start))
        theta = theta + np.clip(step, -1.0, 1.0)
    return theta
