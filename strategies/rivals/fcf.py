"""FCF: federated collaborative filtering for implicit feedback (Ammad-ud-din et al., arXiv 1901.09888).

A device solves for its user factor by least squares, its interactions at a confidence of 1 + alpha and all others at 1
(Hu, Koren and Volinsky, ICDM 2008), and sends the gradient of its loss for every row of the item table. The server adds
these up and takes an Adam step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.kernels.rivals import add_gradients, solve_users
from strategies.rivals.base import IntArray
from strategies.rivals.federated import UNITS, FederatedContext, FederatedRound, RoundSums, ServedTables

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
class Fcf:
    """The server has the item table; devices keep nothing but their interactions.

    A device's gradient (I, d) is dense, as every row has its part in it: row i is (c_i s_i - (1 + alpha) p_i) x with x
    its factor, s_i = x . y_i, and confidence c_i, preference p_i. All that adds up: moments (d, d), of which row i
    takes its product with y_i, and rows (I, d), what interactions add.
    """

    name: str = "fcf"
    grid: tuple[FcfSetting, ...] = GRID

    def server(self, context: FederatedContext, setting: FcfSetting) -> FcfServer:
        table = context.start_table(START_SCALE).astype(np.float64)
        return FcfServer(table, np.zeros_like(table), np.zeros_like(table))

    def device_states(self, context: FederatedContext, setting: FcfSetting) -> None:
        """Return an empty state: a factor is solved for anew in every round."""

    def contribute(
        self, server: FcfServer, kept: None, devices: IntArray, now: FederatedRound, sums: RoundSums
    ) -> None:
        """Gradients of every row, added up on the way."""
        train, table = now.context.train.select(devices), server.table
        factors = solved(table, train, now.setting)
        add_gradients(table, factors, train.indptr, train.items, now.setting.alpha, UNITS, sums.moments, sums.rows)
        sums.count(len(devices), table.size, len(devices) * table.size)

    def merged(self, server: FcfServer, sums: RoundSums, setting: FcfSetting) -> FcfServer:
        gradient = 2 * (sum_gradients(server.table, sums) + setting.l2 * server.table)
        steps = server.steps + 1
        first = BETAS[0] * server.first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * server.second + (1 - BETAS[1]) * gradient**2
        scaled = first / (1 - BETAS[0] ** steps) / (np.sqrt(second / (1 - BETAS[1] ** steps)) + EPSILON)
        return FcfServer(server.table - setting.learning_rate * scaled, first, second, steps)

    def served(self, server: FcfServer, kept: None, context: FederatedContext, setting: FcfSetting) -> ServedTables:
        factors = solved(server.table, context.train, setting)
        return ServedTables.for_everybody(server.table.astype(np.float32), factors.astype(np.float32))


def sum_gradients(table: NDArray[np.float64], sums: RoundSums) -> NDArray[np.float64]:
    """Return the sum of the gradients (I, d) of a table."""
    return (table @ sums.moments + sums.rows) / UNITS


def solved(table: NDArray[np.float64], train: UserItems, setting: FcfSetting) -> NDArray[np.float64]:
    """User factors (N, d) of devices with these train items."""
    factors = np.empty((train.num_users, table.shape[1]))
    solve_users(table, table.T @ table, factors, train.indptr, train.items, setting.alpha, setting.l2)
    return factors
