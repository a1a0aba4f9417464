"""The rule that no sum of few devices is opened: a step counts who would contribute, then opens what enough do.

A sum with a single contributor is that contributor's own number. Stage 1 adds up rows: of a pass one for each item, of
user groups and moments one for each group, of the choice of a filter a single one. A step therefore has two parts for
the same devices. In the first one devices say to which rows they would contribute, and their numbers are added up; in
the second one they contribute to the rows of which :func:`opened_rows` says that they may be opened, and say zeros for
all others, so that a row that stays closed looks as if nobody were there.

Counts themselves are opened: they say how many devices contribute, and nothing else of any of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Bits = NDArray[np.uint8]


def opened_rows(contributors: NDArray[Any], least: int) -> Bools:
    """Return which rows (R,) may be opened, of which so many devices (R,) contribute to each: ``privacy.min_owners``
    of them at the least.
    """
    return np.asarray(contributors >= least)


def packed_rows(opened: Bools) -> Bits:
    """Return the rows (R,) that are opened as they are sent, a bit each."""
    return np.packbits(opened)


def unpacked_rows(bits: Bits, rows: int) -> Bools:
    """Return which of so many rows are opened, (R,), of what was sent; a row whose bit lacks stays closed."""
    opened = np.zeros(rows, np.bool_)
    known = np.unpackbits(bits)[:rows].astype(np.bool_)
    opened[: len(known)] = known
    return opened


__all__ = ["Bits", "Bools", "opened_rows", "packed_rows", "unpacked_rows"]
