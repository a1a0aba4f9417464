"""What an observer of the protocol sees of one device: the input of every attack.

The observer is an honest-but-curious server whose every node hosts one device, as in deployment. It knows what it sent
(blocks, table, the training parameters it prescribed) and what came back. It does not know the device's interactions,
its user embedding or its random numbers; a view has no field for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.kernels import FIXED_POINT
from fl_peel.training.settings import LocalTraining

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
_NOTHING: IntArray = np.zeros(0, np.int64)


@dataclass(frozen=True)
class RoundView:
    """One round. For R table rows of dimension d that the server sent as K ranked blocks:

    items: (R,) item of each row; table: (R, d) as sent; position: (R, S) rank of each row's blocks, K where not sent;
    blocks: (K,) block numbers, best first; local: the training the server prescribed;
    reply: arrays by their name on the wire (:class:`fl_peel.wire.RoundReply`, of the device's user group), those that
    the protocol leaves out missing; figures: single numbers (bytes, times, metrics) by name, of the reply and of what
    else the device said of itself;
    num_devices: devices whose sum the reply is, 1 unless the protocol shows sums only.
    """

    server_round: int
    items: IntArray
    table: NDArray[np.float32]
    position: NDArray[np.int32]
    blocks: IntArray
    local: LocalTraining
    reply: Mapping[str, NDArray[Any]]
    figures: Mapping[str, float]
    num_devices: int = 1

    @property
    def update(self) -> FloatArray:
        """The update of every row, (R, d); zero in rows that were not sent back. Not kept: there are many views."""
        if "updates" in self.reply:  # every row that was sent
            return np.asarray(self.reply["updates"].reshape(self.table.shape) / FIXED_POINT)
        total = np.zeros(self.table.shape, np.int64)
        for rows, sums in (("rows", "sums"), ("wide_rows", "wide_sums")):
            if rows in self.reply and sums in self.reply:
                np.add.at(total, self.reply[rows].astype(np.int64), self.reply[sums].astype(np.int64))
        return total / FIXED_POINT

    @cached_property
    def returned(self) -> NDArray[np.bool_]:
        """Rows that were sent back, (R,)."""
        rows = np.full(len(self.items), "updates" in self.reply)
        rows[self.reply.get("rows", _NOTHING).astype(np.int64)] = True
        return rows

    def per_row(self, name: str) -> FloatArray | None:
        """A reply array that has one number for each row sent back, spread over all rows (R,); None without it.

        ``row_examples`` under privacy is what devices send as ``counts``.
        """
        if name == "row_examples" and "counts" in self.reply:
            return np.asarray(self.reply["counts"] / FIXED_POINT)
        if name not in self.reply:
            return None
        values = np.zeros(len(self.items))
        values[self.reply["rows"].astype(np.int64)] = self.reply[name]
        return values

    def per_block(self, name: str) -> FloatArray | None:
        """A reply array that has one number for each block (K,), as numbers; None without it.

        ``hits`` under privacy is what devices send as ``signals``.
        """
        if name == "hits" and "signals" in self.reply:
            name = "signals"
        return np.asarray(self.reply[name], np.float64) if name in self.reply else None

    @property
    def held(self) -> NDArray[np.bool_] | None:
        """Blocks (K,) that the device says it keeps, None where it does not say: its request."""
        holders = self.per_block("holders")
        return None if holders is None else holders > 0


@dataclass(frozen=True)
class StepView:
    """One step of stage 1 by devices. step: its name; sent, reply: arrays by name:

    counts: ``items`` (I,). pass: ``norms`` (I,), under a row sketch (B,), L2 norms of what is added to each row, of the
    first columns (a device adds the same to each of its rows); sent is ``place`` (I,) of the sketch, else (0,). choice:
    ``won`` (C,) in one, ``answered`` (1,); sent are the arrays of
    :class:`fl_peel.steps.choice.FilterRequest` and ``item_exponent`` (1,). vectors: sent is ``own`` (I,
    K). groups: ``sizes`` (G,), ``sums`` (G, c); sent are ``centroids`` (G, c). moments: ``sizes`` (G,), ``first`` (G,
    K), ``items`` (G, I); second moments of one device say what the first do.

    num_devices: whose sum the reply is, 1 unless the protocol shows sums only. Reply is empty where nothing came.
    """

    step: str
    sent: Mapping[str, NDArray[Any]]
    reply: Mapping[str, NDArray[Any]]
    num_devices: int = 1


@dataclass(frozen=True)
class DeviceView:
    """All steps of stage 1 and all rounds that the observer saw of one device, oldest first. The number is a name, it
    says nothing.
    """

    device: int
    num_items: int
    rounds: tuple[RoundView, ...]
    steps: tuple[StepView, ...] = ()

    def of_step(self, step: str) -> list[StepView]:
        """Those of that name."""
        return [one for one in self.steps if one.step == step]
