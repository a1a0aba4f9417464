"""Arrays that nobody works on for a while lie in a file of the run's folder, as large tables do
(:mod:`strategies.groups.group_tables`): of hundreds of user groups, what is known of blocks takes as much memory again.

An array that lies there is one like any other, to be read. Its pages come into memory as they are used, and
:func:`fl_peel.mmap_arrays.drop_pages_now` lets them go.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.mmap_arrays import drop_pages_now, lies_in_file
from strategies.groups.group_tables import give_room, write_all

MOST_IN_MEMORY = 64 << 20
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
    return Shelf(folder) if folder and num_bytes > MOST_IN_MEMORY else None
