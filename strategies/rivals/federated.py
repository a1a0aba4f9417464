"""Federated rivals: what all of them share, how each is tuned, and the simplest of them, which any must beat: the same
list for everybody.

Devices are simulated in one process, a chunk of them at a time, but the parts are kept apart as they would be:

- :meth:`Federated.contribute`, the device half, reads what the server sent and what these devices keep. It is the only
  place that sees interactions and users' vectors.
- What devices contribute meets in :class:`RoundSums` of whole numbers, so that the order of devices, and how they are
  cut into chunks, cannot matter.
- :meth:`Federated.merged`, the server half, gets the server's own state and the sums. It is given nothing else.

Bytes are those of the arrays that devices are sent and would send.

What a rival serves is measured by PEEL's own ranking, its bytes as they are stored.

All rivals have as many settings, rounds and looks at validation, so that none has been tuned with more effort.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.compression import DenseTable, stored_bytes
from fl_peel.blocks.layout import dequantize, quantize
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.events import Event, OnEvent, silent
from fl_peel.kernels.rivals import add_updates
from fl_peel.randomness import device_seeds, rng_for
from fl_peel.scenario.settings import Precision
from strategies.rivals.base import (
    DeviceQuality,
    FloatArray,
    IntArray,
    Request,
    Split,
    SplitDevices,
    best_lists,
    device_quality,
    list_metrics,
    replicates,
    whole_table,
)

UNITS = float(1 << 24)
"""Units per 1.0 in a sum, which is a whole number of them."""
NUMBER_BYTES = 4
"""Bytes of a number in a message or in a table on the way (fp32), and of an item's number."""


@dataclass(frozen=True)
class FederatedContext(SplitDevices):
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
        return self.splits.train.by_item

    @cached_property
    def devices(self) -> IntArray:
        """All devices, (U,)."""
        return np.arange(self.splits.num_users)

    def chunks(self, devices: IntArray) -> Iterator[IntArray]:
        for start in range(0, len(devices), self.chunk):
            yield devices[start : start + self.chunk]

    def start_table(self, scale: float) -> FloatArray:
        """Return an item table of normal numbers (I, d) that is the same for every caller."""
        drawn = rng_for(self.seed, "items").standard_normal((self.num_items, self.dim))
        return (scale * drawn).astype(np.float32)


@dataclass(frozen=True)
class FederatedRound:
    """A round of a training, by its number from 1 on; setting: of the method."""

    context: FederatedContext
    setting: Any
    number: int


@dataclass(frozen=True)
class RowUpdates:
    """Changed rows of the item table, by device: indptr (N + 1,); items (E,), distinct in a device; rows (E, w)."""

    indptr: IntArray
    items: NDArray[np.int32]
    rows: FloatArray

    @classmethod
    def room(cls, train: UserItems, shape: tuple[int, int], draws: int) -> Self:
        """Allocate updates of a table (I, w) for a compiled loop: rows that these devices can touch with ``draws`` per
        interaction.
        """
        most = int(np.minimum(train.counts() * draws, shape[0]).sum())
        indptr = np.zeros(train.num_users + 1, np.int64)
        return cls(indptr, np.empty(most, np.int32), np.empty((most, shape[1]), np.float32))

    @property
    def written(self) -> Self:
        """Return the updates without the room that was left."""
        return type(self)(self.indptr, self.items[: self.indptr[-1]], self.rows[: self.indptr[-1]])


@dataclass(frozen=True)
class LocalSteps:
    """Training of devices by a compiled loop of :mod:`fl_peel.kernels.rivals`. name: of its random numbers; columns: of
    rows that are trained, so many, the first ones (None: all).
    """

    loop: Callable[..., None]
    name: str
    columns: int | None = None

    def train(
        self, now: FederatedRound, table: FloatArray, users: FloatArray, devices: IntArray, row_rate: float, more: Any
    ) -> tuple[FloatArray, RowUpdates]:
        """Train these devices (N,) on a table (I, w): their vectors after it, and how trained columns changed.

        users: (N, w) or, with a bias, (N, w + 1); row_rate 0: vectors alone are trained; more: the
        loop's own argument.
        """
        train, setting = now.context.train.select(devices), now.setting
        users = np.ascontiguousarray(users)
        shape = (len(table), table.shape[1] if self.columns is None else self.columns)
        room = RowUpdates.room(train, shape, setting.epochs * (1 + setting.num_negatives) if row_rate else 0)
        self.loop(
            table,
            users,
            train.indptr,
            train.items,
            device_seeds(now.context.seed, self.name, now.number, devices=devices),
            setting.epochs,
            setting.num_negatives,
            np.float32(row_rate),
            np.float32(setting.learning_rate),
            np.float32(setting.l2),
            more,
            room.indptr,
            room.items,
            room.rows,
        )
        return users, room.written


