"""The privacy of one Gaussian mechanism in closed form, which accountants are compared with."""

import math

from scipy.stats import norm


def analytic_gaussian_delta(multiplier: float, epsilon: float) -> float:
    """Least delta of a Gaussian mechanism of sensitivity 1 at ``epsilon`` (Balle & Wang, ICML 2018, theorem 8)."""
    half = 1 / (2 * multiplier)
    return float(norm.cdf(half - epsilon * multiplier) - math.exp(epsilon) * norm.cdf(-half - epsilon * multiplier))
