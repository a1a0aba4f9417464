"""HeteFedRec: tables of three widths, by what a device can hold (Yuan et al., arXiv 2307.12810, ICDE 2024).

- *Padding aggregation*: changes of narrower tables are padded with zeros and added to those of wider ones; each width
  takes its columns of the sum.
- *Unified dual-task learning*: a device with a wider table trains its first columns by themselves, too, for every
  narrower width.
- *Dimensional decorrelation*: the Frobenius norm of the correlations of the table's columns is held down.
- *Relation-based ensemble distillation*: the server pulls each width's cosine similarities of some drawn items towards
  their mean over the widths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_peel.randomness import rng_for
from fl_peel.training.workers import fixed_threads
from strategies.rivals.base import FloatArray, IntArray
from strategies.rivals.bpr import START_SCALE, STEPS, BprSetting, start_vectors
from strategies.rivals.federated import FederatedContext, FederatedRound, RoundSums, ServedTables

DoubleArray = NDArray[np.float64]
SHARES = (0.5, 0.3, 0.2)
"""Shares of the devices, in the order of their memory, that have each width: 5 : 3 : 2, as in the paper."""
DISTILLED_ITEMS = 256
"""Drawn in each round for distillation."""
VECTOR_EPOCHS = 5
"""Passes over a device's interactions with which it finds a vector for a table that is not of its own width."""


@dataclass(frozen=True)
class HeteSetting:
    """The settings of HeteFedRec. bpr: what devices do, and the server with it; decorrelation: weight of that loss,
    which is of the table alone, so that the server takes the steps of all devices; distillation: step size of the pull
    on similarities, one a round.
    """

    bpr: BprSetting
    decorrelation: float
    distillation: float


GRID = tuple(
    HeteSetting(BprSetting(rate, 0.01, 0.1), decorrelation, distillation)
    for rate, decorrelation, distillation in product((0.05, 0.1), (0.0, 1.0), (0.0, 1.0))
)


@dataclass(frozen=True)
class HeteServer:
    """A table (I, w) for every width, narrow first, at first the columns of the widest. seed: of the draws."""

    tables: tuple[FloatArray, ...]
    seed: int
    number: int = 0


@dataclass(frozen=True)
class HeteFedRec:
    """Devices keep vectors (U, d), of which they use as many columns as their table has."""

    name: str = "hetefedrec"
    grid: tuple[HeteSetting, ...] = GRID
    parts: tuple[int, ...] = (4, 2, 1)

    def widths(self, context: FederatedContext) -> tuple[int, ...]:
        """A quarter, a half and all of the columns, as in the paper."""
        return tuple(max(context.dim // part, 1) for part in self.parts)

    def tiers(self, context: FederatedContext) -> IntArray:
        """Return each device's width, (U,), as its tier: the devices with the most memory have the widest."""
        order = np.lexsort((context.devices, context.memory))
        tier = np.empty(len(order), np.int64)
        ends = np.rint(np.cumsum(SHARES) * len(order)).astype(np.int64)
        tier[order] = np.searchsorted(ends, context.devices, side="right").clip(max=len(SHARES) - 1)
        return tier

    def server(self, context: FederatedContext, setting: HeteSetting) -> HeteServer:
        table = context.start_table(START_SCALE)
        return HeteServer(tuple(np.ascontiguousarray(table[:, :w]) for w in self.widths(context)), context.seed)

    def device_states(self, context: FederatedContext, setting: HeteSetting) -> FloatArray:
        return start_vectors(context, context.dim)

    def contribute(
        self, server: HeteServer, kept: FloatArray, devices: IntArray, now: FederatedRound, sums: RoundSums
    ) -> None:
        widths, tier = np.array(self.widths(now.context)), self.tiers(now.context)[devices]
        bpr = replace(now, setting=now.setting.bpr)
        for place, (width, table) in enumerate(zip(widths, server.tables, strict=True)):
            some = devices[tier == place]
            kept[some, :width], updates = STEPS.train(
                bpr, table, kept[some, :width], some, bpr.setting.learning_rate, widths[: place + 1]
            )
            sums.add(updates, table.size)

    def merged(self, server: HeteServer, sums: RoundSums, setting: HeteSetting) -> HeteServer:
        """Padded changes, then what the server does with the tables alone."""
        changes = setting.bpr.server_share * sums.changes()
        tables = [table + changes[:, : table.shape[1]] for table in server.tables]
        with fixed_threads(1):
            if setting.decorrelation:
                rate = setting.bpr.learning_rate * setting.bpr.server_share * sums.devices
                tables = [decorrelated(table, setting.decorrelation * rate) for table in tables]
            if setting.distillation:
                rng = rng_for(server.seed, "distilled", server.number)
                items = rng.permutation(len(tables[0]))[:DISTILLED_ITEMS]
                tables = distilled(tables, items, setting.distillation)
        return HeteServer(tuple(table.astype(np.float32) for table in tables), server.seed, server.number + 1)

    def served(
        self, server: HeteServer, kept: FloatArray, context: FederatedContext, setting: HeteSetting
    ) -> ServedTables:
        return ServedTables(server.tables, self.tiers(context), kept)

    def at_width(
        self, served: ServedTables, place: int, context: FederatedContext, setting: HeteSetting
    ) -> ServedTables:
        """Every device with the table of one width; untrained columns of its vector are trained on that first."""
        table = served.tables[place]
        training = FederatedRound(context, replace(setting.bpr, epochs=VECTOR_EPOCHS), 0)
        width = table.shape[1]
        users, _ = STEPS.train(training, table, served.users[:, :width].copy(), context.devices, 0.0, np.array([width]))
        return ServedTables.for_everybody(table, users)


def decorrelated(table: DoubleArray, step: float) -> DoubleArray:
    """A step down the Frobenius norm of the correlations of the columns of (I, w), over their number."""
    values = torch.from_numpy(table.astype(np.float64)).requires_grad_()
    centred = values - values.mean(dim=0)
    scaled = centred / (centred.square().mean(dim=0).sqrt() + 1e-12)
    loss = torch.linalg.matrix_norm(scaled.T @ scaled / len(table)) / table.shape[1]
    (gradient,) = torch.autograd.grad(loss, values)
    return np.asarray(table - step * gradient.numpy())


def distilled(tables: list[DoubleArray], items: IntArray, step: float) -> list[DoubleArray]:
    """Tables after a step in which the similarities of ``items`` (K,) come closer to their mean over the tables."""
    rows = [torch.from_numpy(table[items].astype(np.float64)).requires_grad_() for table in tables]
    similarities = [similarity(part) for part in rows]
    mean = torch.stack(similarities).mean(dim=0).detach()
    result = []
    for table, part, own in zip(tables, rows, similarities, strict=True):
        (gradient,) = torch.autograd.grad((own - mean).square().sum() / len(items), part)
        changed = table.copy()
        changed[items] -= step * gradient.numpy()
        result.append(changed)
    return result


def similarity(rows: Tensor) -> Tensor:
    """Cosines (K, K) of rows (K, w)."""
    scaled = torch.nn.functional.normalize(rows, dim=1, eps=1e-12)
    return scaled @ scaled.T
