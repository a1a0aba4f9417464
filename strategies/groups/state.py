"""State of a user group on the server, and its table, which may lie on disk.

A table in a file is an array like any other. Its pages come into memory as they are used;
:func:`fl_peel.mmap_arrays.drop_pages_now` lets them go again, so that a server of hundreds of groups needs memory for
those that it works on.
"""

from __future__ import annotations

import copy
import math
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RowOrder, pack_ranking
from fl_peel.kernels import FIXED_POINT, add_rows, step_rows
from fl_peel.mmap_arrays import drop_pages_now, lies_in_file
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.wire import Arrays

FloatArray = NDArray[np.float32]
MOST_IN_MEMORY = 256 << 20
"""Bytes of all user groups' tables together that stay in memory."""
MOST_COPIED = 16 << 20
"""Bytes that are written at a time where a file gets its length by writing."""


def empty_tables(
    count: int, shape: tuple[int, int], folder: str, *, most_in_memory: int | None = None
) -> list[FloatArray]:
    """Tables (I, d) for so many user groups, of noughts. folder: for a file without a name, which is gone with the last
    of them; "" keeps all in memory. most_in_memory: bytes of all together that need no file,
    by default ``MOST_IN_MEMORY``.

    Raises:
        OSError: the folder's disk has no room for them.
    """
    room = _room(count, shape, folder, most_in_memory)
    if not room:
        return [np.zeros(shape, np.float32) for _ in range(count)]
    with tempfile.TemporaryFile(dir=folder, prefix="tables-") as file:
        give_room(file.fileno(), count * room)
        return _mapped(file.fileno(), count, room, shape)


def copied_tables(tables: Sequence[FloatArray], folder: str) -> list[FloatArray]:
    """The same tables (I, d) once more, where :func:`empty_tables` would have them. A file is written and not mapped
    meanwhile: a page that is written through a map takes four times as long.

    Raises:
        OSError: the folder's disk has no room for them.
    """
    shape = tables[0].shape if tables else (0, 0)
    room = _room(len(tables), shape, folder)
    if not room:
        return [table.copy() for table in tables]
    with tempfile.TemporaryFile(dir=folder, prefix="tables-") as file:
        give_room(file.fileno(), len(tables) * room)
        for place, table in enumerate(tables):
            write_all(file.fileno(), memoryview(np.ascontiguousarray(table).reshape(-1).data).cast("B"), place * room)
            drop_pages_now(table)
        return _mapped(file.fileno(), len(tables), room, shape)


def _room(count: int, shape: tuple[int, ...], folder: str, most_in_memory: int | None = None) -> int:
    """Bytes of the file for each of so many tables; 0 where they stay in memory."""
    room = -(-4 * math.prod(shape) // mmap.PAGESIZE) * mmap.PAGESIZE
    most = MOST_IN_MEMORY if most_in_memory is None else most_in_memory
    return room if folder and count * room > most else 0


def _mapped(file: int, count: int, room: int, shape: tuple[int, ...]) -> list[FloatArray]:
    mapped = mmap.mmap(file, count * room)
    return [np.ndarray(shape, np.float32, mapped, group * room) for group in range(count)]


def write_all(file: int, data: memoryview, place: int) -> None:
    """Write all of the bytes into an open file, from a place on: the system may write fewer at a time.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def give_room(file: int, num_bytes: int, begin: int = 0) -> None:
    """Give a file so many bytes from a place on, and the disk's room for them: a mapped page without any would end the
    process.

    Raises:
        OSError: the disk has no room for them.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, begin, num_bytes)
        return
    for start in range(0, num_bytes, MOST_COPIED):
        write_all(file, memoryview(bytes(min(MOST_COPIED, num_bytes - start))), begin + start)


# ---- Arrays that nobody works on for a while lie in a file of the run's folder, as large tables do
# Of hundreds of user groups, what is known of blocks takes as much memory again as tables do.
# An array that lies there is one like any other, to be read. Its pages come into memory as they are used, and
# :func:`fl_peel.mmap_arrays.drop_pages_now` lets them go.


