"""The controller's outer step on noised signals: a tilt of its linear part, held back by how little the noise leaves.

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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

FloatArray = NDArray[np.float64]

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
