"""Where the item tables of user groups lie: in memory or, where they are many gigabytes, in a file of the run's folder.

A table in a file is an array like any other. Its pages come into memory as they are used; :func:`fl_peel.mapped.rest`
lets them go again, so that a server of hundreds of groups needs memory for those that it works on.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

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
    num_bytes = 4 * math.prod(shape)
    room = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if not folder or count * room <= (MOST_IN_MEMORY if most_in_memory is None else most_in_memory):
        return [np.zeros(shape, np.float32) for _ in range(count)]
    with tempfile.TemporaryFile(dir=folder, prefix="tables-") as file:
        _give_room(file.fileno(), count * room)
        mapped = mmap.mmap(file.fileno(), count * room)
    return [np.ndarray(shape, np.float32, mapped, group * room) for group in range(count)]


def _give_room(file: int, num_bytes: int) -> None:
    """Give a file its length, and the disk's room for it: a mapped page without any would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
        return
    for start in range(0, num_bytes, MOST_COPIED):
        os.pwrite(file, bytes(min(MOST_COPIED, num_bytes - start)), start)


__all__ = ["FloatArray", "empty_tables"]
