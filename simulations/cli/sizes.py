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


# ---- Shares of the full table as they are typed on the command line


def read_budgets(text: str, option: str = "--budgets") -> tuple[float, ...]:
    """``0.1%,0.25%,0.01`` as ascending fractions.

    Raises:
        BudgetError: not a list of shares above 0 and at most 1.
    """
    shares = []
    for part in text.split(","):
        word = part.strip()
        try:
            share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
        except ValueError as error:
            raise BudgetError(f"{option}: {word!r} is not a share; write e.g. 0.5%,1%") from error
        if not 0 < share <= 1:
            raise BudgetError(f"{option}: {word} is not above 0 and at most 100%; write e.g. 0.5%,1%")
        shares.append(share)
    return tuple(sorted(set(shares)))
