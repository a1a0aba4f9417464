"""A catalogue: the ids of all items, in an order that everybody shares. It is no one's data.

A text file with one id a line; the item in line n + 1 has the number n. With it interactions that lie in many places
have the same numbers, whoever holds which of them.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.interactions import IntArray, Interactions, UserItems
from fl_peel.data.text_tables import ALIASES, label_fault, read_bytes
from fl_peel.errors import DataError, shortened

logger = logging.getLogger("fl_peel")


def read_catalogue(path: Path | str) -> tuple[str, ...]:
    """The ids of a file.

    Raises:
        DataError: it cannot be read, is empty, or has a line that is no new id.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); correct data.catalogue") from error
    return checked_catalogue(text, str(path))


def checked_catalogue(text: str, where: str) -> tuple[str, ...]:
    """The ids of a text, one a line. where: it comes from.

    Raises:
        DataError: it is empty, or has a line that is no new id.
    """
    lines = text.removesuffix("\n").split("\n")
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        item = line.strip()
        if not item:
            raise DataError(f"{where}:{number}: there is no item; write one id a line")
        if item in seen:
            raise DataError(f"{where}:{number}: item {item[:80]} is there twice; leave one out")
        seen.add(item)
    if len(lines) > MAX_ID:
        raise DataError(f"{where}: more than {MAX_ID} items; split the catalogue")
    return tuple(line.strip() for line in lines)


TITLES = ("title", "movie_title", "name")
"""Names of a column of titles."""


def read_titles(path: Path | str) -> dict[str, str]:
    """Read the titles of items by their ids; items may be missing, and others be there.

    Raises:
        DataError: it cannot be read, or has no column of items or of titles.
    """
    raw = read_bytes(Path(path))
    try:
        lines = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = raw.decode("latin-1").splitlines()  # as MovieLens has it
    delimiter = next((mark for mark in ("::", "|", "\t") if mark in lines[0]), ",")
    rows = [line.split(delimiter) for line in lines] if delimiter != "," else list(csv.reader(lines))
    item, title = 0, 1
    if delimiter in (",", "\t"):
        names = [name.partition(":")[0].strip().lower() for name in rows.pop(0)]
        item = next((place for place, name in enumerate(names) if name in ALIASES["item"]), -1)
        title = next((place for place, name in enumerate(names) if name in TITLES), -1)
        if item < 0 or title < 0:
            have = shortened(", ".join(map(repr, names)), 300)
            raise DataError(f"{path}:1: no item or no title column among {have}; name them item and title")
    return {row[item].strip(): row[title].strip() for row in rows if len(row) > max(item, title) and row[title].strip()}


def restrict_to_catalogue(interactions: Interactions, catalogue: Sequence[str], where: str) -> Interactions:
    """The interactions with the catalogue's items, numbered as there; others are left out, and how many is told here
    alone. Users stay, also those that nothing is left of.

    Raises:
        DataError: no item is in the catalogue.
    """
    number = {item: place for place, item in enumerate(catalogue)}
    labels = interactions.item_labels or tuple(str(item) for item in range(interactions.num_items))
    numbers = np.array([number.get(label, -1) for label in labels], np.int64)  # (I of the file,)
    known = numbers[interactions.pairs.items] >= 0
    if not known.any():
        raise DataError(f"{where}: none of its items is in the catalogue, which begins with {catalogue[0][:80]}")
    if not known.all():
        unknown = np.count_nonzero(numbers < 0)
        logger.warning(
            "%s: %d items with %d interactions are not in the catalogue and left out", where, unknown, (~known).sum()
        )
    pairs = interactions.pairs.keep(known)
    times = None if interactions.timestamps is None else interactions.timestamps[known]
    if times is None:
        renumbered = UserItems(pairs.indptr, numbers[pairs.items].astype(np.int32))
    else:  # of two at one time the one with the lower number comes first
        items = numbers[pairs.items]
        order = np.lexsort((items, times, pairs.users()))
        renumbered, times = UserItems(pairs.indptr, items[order].astype(np.int32)), times[order]
    given = interactions.given_test
    return replace(
        interactions,
        pairs=renumbered,
        num_items=len(catalogue),
        timestamps=times,
        given_test=None if given is None else _renumbered(given, numbers),
        item_labels=tuple(catalogue),
    )


def _renumbered(items: UserItems, numbers: IntArray) -> UserItems:
    kept = items.keep(numbers[items.items] >= 0)
    return UserItems(kept.indptr, numbers[kept.items].astype(np.int32))


# ---- LightGCN's lists: a line per user, ``user item item ...``, numbers from 0, split by blanks -> pairs
# Gowalla, Yelp2018 and Amazon-Book are published like this, as ``train.txt`` and ``test.txt`` (He et al., "LightGCN:
# Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020).


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
