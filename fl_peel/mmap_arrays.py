"""Arrays that lie in files: their pages come into memory as they are used, and may be let go again."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = mmap.PAGESIZE
AROUND_BYTES = 1 << 16
"""Around a page that is read, which the system brings into memory with it."""
MOST_IN_MEMORY = 64 << 20
"""Bytes of an array that stay in memory once they were used."""


def drop_pages(*arrays: NDArray[Any]) -> None:
    """Arrays are not needed for a while: where they are large and lie in files, these keep them, memory need not."""
    for array in arrays:
        if array.nbytes > MOST_IN_MEMORY:
            drop_pages_now(array)


def lies_in_file(array: NDArray[Any]) -> bool:
    """Whether a file keeps it."""
    return isinstance(_home(array), mmap.mmap)


def _home(array: NDArray[Any]) -> object:
    """What an array's numbers lie in, where it is not the array's own."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def drop_pages_now(array: NDArray[Any]) -> None:
    """A contiguous array is not needed for a while, however small. Nothing for one in memory."""
    base = _home(array)
    if isinstance(base, mmap.mmap) and array.nbytes and hasattr(mmap, "MADV_DONTNEED"):
        whole = np.frombuffer(base, np.uint8)
        start = array.ctypes.data - whole.ctypes.data
        page = max(start - AROUND_BYTES, 0) // PAGE_BYTES * PAGE_BYTES
        base.madvise(mmap.MADV_DONTNEED, page, min(start + array.nbytes + AROUND_BYTES, len(whole)) - page)


def rows_at(array: NDArray[Any], places: NDArray[np.integer]) -> NDArray[Any]:
    """Rows of a mapped array, in this order: (len(places), ...); of a large one, some at a time are in memory."""
    rows = np.empty((len(places), *array.shape[1:]), array.dtype)
    for some in _parts(array, places):
        rows[some] = array[places[some]]
        drop_pages(array)
    return rows


def put_rows(array: NDArray[Any], places: NDArray[np.integer], rows: NDArray[Any]) -> None:
    """Write rows (N, ...) at places (N,) of a mapped array, likewise."""
    for some in _parts(array, places):
        array[places[some]] = rows[some]
        drop_pages(array)


def _parts(array: NDArray[Any], places: NDArray[np.integer]) -> Iterator[slice]:
    """All places at once of a small array; of a large one as many as pages may stay, were each on one of its own."""
    at_once = max(len(places), 1) if array.nbytes <= MOST_IN_MEMORY else max(MOST_IN_MEMORY // PAGE_BYTES, 1)
    for first in range(0, len(places), at_once):
        yield slice(first, first + at_once)


# ---- Memory that was freed, which the C library keeps for what comes next (:mod:`simulations.engine.engine`)


def release_memory() -> None:
    """Hand back what is free now: between stages, each of which makes arrays of other sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
