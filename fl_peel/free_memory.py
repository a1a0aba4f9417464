"""Memory that was freed, which the C library keeps for what comes next (:mod:`simulations.engine.allocation`)."""

from __future__ import annotations

import ctypes


def release_memory() -> None:
    """Hand back what is free now: between stages, each of which makes arrays of other sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


__all__ = ["release_memory"]
