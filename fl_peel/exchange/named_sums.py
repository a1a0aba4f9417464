"""Sums over devices by part, in units of 1 / FIXED_POINT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NamedSums(dict[str, NDArray[np.int64]]):
    """updates (R, d), signals (K,), counts (R,), quantile (1,), and a user's statistics: those that are released.

    Those of disjoint sets of devices add up with ``+``.
    """

    @staticmethod
    def zeros(shapes: Mapping[str, tuple[int, ...]]) -> NamedSums:
        """Over nobody."""
        return NamedSums({part: np.zeros(shape, np.int64) for part, shape in shapes.items()})

    def __add__(self, other: Mapping[str, NDArray[Any]]) -> NamedSums:
        """Over both; ``other`` has the same parts."""
        return NamedSums({part: values + other[part] for part, values in self.items()})
