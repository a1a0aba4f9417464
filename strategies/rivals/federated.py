"""Federated rivals: what all of them share, how each is tuned, and the simplest of them, which any must beat: the same
list for everybody.

Devices are simulated in one process, a chunk of them at a time, but the parts are kept apart as they would be:

- :meth:`Federated.answer`, the device half, reads what the server sent and what these devices keep, and returns their
  messages. It is the only place that sees interactions and users' vectors.
- Messages of single devices meet in a sum of whole numbers (``sums + message``), so that the order of devices, and how
  they are cut into chunks, cannot matter.
- :meth:`Federated.merged`, the server half, gets the server's own state and the sum. It is given nothing else.

Bytes are those of the arrays that a message is made of.

What a rival serves is measured by PEEL's own ranking, its bytes as they are stored.

All rivals have as many settings, rounds and looks at validation, so that none has been tuned with more effort.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.compression import DenseTable, stored_bytes
from fl_peel.blocks.precision import dequantize, quantize
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.events import Event, OnEvent, silent
from fl_peel.kernels.rivals import add_updates
from fl_peel.randomness import rng_for
from fl_peel.ranking.top import recall_ndcg, top_rows
from fl_peel.scenario.settings import Precision
from strategies.rivals.base import TOP_N, DeviceQuality, Request, Split, replicates, whole_table

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


@dataclass(frozen=True)
class FederatedRound:
    """A round of a training, by its number from 1 on; setting: of the method."""

    context: FederatedContext
    setting: Any
    number: int


class Message(Protocol):
    """The message of some devices."""

    @property
    def num_bytes(self) -> IntArray:
        """Return the bytes that each device sends, (N,), in the order in which the devices were asked."""


@dataclass(frozen=True)
class RowUpdates:
    """Changed rows of the item table, by device: indptr (N + 1,); items (E,), distinct in a device; rows (E, w)."""

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
        """Allocate updates for a compiled loop: rows that these devices can touch with ``draws`` per interaction."""
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

    def answer(self, server: Any, kept: Any, devices: IntArray, now: FederatedRound) -> Message:
        """Run the device half of a round: devices change what they keep, and send a message."""

    def merged(self, server: Any, sums: Any, setting: Setting) -> Any:
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
    """Return the quality for each device (or each of the given ones) with at least one item to find."""
    splits = context.splits
    wanted = splits.test if split == "test" else splits.validation
    exclude = context.seen if split == "test" else splits.train
    asked = np.arange(context.num_devices) if among is None else among
    recall, ndcg = np.zeros(context.num_devices), np.zeros(context.num_devices)
    chosen = asked[wanted.counts()[asked] > 0]
    for place, table in enumerate(served.tables):
        tier = chosen[served.tier[chosen] == place]
        for some in context.chunks(tier):
            users = stored_user(np.ascontiguousarray(served.users[some, : table.shape[1]]))
            option = whole_table(Request(precision, 1.0, 0), DenseTable.from_table(table, precision), users, 0.0)
            hidden = exclude.select(some)
            if served.own is None:
                best = top_rows(option.ranked, option.test_cutoffs, users, hidden, TOP_N)
            else:
                own = select_devices(served.own, some)
                theirs = UserItems(own.indptr, own.items)
                others = top_rows(option.ranked, option.test_cutoffs, users, hidden.merged(theirs), TOP_N)
                rows = served.tables[place][own.items] + own.rows
                rows = dequantize(
                    *quantize(rows, precision), precision, rows.shape[1]
                )  # as they come back from storage
                best = with_own_rows(others, option.ranked.table, users, hidden, replace(own, rows=rows), TOP_N)
            recall[some], ndcg[some] = recall_ndcg(option.ranked, best, wanted.select(some), TOP_N)
    return DeviceQuality(chosen, recall[chosen], ndcg[chosen], np.ones(len(chosen), np.bool_))


def held_bytes(served: ServedTables, precision: Precision) -> IntArray:
    """Bytes (U,) of what each device holds to rank: header, vector in fp16, its whole table."""
    sizes = [stored_bytes(DenseTable.from_table(table, precision)) for table in served.tables]
    return np.array(sizes, np.int64)[served.tier]


def select_devices(updates: RowUpdates, devices: IntArray) -> RowUpdates:
    """The updates of these devices (N,) alone, in this order."""
    numbered = UserItems(updates.indptr, np.arange(len(updates.items), dtype=np.int32)).select(devices)
    return RowUpdates(numbered.indptr, updates.items[numbered.items], updates.rows[numbered.items])


def with_own_rows(
    others: np.ndarray, table: FloatArray, users: FloatArray, hidden: UserItems, own: RowUpdates, n: int
) -> np.ndarray:
    """The n best items (N, n) of each device where some rows are its own; -1 where it has fewer.

    others: the best (N, n) among all items but these and hidden ones; own.rows: whole rows. Ties go to the smaller
    item, as in the ranking loop.
    """
    best = np.full_like(others, -1)
    for k in range(len(users)):
        some = slice(own.indptr[k], own.indptr[k + 1])
        allowed = ~np.isin(own.items[some], hidden.row(k))
        rest = others[k][others[k] >= 0]
        items = np.concatenate([own.items[some][allowed], rest])
        scores = np.concatenate([own.rows[some][allowed], table[rest]]) @ users[k]
        order = np.lexsort((items, -scores))[:n]
        best[k, : len(order)] = items[order]
    return best


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
    """A training's best round. recall: of the panel on validation; down, up: (U,) bytes until then; last: round."""

    setting: Any
    round: int
    recall: float
    served: ServedTables
    down: IntArray
    up: IntArray
    last: int


