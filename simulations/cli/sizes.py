"""Bytes as they are typed on the command line."""

from __future__ import annotations

import re

from fl_peel.errors import BudgetError, shortened

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
"""1 KB is 1000 bytes, as in all tables of a run; 1 KiB is 1024."""
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-z]*)")


def read_size(text: str, place: str = "--budget") -> int:
    """``100KB``, ``1.5 MB``, ``64KiB`` or ``4096`` in bytes, rounded down.

    Raises:
        BudgetError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise BudgetError(f"{place}: {shortened(repr(text), 40)} is not a number of bytes; write e.g. 100KB or 4096")
    return int(float(match[1]) * UNITS[match[2]])


__all__ = ["read_size"]
