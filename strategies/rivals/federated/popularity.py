"""The same list for everybody, by counts that devices add up: what any method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.rivals.federated.base import (
    FederatedContext,
    FederatedRound,
    FloatArray,
    IntArray,
    RowSums,
    RowUpdates,
    ServedTables,
)


@dataclass(frozen=True)
class Popularity:
    """The popularity rival. A device sends a 1 for each of its items, once, in the first round that it takes part in.
    There is nothing to set.

    The server has counts (I, 1); devices keep whether they have spoken (U,).
    """

    name: str = "popularity"
    grid: tuple[None, ...] = (None,)

    def server(self, context: FederatedContext, setting: None) -> FloatArray:
        """Zeros."""
        return np.zeros((context.num_items, 1), np.float32)

    def device_states(self, context: FederatedContext, setting: None) -> np.ndarray:
        """Return the start: no device has contributed yet."""
        return np.zeros(context.num_devices, np.bool_)

    def sent(self, server: FloatArray, devices: IntArray, context: FederatedContext) -> IntArray:
        """Return the bytes sent to devices: none."""
        return np.zeros(len(devices), np.int64)

    def nothing(self, context: FederatedContext) -> RowSums:
        """Zeros."""
        return RowSums.nothing(context.num_items, 1)

    def answer(self, server: FloatArray, kept: np.ndarray, devices: IntArray, now: FederatedRound) -> RowUpdates:
        """Return a one for each item of the devices that have not contributed yet."""
        context = now.context
        counts = context.train.counts()[devices] * ~kept[devices]
        train = context.train.select(devices).keep(np.repeat(~kept[devices], context.train.counts()[devices]))
        kept[devices] = True
        return RowUpdates(
            np.concatenate([[0], np.cumsum(counts)]), train.items, np.ones((len(train.items), 1), np.float32)
        )

    def merged(self, server: FloatArray, sums: RowSums, setting: None) -> FloatArray:
        """Counts so far."""
        return (server + sums.changes()).astype(np.float32)

    def served(self, server: FloatArray, kept: np.ndarray, context: FederatedContext, setting: None) -> ServedTables:
        """Serve the counts as a table of one column, a score that is the same for all devices."""
        return ServedTables(
            (server,), np.zeros(context.num_devices, np.int64), np.ones((context.num_devices, 1), np.float32)
        )
