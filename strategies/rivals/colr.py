"""CoLR: federated BPR-MF whose updates are of low rank (Nguyen et al., "Towards Efficient Communication and Secure
Federated Recommendation System via Low-rank Training", arXiv 2401.03748, WWW 2024).

In every round all parties draw the same random basis from the seed. Devices train the item table along its first
directions alone, so that an update of a row has as many numbers as the rank, and updates of devices add up. A device
brings its table up to date from the sums of the rounds that it missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from fl_peel.randomness import rng_for
from strategies.rivals.base import FloatArray, IntArray
from strategies.rivals.bpr import START_SCALE, STEPS, BprSetting, start_vectors
from strategies.rivals.federated import NUMBER_BYTES, FederatedContext, FederatedRound, RoundSums, ServedTables


@dataclass(frozen=True)
class ColrSetting:
    """Settings of CoLR. bpr: of devices, and of the server with them; rank: columns of an update."""

    bpr: BprSetting
    rank: int


GRID = tuple(
    ColrSetting(BprSetting(rate, 0.006, share), rank) for rate, share, rank in product((0.05, 0.1), (0.1, 0.3), (8, 16))
)


@dataclass(frozen=True)
class ColrServer:
    """The item table (I, d) after so many rounds. seed: of the bases."""

    table: FloatArray
    seed: int
    rounds: int = 0

    @cached_property
    def basis(self) -> FloatArray:
        """Orthonormal columns (d, d) of the next round."""
        drawn = rng_for(self.seed, "colr-basis", self.rounds).standard_normal((self.table.shape[1],) * 2)
        return np.linalg.qr(drawn)[0].astype(np.float32)

    @cached_property
    def turned_table(self) -> FloatArray:
        """The table in that basis, once for all devices of the round."""
        return self.table @ self.basis


@dataclass(frozen=True)
class ColrDevices:
    """Vectors (U, d), and the number of rounds (U,) that are in each device's table."""

    users: FloatArray
    rounds: IntArray


@dataclass(frozen=True)
class Colr:
    """FedAvg of BPR-MF in a random subspace of each round."""

    name: str = "colr"
    grid: tuple[ColrSetting, ...] = GRID

    def server(self, context: FederatedContext, setting: ColrSetting) -> ColrServer:
        return ColrServer(context.start_table(START_SCALE), context.seed)

    def device_states(self, context: FederatedContext, setting: ColrSetting) -> ColrDevices:
        return ColrDevices(start_vectors(context, context.dim), np.zeros(len(context.devices), np.int64))

    def contribute(
        self, server: ColrServer, kept: ColrDevices, devices: IntArray, now: FederatedRound, sums: RoundSums
    ) -> None:
        """Train in the round's basis, in which scores are the same, and send the first columns of changed rows.

        The step along these columns is scaled by the square root of d over the rank, as in the published code.
        """
        setting, basis = now.setting, server.basis
        num_items, dim = server.table.shape
        bpr = FederatedRound(now.context, setting.bpr, now.number)
        rate = setting.bpr.learning_rate * math.sqrt(dim / setting.rank)
        steps = replace(STEPS, columns=setting.rank)
        users, updates = steps.train(
            bpr, server.turned_table, turned(kept.users[devices], basis), devices, rate, np.array([dim])
        )
        kept.users[devices] = turned(users, basis.T)
        sums.add(updates, 0)
        missed = np.minimum((server.rounds - kept.rounds[devices]) * setting.rank, dim)
        sums.down += int(missed.sum()) * num_items * NUMBER_BYTES
        kept.rounds[devices] = server.rounds

    def merged(self, server: ColrServer, sums: RoundSums, setting: ColrSetting) -> ColrServer:
        """The table, and a share of all changes, turned back from the round's basis."""
        changes = sums.changes()[:, : setting.rank] @ server.basis[:, : setting.rank].T
        table = (server.table + setting.bpr.server_share * changes).astype(np.float32)
        return ColrServer(table, server.seed, server.rounds + 1)

    def served(
        self, server: ColrServer, kept: ColrDevices, context: FederatedContext, setting: ColrSetting
    ) -> ServedTables:
        return ServedTables.for_everybody(server.table, kept.users)


def turned(users: FloatArray, basis: FloatArray) -> FloatArray:
    """Vectors (N, d) in the basis (d, d), each by itself: its digits do not depend on who else is there."""
    return np.stack([user @ basis for user in users]) if len(users) else users
