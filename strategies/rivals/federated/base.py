"""Definition of a federated rival: a device half, a message, a server half; and the context that it runs in.

Devices are simulated in one process, a chunk of them at a time, but the parts are kept apart as they would be:

- :meth:`Federated.answer`, the device half, reads what the server sent and what these devices keep, and returns their
  messages. It is the only place that sees interactions and users' vectors.
- Messages of single devices meet in a sum of whole numbers (``sums + message``), so that the order of devices, and how
  they are cut into chunks, cannot matter.
- :meth:`Federated.merged`, the server half, gets the server's own state and the sum. It is given nothing else.

Bytes are those of the arrays that a message is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.interactions import Splits, UserItems
from fl_peel.events import OnEvent, silent
from fl_peel.kernels.on_devices import add_updates
from fl_peel.randomness import rng_for

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
UNITS = float(1 << 24)
"""Units per 1.0 in a sum, which is a whole number of them."""
NUMBER_BYTES = 4
"""Bytes of a number in a message or in a table on the way (fp32), and of an item's number."""


@dataclass(frozen=True)
class FederatedContext:
    """Devices 0..U-1, their splits, and who is there when. dim: columns of a full table; memory: (U,) bytes that a
    device's budget never exceeds; present: ids of the devices that take part in a round, by its number from 1 on.
    """

    splits: Splits
    dim: int
    seed: int
    memory: IntArray
    present: Callable[[int], IntArray] = field(repr=False)
    on_event: OnEvent = field(default=silent, repr=False)
    chunk: int = 2048

    @cached_property
    def train(self) -> UserItems:
        """Train items, ascending within each device."""
        return self.splits.train.by_item()

    @cached_property
    def seen(self) -> UserItems:
        """Train and validation items, left out of the test ranking."""
        return self.splits.train.merged(self.splits.validation)

    @property
    def num_items(self) -> int:
        """Items, I."""
        return self.splits.num_items

    @property
    def num_devices(self) -> int:
        """Devices, U."""
        return self.splits.num_users

    def chunks(self, devices: IntArray) -> Iterator[IntArray]:
        """These devices, so many at a time."""
        for start in range(0, len(devices), self.chunk):
            yield devices[start : start + self.chunk]

    def start_table(self, name: str, rows: int, columns: int, scale: float) -> FloatArray:
        """Return a table of normal numbers (rows, columns) that is the same for every caller."""
        drawn = rng_for(self.seed, name).standard_normal((rows, columns))
        return (scale * drawn).astype(np.float32)


class Message(Protocol):
    """The message of some devices."""

    @property
    def num_bytes(self) -> IntArray:
        """Return the bytes that each device sends, (N,), in the order in which the devices were asked."""


@dataclass(frozen=True)
class RowUpdates:
    """The changes of rows of the item table, device after device: indptr (N + 1,); items (E,) int32, distinct within a
    device; rows (E, w).
    """

    indptr: IntArray
    items: NDArray[np.int32]
    rows: FloatArray

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the updates of the devices of all parts, in this order."""
        starts = np.cumsum([0, *(len(part.items) for part in parts)])
        indptr = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            np.concatenate([np.zeros(1, np.int64), *indptr]),
            np.concatenate([part.items for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )

    @classmethod
    def room(cls, train: UserItems, num_items: int, columns: int, draws: int) -> Self:
        """Allocate updates for a compiled loop to write: as many rows as these devices can touch together, with so many
        draws for each of their interactions.
        """
        most = int(np.minimum(train.counts() * draws, num_items).sum())
        indptr = np.zeros(train.num_users + 1, np.int64)
        return cls(indptr, np.empty(most, np.int32), np.empty((most, columns), np.float32))

    @property
    def written(self) -> Self:
        """Return the updates without the room that was left."""
        return type(self)(self.indptr, self.items[: self.indptr[-1]], self.rows[: self.indptr[-1]])

    @property
    def num_bytes(self) -> IntArray:
        """Item numbers and rows of each device, (N,)."""
        moved: IntArray = np.diff(self.indptr) * NUMBER_BYTES * (1 + self.rows.shape[1])
        return moved


@dataclass(frozen=True)
class PaddedUpdates:
    """Row updates of several widths, and which of the N devices each part is of."""

    parts: tuple[RowUpdates, ...]
    places: tuple[IntArray, ...]

    @property
    def num_bytes(self) -> IntArray:
        """Each device's own width, (N,)."""
        moved = np.zeros(sum(len(places) for places in self.places), np.int64)
        for part, places in zip(self.parts, self.places, strict=True):
            moved[places] = part.num_bytes
        return moved


@dataclass
class RowSums:
    """Sums of row updates: total (I, d) in units of 1 / UNITS, narrower ones padded with zeros; devices: how many."""

    total: IntArray
    devices: int = 0

    @classmethod
    def nothing(cls, num_items: int, dim: int) -> Self:
        """Return the sums of no devices: zeros."""
        return cls(np.zeros((num_items, dim), np.int64))

    def __iadd__(self, message: RowUpdates | PaddedUpdates) -> Self:
        """Add the updates of these devices."""
        for part in message.parts if isinstance(message, PaddedUpdates) else (message,):
            add_updates(part.items, part.rows, UNITS, self.total)
            self.devices += len(part.indptr) - 1
        return self

    def changes(self) -> NDArray[np.float64]:
        """The sum (I, d)."""
        return self.total / UNITS


@dataclass(frozen=True)
class ServedTables:
    """The tables that devices rank with. tables: by tier, (I, w_t) each; tier: (U,) which one a device holds; users (U,
    d), of which a device uses the first w_t columns. own: rows that single devices hold instead of the table's.
    """

    tables: tuple[FloatArray, ...]
    tier: IntArray
    users: FloatArray
    own: RowUpdates | None = None


Setting = TypeVar("Setting")


class Federated(Protocol[Setting]):
    """A method. Server, Kept: whatever its server, and its devices, have; only ``answer`` and ``served``, which are of
    devices, see both what was sent and what is kept.
    """

    @property
    def name(self) -> str:
        """Return its ``method`` in compare.json."""

    @property
    def grid(self) -> tuple[Setting, ...]:
        """Settings to choose from on validation, one training each."""

    def server(self, context: FederatedContext, setting: Setting) -> Any:
        """Return the state that the server starts with."""

    def device_states(self, context: FederatedContext, setting: Setting) -> Any:
        """Return the state that all devices start with."""

    def sent(self, server: Any, devices: IntArray, context: FederatedContext) -> IntArray:
        """Bytes (N,) that these devices are sent in a round, from the arrays they are sent."""

    def nothing(self, context: FederatedContext) -> Any:
        """Return the sum over no devices."""

    def answer(
        self, server: Any, kept: Any, devices: IntArray, number: int, context: FederatedContext, setting: Setting
    ) -> Message:
        """Run the device half of a round: devices change what they keep, and send a message."""

    def merged(self, server: Any, sums: Any, setting: Setting) -> Any:
        """The server half of a round."""

    def served(self, server: Any, kept: Any, context: FederatedContext, setting: Setting) -> ServedTables:
        """Return what devices rank with, once they have the present table; nothing they keep changes."""
