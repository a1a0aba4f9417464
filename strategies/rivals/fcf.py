"""FCF: federated collaborative filtering for implicit feedback (Ammad-ud-din et al., arXiv 1901.09888).

A device solves for its user factor by least squares, its interactions at a confidence of 1 + alpha and all others at 1
(Hu, Koren and Volinsky, ICDM 2008), and sends the gradient of its loss for every row of the item table. The server adds
these up and takes an Adam step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_peel.kernels.rivals import add_gradients, solve_users
from strategies.rivals.federated import (
    NUMBER_BYTES,
    UNITS,
    FederatedContext,
    FederatedRound,
    IntArray,
    ServedTables,
)

BETAS = (0.1, 0.99)
"""Decay rates of Adam's moments, as in the paper."""
EPSILON = 1e-8
START_SCALE = 0.01


@dataclass(frozen=True)
class FcfSetting:
    """Settings of FCF. alpha: confidence of an interaction, less 1; l2: of both factors; learning_rate: of Adam."""

    alpha: float
    l2: float
    learning_rate: float


GRID = tuple(FcfSetting(alpha, l2, 0.02) for alpha, l2 in product((1.0, 4.0), (1.0, 3.0, 10.0, 30.0)))


@dataclass(frozen=True)
class FcfServer:
    """Item table (I, d), Adam's moments of its gradient, and steps taken."""

    table: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    steps: int = 0


@dataclass(frozen=True)
class Gradients:
    """The sum of what some devices send: a gradient (I, d) each, which is dense, as every row has its part in it.

    Row i of a device's gradient is (c_i s_i - (1 + alpha) p_i) x with x its factor, s_i = x . y_i, and confidence c_i,
    preference p_i. All that adds up: moments (d, d), of which row i takes its product with y_i, and rows (I, d), what
    interactions add; in units of 1 / UNITS. num_bytes: (N,) of each device's own gradient.
    """

    moments: IntArray
    rows: IntArray
    num_bytes: IntArray

    def sum_gradients(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of the gradients (I, d)."""
        return (table @ self.moments + self.rows) / UNITS

    def __add__(self, other: Self) -> Self:
        """Add the gradients of two disjoint sets of devices."""
        return type(self)(
            self.moments + other.moments, self.rows + other.rows, np.concatenate([self.num_bytes, other.num_bytes])
        )


@dataclass(frozen=True)
class Fcf:
    """The server has the item table; devices keep nothing but their interactions."""

    name: str = "fcf"
    grid: tuple[FcfSetting, ...] = GRID

    def server(self, context: FederatedContext, setting: FcfSetting) -> FcfServer:
        table = context.start_table("items", context.num_items, context.dim, START_SCALE).astype(np.float64)
        return FcfServer(table, np.zeros_like(table), np.zeros_like(table))

    def device_states(self, context: FederatedContext, setting: FcfSetting) -> None:
        """Return an empty state: a factor is solved for anew in every round."""

    def sent(self, server: FcfServer, devices: IntArray, context: FederatedContext) -> IntArray:
        return np.full(len(devices), server.table.size * NUMBER_BYTES, np.int64)

    def nothing(self, context: FederatedContext) -> Gradients:
        return Gradients(
            np.zeros((context.dim, context.dim), np.int64),
            np.zeros((context.num_items, context.dim), np.int64),
            np.zeros(0, np.int64),
        )

    def answer(self, server: FcfServer, kept: None, devices: IntArray, now: FederatedRound) -> Gradients:
        """Gradients of every row, added up on the way."""
        context, setting = now.context, now.setting
        train = context.train.select(devices)
        factors = solved(server.table, devices, context, setting)
        sums = self.nothing(context)
        add_gradients(server.table, factors, train.indptr, train.items, setting.alpha, UNITS, sums.moments, sums.rows)
        return Gradients(sums.moments, sums.rows, self.sent(server, devices, context))

    def merged(self, server: FcfServer, sums: Gradients, setting: FcfSetting) -> FcfServer:
        gradient = 2 * (sums.sum_gradients(server.table) + setting.l2 * server.table)
        steps = server.steps + 1
        first = BETAS[0] * server.first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * server.second + (1 - BETAS[1]) * gradient**2
        scaled = first / (1 - BETAS[0] ** steps) / (np.sqrt(second / (1 - BETAS[1] ** steps)) + EPSILON)
        return FcfServer(server.table - setting.learning_rate * scaled, first, second, steps)

    def served(self, server: FcfServer, kept: None, context: FederatedContext, setting: FcfSetting) -> ServedTables:
        """One table for all, and the factors that it gives."""
        parts = [
            solved(server.table, some, context, setting) for some in context.chunks(np.arange(context.num_devices))
        ]
        users = np.concatenate(parts).astype(np.float32)
        return ServedTables((server.table.astype(np.float32),), np.zeros(context.num_devices, np.int64), users)


def solved(
    table: NDArray[np.float64], devices: IntArray, context: FederatedContext, setting: FcfSetting
) -> NDArray[np.float64]:
    """User factors (N, d) of these devices."""
    train = context.train.select(devices)
    factors = np.empty((len(devices), table.shape[1]))
    solve_users(table, table.T @ table, factors, train.indptr, train.items, setting.alpha, setting.l2)
    return factors