def train(method: Federated[Any], setting: Any, context: FederatedContext, effort: Effort) -> BestRound:
    """Rounds until validation is no longer better or numbers diverge; parties as in :class:`Federated`."""
    panel = panel_of(context, effort.panel)
    server, kept = method.server(context, setting), method.device_states(context, setting)
    down, up = np.zeros(context.num_devices, np.int64), np.zeros(context.num_devices, np.int64)
    best: BestRound | None = None
    number = 0
    for number in range(1, effort.rounds + 1):
        now = FederatedRound(context, setting, number)
        sums = method.nothing(context)
        for some in context.chunks(context.present(number)):
            down[some] += method.sent(server, some, context)
            message = method.answer(server, kept, some, now)
            up[some] += message.num_bytes
            sums += message
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
                best = BestRound(setting, number, recall, kept_now, down.copy(), up.copy(), number)
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
    nothing = np.zeros(context.num_devices, np.int64)
    table, users = np.zeros((context.num_items, 1), np.float32), np.zeros((context.num_devices, 1), np.float32)
    return BestRound(setting, 0, 0.0, ServedTables((table,), nothing, users), nothing, nothing, 0)


def panel_of(context: FederatedContext, size: int) -> IntArray:
    """Devices with validation items, at most so many, ascending."""
    able = np.flatnonzero(context.splits.validation.counts() > 0)
    return np.sort(rng_for(context.seed, "federated-panel").permutation(able)[:size])


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
        "bytes_down_mean": float((best.down + held).mean()),
        "bytes_up_mean": float(best.up.mean()),
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
        return np.zeros(context.num_devices, np.bool_)

    def sent(self, server: FloatArray, devices: IntArray, context: FederatedContext) -> IntArray:
        return np.zeros(len(devices), np.int64)

    def nothing(self, context: FederatedContext) -> RowSums:
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
        return (server + sums.changes()).astype(np.float32)

    def served(self, server: FloatArray, kept: np.ndarray, context: FederatedContext, setting: None) -> ServedTables:
        """Serve the counts as a table of one column, a score that is the same for all devices."""
        return ServedTables(
            (server,), np.zeros(context.num_devices, np.int64), np.ones((context.num_devices, 1), np.float32)
        )
