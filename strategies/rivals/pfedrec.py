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
from strategies.rivals.base import FloatArray, IntArray
from strategies.rivals.bpr import START_SCALE, start_vectors
from strategies.rivals.federated import FederatedContext, FederatedRound, LocalSteps, RoundSums, ServedTables

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


STEPS = LocalSteps(bce_devices, "pfedrec")
"""Steps of score functions and rows in batches of a size."""


@dataclass(frozen=True)
class PFedRec:
    """The server has one item table (I, d), which every device is sent; devices keep their score functions (U, d + 1),
    bias last.
    """

    name: str = "pfedrec"
    grid: tuple[PFedRecSetting, ...] = GRID

    def server(self, context: FederatedContext, setting: PFedRecSetting) -> FloatArray:
        return context.start_table(START_SCALE)

    def device_states(self, context: FederatedContext, setting: PFedRecSetting) -> FloatArray:
        return start_vectors(context, context.dim + 1)

    def contribute(
        self, server: FloatArray, kept: FloatArray, devices: IntArray, now: FederatedRound, sums: RoundSums
    ) -> None:
        kept[devices], updates = STEPS.train(now, server, kept[devices], devices, now.setting.row_rate, BATCH_SIZE)
        sums.add(updates, server.size)

    def merged(self, server: FloatArray, sums: RoundSums, setting: PFedRecSetting) -> FloatArray:
        """The mean of all devices' tables, or the table and a share of all changes."""
        share = 1 / max(sums.devices, 1) if setting.server_share is None else setting.server_share
        return (server + share * sums.changes()).astype(np.float32)

    def served(
        self, server: FloatArray, kept: FloatArray, context: FederatedContext, setting: PFedRecSetting
    ) -> ServedTables:
        """The table with every device's own rows, and its own score function, after one more local training on it.

        The bias, the same for all items, ranks nothing.
        """
        after = FederatedRound(context, setting, 0)
        users, own = STEPS.train(after, server, kept.copy(), context.devices, setting.row_rate, BATCH_SIZE)
        return ServedTables.for_everybody(server, users[:, :-1], own)
