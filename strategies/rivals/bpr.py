"""Federated BPR-MF: matrix factorization by pairwise ranking (Rendle et al., UAI 2009), its item table by FedAvg.

McMahan et al., AISTATS 2017: a device takes plain steps over its own interactions and sends by how much its copy of the
table changed; its user vector stays. The server adds the mean change, times a server learning rate (Reddi et al., ICLR
2021), without which rows that few devices touch would hardly move.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from fl_peel.kernels.rivals import bpr_devices
from fl_peel.randomness import device_seeds, rng_for
from strategies.rivals.federated import (
    NUMBER_BYTES,
    FederatedContext,
    FederatedRound,
    FloatArray,
    IntArray,
    RowSums,
    RowUpdates,
    ServedTables,
)

START_SCALE = 0.1
"""Standard deviation of a number of tables and vectors at the start."""


@dataclass(frozen=True)
class BprSetting:
    """The settings of BPR on devices. learning_rate: of a device's steps, on its rows and its vector; l2: of both;
    server_share: of the sum of all changes that the server adds to the table: its learning rate over the number of
    devices that answered.
    """

    learning_rate: float
    l2: float
    server_share: float
    epochs: int = 1
    num_negatives: int = 4


GRID = tuple(BprSetting(rate, l2, share) for rate, l2, share in product((0.05, 0.1), (0.006, 0.012), (0.1, 0.3)))


class SharedTable:
    """The server has one item table (I, d), which every device is sent; rows that devices changed are added up."""

    def server(self, context: FederatedContext, setting: Any) -> FloatArray:
        return context.start_table("items", context.num_items, context.dim, START_SCALE)

    def sent(self, server: FloatArray, devices: IntArray, context: FederatedContext) -> IntArray:
        return np.full(len(devices), server.size * NUMBER_BYTES, np.int64)

    def nothing(self, context: FederatedContext) -> RowSums:
        return RowSums.nothing(context.num_items, context.dim)


@dataclass(frozen=True)
class FedAvgBpr(SharedTable):
    """Devices keep their vectors (U, d)."""

    name: str = "fedavg-bprmf"
    grid: tuple[BprSetting, ...] = GRID

    def device_states(self, context: FederatedContext, setting: BprSetting) -> FloatArray:
        return start_vectors(context, context.dim)

    def answer(self, server: FloatArray, kept: FloatArray, devices: IntArray, now: FederatedRound) -> RowUpdates:
        widths, rate = (now.context.dim,), now.setting.learning_rate
        kept[devices], updates = bpr_steps(now, server, kept[devices], devices, widths, rate)
        return updates

    def merged(self, server: FloatArray, sums: RowSums, setting: BprSetting) -> FloatArray:
        """The table, and a share of all changes."""
        return (server + setting.server_share * sums.changes()).astype(np.float32)

    def served(
        self, server: FloatArray, kept: FloatArray, context: FederatedContext, setting: BprSetting
    ) -> ServedTables:
        return ServedTables((server,), np.zeros(context.num_devices, np.int64), kept)


def start_vectors(context: FederatedContext, dim: int) -> FloatArray:
    """A random vector (U, d) for every device, from its own number."""
    return np.stack(
        [
            (START_SCALE * rng_for(context.seed, "vector", device).standard_normal(dim)).astype(np.float32)
            for device in range(context.num_devices)
        ]
    )


def bpr_steps(
    now: FederatedRound,
    table: FloatArray,
    users: FloatArray,
    devices: IntArray,
    widths: tuple[int, ...],
    item_rate: float,
) -> tuple[FloatArray, RowUpdates]:
    """Train these devices (N,) on a table (I, w): their vectors (N, w) after it, and how their rows changed.

    widths: of the loss, which is a sum over the first so many columns; item_rate 0: vectors alone are trained.
    """
    context, setting = now.context, now.setting
    train = context.train.select(devices)
    users = np.ascontiguousarray(users)
    draws = setting.epochs * (1 + setting.num_negatives) if item_rate else 0
    room = RowUpdates.room(train, context.num_items, table.shape[1], draws)
    bpr_devices(
        table,
        users,
        train.indptr,
        train.items,
        device_seeds(context.seed, "federated-bpr", now.number, devices=devices),
        setting.epochs,
        setting.num_negatives,
        np.float32(item_rate),
        np.float32(setting.learning_rate),
        np.float32(setting.l2),
        np.array(widths, np.int64),
        room.indptr,
        room.items,
        room.rows,
    )
    return users, room.written
