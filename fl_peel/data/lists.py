"""LightGCN's lists: a line per user, ``user item item ...``, numbers from 0, split by blanks -> pairs.

Gowalla, Yelp2018 and Amazon-Book are published like this, as ``train.txt`` and ``test.txt`` (He et al.,
"LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.text_tables import label_fault, read_bytes
from fl_peel.errors import DataError

MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Lists:
    """Pairs of one file, as they stand in it (repeats included), and whom it lists.

    users, items: (N,) int64 numbers from 0; listed_users: (L,) int64, the first number of each line.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    listed_users: NDArray[np.int64]


def read_lists(path: Path) -> Lists:
    """Read one list file; a line with nothing but a user is a user without items.

    Raises:
        DataError: no such file, empty, or a line that holds anything but whole numbers from 0 to 2**31 - 1.
    """
    raw = read_bytes(path)
    data = np.frombuffer(raw, dtype=np.uint8)
    is_digit = (data >= ord("0")) & (data <= ord("9"))
    is_break = (data == ord("\n")) | (data == ord("\r"))
    if not (is_digit | is_break | (data == ord(" ")) | (data == ord("\t"))).all():
        raise _fault(path, raw)
    edges = np.flatnonzero(np.diff(is_digit.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]  # (T,) each: where every number starts and ends
    if (ends - starts).max() > len(str(MAX_ID)):
        raise _fault(path, raw)
    numbers = np.fromstring(raw.decode("ascii"), dtype=np.int64, sep=" ")  # (T,)
    assert len(numbers) == len(starts)
    if numbers.max() > MAX_ID:
        raise _fault(path, raw)
    line = np.searchsorted(np.flatnonzero(is_break), starts)  # (T,) line of each number
    is_user = np.diff(line, prepend=-1) > 0  # the first number of its line
    users = numbers[is_user]
    row = np.cumsum(is_user) - 1
    return Lists(users[row[~is_user]], numbers[~is_user], users)


def _fault(path: Path, raw: bytes) -> DataError:
    for line, content in enumerate(raw.splitlines(), start=1):
        try:
            words = content.decode("utf-8").split()
        except UnicodeDecodeError:
            return DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8")
        for place, word in enumerate(words):
            what = "item" if place else "user"
            if fault := label_fault(word, integer_ids=True):
                return DataError(f"{path}:{line}: {what} {fault}")
            if len(word) > len(str(MAX_ID)) or int(word) > MAX_ID:
                return DataError(f"{path}:{line}: {what} {word} is above {MAX_ID}; number ids from 0 without gaps")
    return DataError(f"{path}: holds more than numbers and blanks; write lines like: user item item")
