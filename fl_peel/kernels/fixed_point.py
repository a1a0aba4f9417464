"""Numbers as whole multiples of 1 / FIXED_POINT, inside compiled loops."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

UNIT = 16777216.0  # FIXED_POINT, as a literal


@njit(nogil=True, cache=True, inline="always")
def fixed(value):
    return np.int64(math.floor(np.float64(value) * UNIT + 0.5))
