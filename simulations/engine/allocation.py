"""Memory that arrays have freed is used again by the next ones.

A run makes and frees arrays of about ten megabytes by the thousand. The C library hands each back to the system, which
clears every page anew: that takes longer than most of what is computed in them. And what one thread has freed another
is not given, unless they share one arena: a server of many groups, whose threads take turns, would need half as much
again. Only glibc has these settings.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

MMAP_THRESHOLD_BYTES = 64 << 20
"""Size in bytes above which freed memory is handed back."""
TRIM_THRESHOLD_BYTES = (1 << 31) - 1
"""Free memory at the end of the heap that is kept."""
ARENAS = 1
"""Number of arenas, from which all threads allocate."""
WORKERS = {
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
    "MALLOC_ARENA_MAX": str(ARENAS),
}
"""The same for processes that are started, in their environment."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def reuse_memory() -> None:
    """Reuse memory in this process from now on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        mallopt(_M_ARENA_MAX, ARENAS)


@contextmanager
def lasting_objects() -> Iterator[None]:
    """What there is by now, modules above all, stays: whoever looks for garbage, which thousands of arrays a round make
    Python do, need not go through it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


__all__ = ["WORKERS", "lasting_objects", "reuse_memory"]
