"""Storage of the item tables of user groups: in memory or, where they are many gigabytes, in a file of the run's
folder.

A table in a file is an array like any other. Its pages come into memory as they are used;
:func:`fl_peel.mmap_arrays.drop_pages_now` lets them go again, so that a server of hundreds of groups needs memory for
those that it works on.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.mmap_arrays import drop_pages_now, lies_in_file

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


def copied_tables(tables: Sequence[FloatArray], folder: str, *, most_in_memory: int | None = None) -> list[FloatArray]:
    """The same tables (I, d) once more, where :func:`empty_tables` would have them. A file is written and not mapped
    meanwhile: a page that is written through a map takes four times as long.

    Raises:
        OSError: the folder's disk has no room for them.
    """
    shape = tables[0].shape if tables else (0, 0)
    room = _room(len(tables), shape, folder, most_in_memory)
    if not room:
        return [table.copy() for table in tables]
    with tempfile.TemporaryFile(dir=folder, prefix="tables-") as file:
        give_room(file.fileno(), len(tables) * room)
        for place, table in enumerate(tables):
            write_all(file.fileno(), memoryview(np.ascontiguousarray(table).reshape(-1).data).cast("B"), place * room)
            drop_pages_now(table)
        return _mapped(file.fileno(), len(tables), room, shape)


def _room(count: int, shape: tuple[int, ...], folder: str, most_in_memory: int | None) -> int:
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