MOST_UNSHELVED = 64 << 20
"""Bytes of what is known of all user groups' blocks together that stay in memory."""
CHUNK_BYTES = 32 << 20
"""Bytes that the file grows by, at least."""
_Slot = tuple[mmap.mmap, int, int]
"""A part of the file: its map, where it begins there, and where in the file."""


class Shelf:
    """A file without a name. An array lies there until nobody holds it, nor a view of it; then another takes its place.

    folder: what the file is in.
    """

    def __init__(self, folder: str) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix="shelf-")  # noqa: SIM115  (as long as anything lies there)
        self._free: dict[int, list[_Slot]] = {}
        self._end = 0
        self._growing = threading.Lock()

    def put(self, array: NDArray[Any]) -> NDArray[Any]:
        """The same array, which lies there from now on; as it is where the disk has no room."""
        if lies_in_file(array) or not array.nbytes:
            drop_pages_now(array)
            return array
        room = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            mapped, start, place = self._slot(room)
            data = np.ascontiguousarray(array).reshape(-1).data.cast("B")
            write_all(self._file.fileno(), data, place)
        except OSError:
            return array
        shelved = np.ndarray(array.shape, array.dtype, mapped, start)
        shelved.flags.writeable = False
        # a view of it holds this very array, as its own base is no array
        weakref.finalize(shelved, self._free[room].append, (mapped, start, place)).atexit = False
        return shelved

    def _slot(self, room: int) -> _Slot:
        """A free part of the file.

        Raises:
            OSError: the disk has no room for another one.
        """
        free = self._free.setdefault(room, [])
        try:
            return free.pop()
        except IndexError:
            pass
        with self._growing:
            begin, count = self._end, max(CHUNK_BYTES // room, 1)
            give_room(self._file.fileno(), count * room, begin)
            self._end = begin + count * room
        mapped = mmap.mmap(self._file.fileno(), count * room, offset=begin)
        free.extend((mapped, number * room, begin + number * room) for number in range(1, count))
        return mapped, 0, begin


def put_once(shelf: Shelf | None, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays by name that many share: on a shelf, where there is one, they lie once."""
    return {name: array if shelf is None else shelf.put(array) for name, array in arrays.items()}


def shelf_for(num_bytes: int, folder: str) -> Shelf | None:
    """A shelf where so many bytes are worth one. folder: "" keeps all in memory.

    Raises:
        OSError: no file can be made there.
    """
    return Shelf(folder) if folder and num_bytes > MOST_UNSHELVED else None


def block_energy(layout: BlockLayout, table: FloatArray) -> FloatArray:
    """Mean squared length of each block's row pieces, (I, d) -> (B,)."""
    squares = _row_energy(layout, table)
    if layout.is_single:
        energy: FloatArray = squares.reshape(-1)
        return energy
    columns = [
        np.bincount(layout.item_group, weights=squares[:, s], minlength=layout.num_item_groups)
        for s in range(layout.num_slices)
    ]
    return (np.stack(columns, axis=1) / layout.group_sizes[:, None]).reshape(-1).astype(np.float32)


def _row_energy(layout: BlockLayout, rows: FloatArray) -> FloatArray:
    """Squared length of each slice of rows, (R, d) -> (R, S)."""
    pieces = rows.reshape(len(rows), layout.num_slices, layout.slice_dim)
    squares: FloatArray = np.einsum("isk,isk->is", pieces, pieces)
    return squares


@dataclass
class UserGroupState:
    """A user group: its table (I, d), knowledge of blocks, optimizer. shelf: where it rests, None: in memory."""

    table: FloatArray
    statistics: BlockStatistics
    optimizer: ServerOptimizer
    counted_interactions: NDArray[np.float64]
    counted_devices: NDArray[np.float64]
    shelf: Shelf | None = None

    def packed(
        self, layout: BlockLayout, precision: Precision, weights: NDArray[np.float64], num_bytes: int | None
    ) -> Arrays:
        """The best blocks by their weights (B,), as many as ``num_bytes`` hold (None: all), for the wire."""
        packed = pack_ranking(layout, precision, weights, self.table, num_bytes)
        self.drop_pages()
        return packed

    def drop_pages(self) -> None:
        """Nothing of it is needed for a while."""
        drop_pages_now(self.table)
        for name, known in vars(self.statistics).items():
            setattr(self.statistics, name, self.shelved(known))
        self.counted_interactions = self.shelved(self.counted_interactions)
        self.counted_devices = self.shelved(self.counted_devices)

    def shelved(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of this user group's blocks that is not needed for a while, where such arrays lie."""
        return array if self.shelf is None else self.shelf.put(array)

    def _known(self) -> list[NDArray[Any]]:
        return [*vars(self.statistics).values(), self.counted_interactions, self.counted_devices]

    def copied_to(self, table: FloatArray) -> UserGroupState:
        """A copy with ``table`` (I, d) in place of the table; what is known of blocks is shared, and never changed."""
        table[:] = self.table
        self.drop_pages()
        drop_pages_now(table)
        return self.with_copy(table)

    def with_copy(self, table: FloatArray) -> UserGroupState:
        """A copy that has ``table`` (I, d), which is as this one's."""
        for known in self._known():
            known.flags.writeable = False
        statistics, optimizer = copy.copy(self.statistics), copy.deepcopy(self.optimizer)
        return replace(self, table=table, statistics=statistics, optimizer=optimizer)

    def take_statistics(
        self,
        layout: BlockLayout,
        blocks: NDArray[np.int64],
        order: RowOrder,
        total: BlockSums,
        scenario: Scenario,
        *,
        all_rows: bool = False,
    ) -> None:
        """Change what is known of the blocks by one round's sums. blocks: (K,) as they were ranked when sent; order: of
        their rows, those of the table that may have changed. all_rows: any row may have.
        """
        statistics, before = self.statistics, self._known()
        if layout.is_single and layout.num_slices == 1:
            self._count_rows(order.items, blocks, total, scenario)
        else:
            self._count_blocks(layout, order.items, blocks, total, scenario)
        sizes = layout.group_sizes if layout.num_slices == 1 else np.repeat(layout.group_sizes, layout.num_slices)
        devices = np.maximum(self.counted_devices, 1)
        rate = self.counted_interactions / (devices if layout.is_single else devices * sizes)
        statistics.popularity = rate.astype(np.float32)
        few_rows = 2 * len(order.items) < layout.num_items  # to gather more takes longer than to go through all
        if layout.is_single and few_rows and not all_rows:
            statistics.energy = statistics.energy.copy()  # a copy of this state may have the array before
            energy = statistics.energy.reshape(layout.num_items, layout.num_slices)
            for start in range(0, len(order.items), CHUNK_ROWS):
                some = order.items[start : start + CHUNK_ROWS]
                energy[some] = _row_energy(layout, self.table[some])
        else:
            statistics.energy = block_energy(layout, self.table)
        if total.exposed.any():
            hits, exposure = np.zeros(layout.num_blocks), np.zeros(layout.num_blocks)
            hits[blocks] = total.hits / FIXED_POINT
            exposure[blocks] = total.exposed * sizes[blocks]
            statistics.add_signals(hits, exposure, scenario.controller.signal_momentum)
        for known in before:  # some of it is known no more, but to a copy
            drop_pages_now(known)

    def _count_rows(
        self, items: NDArray[np.int32], blocks: NDArray[np.int64], total: BlockSums, scenario: Scenario
    ) -> None:
        """Losses, interactions and devices where a block is a row: of those that were sent alone."""
        known = total.row_examples > 0
        loss = self.statistics.loss.copy()  # a copy of this state may have the arrays before
        interactions, devices = self.counted_interactions.copy(), self.counted_devices.copy()
        loss[items[known]] = total.row_loss[known] / FIXED_POINT / total.row_examples[known]
        interactions[items] += total.row_examples / scenario.refinement.local.epochs
        devices[blocks] += total.holders
        self.statistics.loss, self.counted_interactions, self.counted_devices = loss, interactions, devices

    def _count_blocks(
        self,
        layout: BlockLayout,
        items: NDArray[np.int32],
        blocks: NDArray[np.int64],
        total: BlockSums,
        scenario: Scenario,
    ) -> None:
        statistics = self.statistics
        groups, slices = layout.item_group[items], layout.num_slices
        examples = np.bincount(groups, weights=total.row_examples, minlength=layout.num_item_groups)
        losses = np.bincount(groups, weights=total.row_loss / FIXED_POINT, minlength=layout.num_item_groups)
        mean_loss = np.divide(losses, examples, out=np.zeros(len(losses)), where=examples > 0)
        known = np.repeat(examples > 0, slices)
        statistics.loss = np.where(known, np.repeat(mean_loss, slices), statistics.loss).astype(np.float32)
        holders = np.zeros(layout.num_blocks)
        holders[blocks] = total.holders
        # an interaction counts on every device that has some slice of the row: as many as hold the best-held one
        holders = np.repeat(holders.reshape(-1, slices).max(axis=1), slices)
        examples_each = np.repeat(examples, slices) / scenario.refinement.local.epochs
        self.counted_interactions = self.counted_interactions + examples_each  # a copy may have the array before
        self.counted_devices = self.counted_devices + holders


def known_bytes(num_blocks: int) -> int:
    """Return the bytes that the statistics of so many blocks of a user group take, once it has learned of them."""
    return num_blocks * (5 * 4 + 4 * 8)


def copied_states(states: Sequence[UserGroupState], folder: str) -> list[UserGroupState]:
    """User groups as they are now, whatever becomes of these. folder: as in :func:`empty_tables`.

    Raises:
        OSError: the folder's disk has no room for the tables.
    """
    tables = copied_tables([state.table for state in states], folder)
    return [state.with_copy(table) for state, table in zip(states, tables, strict=True)]


# ---- Block-wise aggregation on plain arrays: from sums over devices to mean updates, and the server's optimizer,
# which applies them to the rows of a group table


@dataclass
class ServerOptimizer:
    """Applies mean updates to rows of one table (Reddi et al., "Adaptive Federated Optimization", ICLR 2021).

    ``sgd`` adds learning_rate x update; ``adam`` and ``adagrad`` keep moments per table entry. Entries that no device
    changed stay as they are, and so do their moments.
    """

    name: Literal["sgd", "adam", "adagrad"]
    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-3
    _first: FloatArray | None = field(default=None, repr=False)
    _second: FloatArray | None = field(default=None, repr=False)

    def apply(
        self, table: FloatArray, items: NDArray[np.integer], update: FloatArray, changed: NDArray[np.bool_]
    ) -> None:
        """Change rows ``items`` (R,) of ``table`` (I, d) in place by ``update`` (R, d), where ``changed`` (R, d)."""
        if self.name == "sgd":
            step = update
        else:
            if self._first is None or self._second is None:
                self._first, self._second = np.zeros_like(table), np.zeros_like(table)
            first, second = self._first[items], self._second[items]
            if self.name == "adagrad":
                first, second = update, second + update**2
            else:
                first = self.beta_1 * first + (1 - self.beta_1) * update
                second = self.beta_2 * second + (1 - self.beta_2) * update**2
            step = first / (np.sqrt(second) + np.float32(self.epsilon))
            self._first[items] = np.where(changed, first, self._first[items])
            self._second[items] = np.where(changed, second, self._second[items])
        table[items] += np.where(changed, np.float32(self.learning_rate) * step, np.float32(0))


Denominator = Literal["holders", "touched"]


CHUNK_ROWS = 2048
"""Rows whose sums are added up at a time: as many as stay in a processor's own cache."""


@dataclass
class BlockSums:
    """The sums over the devices of one user group in a round, added up over nodes. Order-free: all integers.

    For R table rows of S slices and K ranked blocks: parts, the rows (T,) and sums (T, d) of every node; touched
    (R, S); row_loss, row_examples (R,); holders, hits, shown, exposed (K,).
    """

    dim: int
    parts: list[tuple[NDArray[np.integer], NDArray[np.integer]]]
    touched: NDArray[np.int64]
    row_loss: NDArray[np.int64]
    row_examples: NDArray[np.int64]
    holders: NDArray[np.int64]
    hits: NDArray[np.int64]
    shown: NDArray[np.int64]
    exposed: NDArray[np.int64]

    @staticmethod
    def zeros(num_rows: int, num_slices: int, dim: int, num_blocks: int) -> BlockSums:
        return BlockSums(
            dim,
            [],
            np.zeros((num_rows, num_slices), np.int64),
            *(np.zeros(num_rows, np.int64) for _ in range(2)),
            *(np.zeros(num_blocks, np.int64) for _ in range(4)),
        )

    def add(self, reply: dict[str, NDArray[np.integer]]) -> None:
        """Add one node's reply for this user group; its rows are distinct."""
        rows = reply["rows"]
        self.parts.append((rows, reply["sums"]))
        if "wide_rows" in reply:
            self.parts.append((reply["wide_rows"], reply["wide_sums"]))
        for name in ("touched", "row_loss", "row_examples"):
            getattr(self, name)[rows] += reply[name]
        for name in ("holders", "hits", "shown", "exposed"):
            if name in reply:
                getattr(self, name)[:] += reply[name]

    @property
    def sums(self) -> NDArray[np.int64]:
        """Block updates (R, d) in units of 1 / FIXED_POINT, added up."""
        total = np.zeros((len(self.touched), self.dim), np.int64)
        for rows, sums in self.parts:
            add_rows(total, 0, rows, sums)
        return total


def mean_update(
    total: BlockSums, position: NDArray[np.int32], denominator: Denominator
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Mean block update (R, d), and which entries any device changed (R, d).

    position: (R, S) rank of each block, K where it was not sent. "holders" divides by the devices that held the block
    (McMahan et al., AISTATS 2017, block by block); "touched" by those that changed that slice of the row: with one item
    per block most holders never meet a given item, and a mean over them would forget what the others learned.
    """
    width = total.dim // position.shape[1]
    mean = total.sums * np.repeat(_scale(total, position, denominator), width, axis=1)
    return mean.astype(np.float32), np.repeat(total.touched > 0, width, axis=1)


def _scale(total: BlockSums, position: NDArray[np.int32], denominator: Denominator) -> NDArray[np.float64]:
    """Return the factors (R, S) that turn sums into means."""
    counts = total.touched
    if denominator == "holders":
        counts = np.concatenate([total.holders, [0]])[position]
    return np.where(counts > 0, 1.0 / (np.maximum(counts, 1) * FIXED_POINT), 0.0)


def apply_mean(
    table: FloatArray,
    items: NDArray[np.int32],
    total: BlockSums,
    position: NDArray[np.int32],
    denominator: Denominator,
    optimizer: ServerOptimizer,
) -> None:
    """Change rows ``items`` (R,) of ``table`` (I, d) in place by the mean update: mean_update, then optimizer.apply.

    Plain steps take sums to the table chunk by chunk and build no mean of the whole table; the result is the same to
    the last bit.
    """
    ascending = all((np.diff(rows) > 0).all() for rows, _ in total.parts)
    if optimizer.name != "sgd" or not ascending:
        update, changed = mean_update(total, position, denominator)
        rows = changed.any(axis=1)
        optimizer.apply(table, items[rows], update[rows], changed[rows])
        return
    scale = np.where(total.touched > 0, _scale(total, position, denominator), 0.0)
    chunk = np.zeros((min(CHUNK_ROWS, len(items)), total.dim), np.int64)
    for start in range(0, len(items), CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, len(items))
        for part, sums in total.parts:
            first, last = np.searchsorted(part, [start, stop])
            add_rows(chunk, start, part[first:last], sums[first:last])
        step_rows(table, items[start:stop], chunk, scale[start:stop], np.float32(optimizer.learning_rate))