@dataclass
class RoundSums:
    """What the devices of a round contribute and move. rows: (I, d), and moments: (d, d), in units of 1 / UNITS;
    devices: how many; down, up: bytes of all of them.
    """

    rows: IntArray
    moments: IntArray
    devices: int = 0
    down: int = 0
    up: int = 0

    @classmethod
    def nothing(cls, context: FederatedContext) -> Self:
        """Return the sums of no devices: zeros."""
        dim = context.dim
        return cls(np.zeros((context.num_items, dim), np.int64), np.zeros((dim, dim), np.int64))

    def add(self, updates: RowUpdates, sent: int) -> None:
        """Add the rows that devices changed, narrower ones to the first columns. sent: numbers that each was sent."""
        add_updates(updates.items, updates.rows, UNITS, self.rows)
        self.count(len(updates.indptr) - 1, sent, len(updates.items) * (1 + updates.rows.shape[1]))

    def count(self, devices: int, sent: int, answered: int) -> None:
        """Count devices that were sent so many numbers each, and what all of them answered."""
        self.devices += devices
        self.down += devices * sent * NUMBER_BYTES
        self.up += answered * NUMBER_BYTES

    def changes(self) -> NDArray[np.float64]:
        """Return the sum of the changes of rows, (I, d)."""
        return self.rows / UNITS


@dataclass(frozen=True)
class ServedTables:
    """The tables that devices rank with. tables: by tier, (I, w_t) each; tier: (U,) which one a device holds; users (U,
    d), of which a device uses the first w_t columns. own: rows that single devices hold instead of the table's.
    """

    tables: tuple[FloatArray, ...]
    tier: IntArray
    users: FloatArray
    own: RowUpdates | None = None

    @classmethod
    def for_everybody(cls, table: FloatArray, users: FloatArray, own: RowUpdates | None = None) -> Self:
        """Return one table (I, d) for all users (U, d)."""
        return cls((table,), np.zeros(len(users), np.int64), users, own)


Setting = TypeVar("Setting")


