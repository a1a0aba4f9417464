"""A catalogue: the ids of all items, in an order that everybody shares. It is no one's data.

A text file with one id a line; the item in line n + 1 has the number n. With it interactions that lie in many places
have the same numbers, whoever holds which of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fl_peel.data.interactions import IntArray, Interactions, UserItems
from fl_peel.data.lists import MAX_ID
from fl_peel.errors import DataError

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


__all__ = ["checked_catalogue", "read_catalogue", "restrict_to_catalogue"]
