"""The server's optimizer: mean updates to rows of one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass
class ServerOptimizer:
    """Applies mean updates to rows of one table (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).

    ``sgd`` adds learning_rate x update; ``adam`` and ``adagrad`` keep moments per table entry. Entries that no device
    changed stay as they are, and so do their moments.
    """

    name: Literal["sgd", "adam", "adagrad"]
    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-3
    _first: FloatArray | None = field(default=None, repr=False)
    _second: FloatArray | None = field(default=None, repr=False)

    def apply(
        self, table: FloatArray, items: NDArray[np.integer], update: FloatArray, changed: NDArray[np.bool_]
    ) -> None:
        """Change rows ``items`` (R,) of ``table`` (I, d) in place by ``update`` (R, d), where ``changed`` (R, d)."""
        if self.name == "sgd":
            step = update
        else:
            if self._first is None or self._second is None:
                self._first, self._second = np.zeros_like(table), np.zeros_like(table)
            first, second = self._first[items], self._second[items]
            if self.name == "adagrad":
                first, second = update, second + update**2
            else:
                first = self.beta_1 * first + (1 - self.beta_1) * update
                second = self.beta_2 * second + (1 - self.beta_2) * update**2
            step = first / (np.sqrt(second) + np.float32(self.epsilon))
            self._first[items] = np.where(changed, first, self._first[items])
            self._second[items] = np.where(changed, second, self._second[items])
        table[items] += np.where(changed, np.float32(self.learning_rate) * step, np.float32(0))
