"""Batches: contents that are too large for one message go in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fl_peel import wire

Item = TypeVar("Item")
EVALUATED_BYTES = 32 << 20
"""Bytes of blocks in one message to a node that evaluates. Flower's simulation delivers at most about ten messages a
second to a node.
"""


def batches(items: Iterable[Item], num_bytes: Callable[[Item], int], most_bytes: int) -> Iterator[list[Item]]:
    """Items in their order, in batches of at most ``most_bytes``; one that is larger is a batch of its own."""
    batch: list[Item] = []
    size = 0
    for item in items:
        mine = num_bytes(item)
        if batch and size + mine > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += mine
    if batch:
        yield batch


def packed_batches(
    groups: Iterable[int], pack: Callable[[int], wire.Arrays], most_bytes: int
) -> Iterator[dict[int, wire.Arrays]]:
    """User groups' blocks, packed one group after the other while batches are sent, as payloads of messages."""
    packed = ((group, *_packed_once(pack(group))) for group in groups)
    for batch in batches(packed, lambda one: one[1], most_bytes):
        yield {group: arrays for group, _, arrays in batch}


def _packed_once(arrays: wire.Arrays) -> tuple[int, wire.Arrays]:
    """Return the size of arrays, and the arrays as a message has them, which is all that memory holds then."""
    return sum(array.nbytes for array in arrays.values()), wire.packed_once(arrays)