class Federated(Protocol[Setting]):
    """A method. Server, Kept: whatever its server, and its devices, have; only ``contribute`` and ``served``, which are
    of devices, see both what was sent and what is kept.
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

    def contribute(self, server: Any, kept: Any, devices: IntArray, now: FederatedRound, sums: RoundSums) -> None:
        """Run the device half of a round: devices change what they keep, and add to the sums."""

    def merged(self, server: Any, sums: RoundSums, setting: Setting) -> Any:
        """The server half of a round."""

    def served(self, server: Any, kept: Any, context: FederatedContext, setting: Setting) -> ServedTables:
        """Return what devices rank with, once they have the present table; nothing they keep changes."""


def quality(
    served: ServedTables,
    context: FederatedContext,
    split: Split,
    precision: Precision = "fp32",
    among: IntArray | None = None,
) -> dict[str, float]:
    """Mean Recall@20 and NDCG@20 over devices (or the given ones) with at least one item to find."""
    return served_quality(served, context, split, precision, among).mean()


def served_quality(
    served: ServedTables,
    context: FederatedContext,
    split: Split,
    precision: Precision = "fp32",
    among: IntArray | None = None,
) -> DeviceQuality:
    """Return the quality for each device (or each of the given ones); those with an item to find are counted."""
    asked = context.devices if among is None else among
    parts = []
    for place, table in enumerate(served.tables):
        some = asked[served.tier[asked] == place]
        stored, users = DenseTable.from_table(table, precision), served.users[:, : table.shape[1]]
        if served.own is None:
            option = whole_table(Request(precision, 1.0, 0), stored, users, 0.0)
            parts.append(device_quality(option, context, split, some))
        else:
            scores = own_scores(served.own, table, stored, stored_user(users[some]), some)
            lists = best_lists(scores, context.hidden(split).select(some), context.num_items)
            wanted = context.wanted(split).select(some)
            metrics = list_metrics(lists, wanted, context.num_items)
            parts.append(DeviceQuality(some, *metrics, wanted.counts() > 0))
    return DeviceQuality(
        *(np.concatenate([getattr(one, each.name) for one in parts]) for each in fields(DeviceQuality))
    )


def own_scores(
    own: RowUpdates, table: FloatArray, stored: DenseTable, users: FloatArray, devices: IntArray
) -> Callable[[IntArray], FloatArray]:
    """Return the function that scores all items for some of these devices (N,), by their own rows where they have any.

    table: (I, d) that ``own`` changes; stored: the same as devices store it; users: (N, d).
    """
    decoded = stored.decoded()[1]

    def scores_of(some: IntArray) -> FloatArray:
        scores: FloatArray = users[some] @ decoded.T
        for place, one in enumerate(some):
            mine = slice(own.indptr[devices[one]], own.indptr[devices[one] + 1])
            rows = table[own.items[mine]] + own.rows[mine]
            # as they come back from storage
            rows = dequantize(*quantize(rows, stored.precision), stored.precision, rows.shape[1])
            scores[place, own.items[mine]] = rows @ users[one]
        return scores

    return scores_of


def held_bytes(served: ServedTables, precision: Precision) -> IntArray:
    """Bytes (U,) of what each device holds to rank: header, vector in fp16, its whole table."""
    sizes = [stored_bytes(DenseTable.from_table(table, precision)) for table in served.tables]
    return np.array(sizes, np.int64)[served.tier]


RECALL = "recall@20"


@dataclass(frozen=True)
class Effort:
    """The effort for every setting. rounds: at most; every: rounds between looks at validation; patience: looks without
    a better recall after which it ends; panel: devices that are looked at, drawn by the seed.
    """

    rounds: int = 150
    every: int = 5
    patience: int = 6
    panel: int = 2000


@dataclass(frozen=True)
class BestRound:
    """A training's best round. recall: of the panel on validation; down, up: bytes of all devices until then; last:
    round.
    """

    setting: Any
    round: int
    recall: float
    served: ServedTables
    down: int
    up: int
    last: int


def train(method: Federated[Any], setting: Any, context: FederatedContext, effort: Effort) -> BestRound:
    """Rounds until validation is no longer better or numbers diverge; parties as in :class:`Federated`."""
    able = np.flatnonzero(context.splits.validation.counts() > 0)
    panel = np.sort(rng_for(context.seed, "federated-panel").permutation(able)[: effort.panel])
    server, kept = method.server(context, setting), method.device_states(context, setting)
    down = up = 0
    best: BestRound | None = None
    number = 0
    for number in range(1, effort.rounds + 1):
        sums = RoundSums.nothing(context)
        for some in context.chunks(context.present(number)):
            method.contribute(server, kept, some, FederatedRound(context, setting, number), sums)
        down, up = down + sums.down, up + sums.up
        server = method.merged(server, sums, setting)
        if number % effort.every and number != effort.rounds:
            continue
        final = method.served(server, kept, context, setting)
        if not storable(final):
            break
        without = () if final.own is None else (replace(final, own=None),)
        for served in (final, *without):  # with devices' own rows, if there are any, and without
            recall = quality(served, context, "validation", among=panel)[RECALL]
            if best is None or recall > best.recall:
                kept_now = replace(served, users=served.users.copy())  # later rounds change what devices keep
                best = BestRound(setting, number, recall, kept_now, down, up, number)
        assert best is not None
        if number - best.round >= effort.patience * effort.every:
            break
    return replace(best or diverged(context, setting), last=number)


def storable(served: ServedTables) -> bool:
    """Whether all numbers are finite, and vectors fit fp16: training has not diverged."""
    parts = (*served.tables, *(() if served.own is None else (served.own.rows,)))
    largest = float(np.abs(served.users).max(initial=0))
    return all(np.isfinite(part).all() for part in parts) and largest < float(np.finfo(np.float16).max)


def diverged(context: FederatedContext, setting: Any) -> BestRound:
    """Return the result of a setting under which no table could be served: zero recall for every device."""
    table, users = np.zeros((context.num_items, 1), np.float32), np.zeros((len(context.devices), 1), np.float32)
    return BestRound(setting, 0, 0.0, ServedTables.for_everybody(table, users), 0, 0, 0)


def tuned(
    method: Federated[Any], context: FederatedContext, precisions: Sequence[Precision], effort: Effort | None = None
) -> dict[str, Any]:
    """The method at its best setting and round: {"rows": one for each precision, "setting", "own_rows",
    "tried", "trained"}.

    Bytes are of the chosen training alone, up to its best round; ``down`` with the table that is served in the end.
    """
    effort = effort or Effort()
    start = time.perf_counter()
    best: BestRound | None = None
    tried = []
    for place, setting in enumerate(method.grid, start=1):
        one = train(method, setting, context, effort)
        tried.append({"setting": plain(setting), "round": one.round, "last": one.last, "validation": one.recall})
        if best is None or one.recall > best.recall:
            best = one
        text = f"{plain(setting)}: validation {RECALL} {one.recall:.4f} after {one.round} rounds"
        context.on_event(Event(method.name, place, len(method.grid), text))
    assert best is not None
    seconds = time.perf_counter() - start
    rows = [
        trial_row(best, context, precision) | {"seconds": seconds, "trials": len(method.grid)}
        for precision in precisions
    ]
    own_rows = best.served.own is not None
    return {"rows": rows, "setting": plain(best.setting), "own_rows": own_rows, "tried": tried, "trained": best}


def trial_row(
    best: BestRound, context: FederatedContext, precision: Precision, served: ServedTables | None = None
) -> dict[str, Any]:
    """Return what is reported of a training at a precision; ``served`` in place of what it serves."""
    shown = served or best.served
    held = held_bytes(shown, precision)
    on_test = served_quality(shown, context, "test", precision)
    return {
        "precision": precision,
        "stored_bytes_max": int(held.max(initial=0)),
        "stored_bytes_mean": float(held.mean()),
        "bytes_down_mean": (best.down + int(held.sum())) / len(held),
        "bytes_up_mean": best.up / len(held),
        "rounds": best.round,
        "validation_recall@20": quality(shown, context, "validation", precision)[RECALL],
        **on_test.mean(),
        "replicates": replicates(on_test),
    }


def plain(setting: Any) -> dict[str, Any]:
    """A setting for the report."""
    return asdict(setting) if is_dataclass(setting) and not isinstance(setting, type) else {}


@dataclass(frozen=True)
class Popularity:
    """The popularity rival. A device sends a 1 for each of its items, once, in the first round that it takes part in.
    There is nothing to set.

    The server has counts (I, 1); devices keep whether they have spoken (U,).
    """

    name: str = "popularity"
    grid: tuple[None, ...] = (None,)

    def server(self, context: FederatedContext, setting: None) -> FloatArray:
        return np.zeros((context.num_items, 1), np.float32)

    def device_states(self, context: FederatedContext, setting: None) -> np.ndarray:
        """Return the start: no device has contributed yet."""
        return np.zeros(len(context.devices), np.bool_)

    def contribute(
        self, server: FloatArray, kept: np.ndarray, devices: IntArray, now: FederatedRound, sums: RoundSums
    ) -> None:
        """Add a one for each item of the devices that have not contributed yet."""
        train = now.context.train.select(devices[~kept[devices]])
        kept[devices] = True
        sums.add(RowUpdates(train.indptr, train.items, np.ones((len(train.items), 1), np.float32)), 0)

    def merged(self, server: FloatArray, sums: RoundSums, setting: None) -> FloatArray:
        return (server + sums.changes()[:, :1]).astype(np.float32)

    def served(self, server: FloatArray, kept: np.ndarray, context: FederatedContext, setting: None) -> ServedTables:
        """Serve the counts as a table of one column, a score that is the same for all devices."""
        return ServedTables.for_everybody(server, np.ones((len(context.devices), 1), np.float32))
