"""PFedRec: a score function and item rows of a device's own (Zhang et al., "Dual Personalization on Federated
Recommendation", IJCAI 2023).

A device has the shared item table and a score function of its own, a logistic regression on an item's row. On batches
of its interactions and drawn items (binary cross-entropy) it takes a step of the score function, then, under the new
one, a step of the rows, at a much larger rate. It sends its rows, which the server averages; the score function stays,
and so do, for its own ranking, the rows as it trained them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from fl_peel.kernels.rivals import bce_devices
from fl_peel.randomness import device_seeds
from strategies.rivals.bpr import SharedTable, start_vectors
from strategies.rivals.federated import (
    FederatedContext,
    FederatedRound,
    FloatArray,
    IntArray,
    RowSums,
    RowUpdates,
    ServedTables,
)

BATCH_SIZE = 256


@dataclass(frozen=True)
class PFedRecSetting:
    """The settings of PFedRec. learning_rate: of the score function; row_rate: of rows, both on the mean loss of a
    batch; server_share: of the sum of all changes that the server adds to the table, None for their mean, as published.
    """

    learning_rate: float
    row_rate: float
    l2: float
    server_share: float | None = None
    epochs: int = 1
    num_negatives: int = 4


GRID = tuple(
    PFedRecSetting(rate, row_rate, l2, share)
    for rate, (row_rate, share), l2 in product((0.3, 1.0), ((10.0, 0.1), (300.0, None)), (0.0, 0.001))
)


@dataclass(frozen=True)
class PFedRec(SharedTable):
    """Devices keep their score functions (U, d + 1), bias last."""

    name: str = "pfedrec"
    grid: tuple[PFedRecSetting, ...] = GRID

    def device_states(self, context: FederatedContext, setting: PFedRecSetting) -> FloatArray:
        return start_vectors(context, context.dim + 1)

    def answer(self, server: FloatArray, kept: FloatArray, devices: IntArray, now: FederatedRound) -> RowUpdates:
        kept[devices], updates = personal_steps(now, server, kept[devices], devices)
        return updates

    def merged(self, server: FloatArray, sums: RowSums, setting: PFedRecSetting) -> FloatArray:
        """The mean of all devices' tables, or the table and a share of all changes."""
        share = 1 / max(sums.devices, 1) if setting.server_share is None else setting.server_share
        return (server + share * sums.changes()).astype(np.float32)

    def served(
        self, server: FloatArray, kept: FloatArray, context: FederatedContext, setting: PFedRecSetting
    ) -> ServedTables:
        """The table with every device's own rows, and its own score function, after one more local training on it.

        The bias, the same for all items, ranks nothing.
        """
        everybody, after = np.arange(context.num_devices), FederatedRound(context, setting, 0)
        parts = [personal_steps(after, server, kept[some], some) for some in context.chunks(everybody)]
        users = np.concatenate([part[0] for part in parts])
        own = RowUpdates.joined([part[1] for part in parts])
        return ServedTables((server,), np.zeros(context.num_devices, np.int64), users[:, :-1], own)


def personal_steps(
    now: FederatedRound, table: FloatArray, users: FloatArray, devices: IntArray
) -> tuple[FloatArray, RowUpdates]:
    """One local training of these devices (N,): score functions (N, d + 1) after it, and how their rows changed."""
    context, setting = now.context, now.setting
    train = context.train.select(devices)
    users = np.ascontiguousarray(users)
    draws = setting.epochs * (1 + setting.num_negatives)
    room = RowUpdates.room(train, context.num_items, table.shape[1], draws)
    bce_devices(
        table,
        users,
        train.indptr,
        train.items,
        device_seeds(context.seed, "pfedrec", now.number, devices=devices),
        setting.epochs,
        setting.num_negatives,
        BATCH_SIZE,
        np.float32(setting.row_rate),
        np.float32(setting.learning_rate),
        np.float32(setting.l2),
        room.indptr,
        room.items,
        room.rows,
    )
    return users, room.written
