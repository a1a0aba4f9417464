"""Federated BPR-MF: matrix factorization by pairwise ranking (Rendle et al., UAI 2009), its item table by FedAvg.

McMahan et al., AISTATS 2017: a device takes plain steps over its own interactions and sends by how much its copy of the
table changed; its user vector stays. The server adds the mean change, times a server learning rate (Reddi et al., ICLR
2021), without which rows that few devices touch would hardly move.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from fl_peel.kernels.rivals import bpr_devices
from fl_peel.randomness import rng_for
from strategies.rivals.base import FloatArray, IntArray
from strategies.rivals.federated import FederatedContext, FederatedRound, LocalSteps, RoundSums, ServedTables

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


STEPS = LocalSteps(bpr_devices, "federated-bpr")
"""Steps under the loss of BPR, a sum over the first so many columns for each of some widths (W,), ascending."""


@dataclass(frozen=True)
class FedAvgBpr:
    """The server has one item table (I, d), which every device is sent; devices keep their vectors (U, d)."""

    name: str = "fedavg-bprmf"
    grid: tuple[BprSetting, ...] = GRID

    def server(self, context: FederatedContext, setting: BprSetting) -> FloatArray:
        return context.start_table(START_SCALE)

    def device_states(self, context: FederatedContext, setting: BprSetting) -> FloatArray:
        return start_vectors(context, context.dim)

    def contribute(
        self, server: FloatArray, kept: FloatArray, devices: IntArray, now: FederatedRound, sums: RoundSums
    ) -> None:
        widths = np.array([now.context.dim])
        kept[devices], updates = STEPS.train(now, server, kept[devices], devices, now.setting.learning_rate, widths)
        sums.add(updates, server.size)

    def merged(self, server: FloatArray, sums: RoundSums, setting: BprSetting) -> FloatArray:
        return (server + setting.server_share * sums.changes()).astype(np.float32)

    def served(
        self, server: FloatArray, kept: FloatArray, context: FederatedContext, setting: BprSetting
    ) -> ServedTables:
        return ServedTables.for_everybody(server, kept)


def start_vectors(context: FederatedContext, dim: int) -> FloatArray:
    """A random vector (U, d) for every device, from its own number."""
    return np.stack(
        [
            (START_SCALE * rng_for(context.seed, "vector", device).standard_normal(dim)).astype(np.float32)
            for device in context.devices.tolist()
        ]
    )
