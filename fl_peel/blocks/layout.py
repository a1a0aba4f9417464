"""BlockLayout: how the item table is cut into embedding blocks, and what a block costs.

An embedding block is (item group g, slice n): the rows of g restricted to the columns of slice n (PEEL, section
III). It is the unit that is kept, sent and dropped. Its number is ``g * num_slices + n``.

Catalogue order: items are listed group by group, so that a group is one range of *catalogue rows* and a device can
store it as (start, count). With one item per group the catalogue order is the item order and the group number alone
says which row it is.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.precision import row_bytes
from fl_peel.errors import ScenarioError
from fl_peel.scenario.settings import Precision


def number_dtype(num_items: int, num_blocks: int) -> np.dtype[np.unsignedinteger]:
    """Smallest of uint16 and uint32 that holds every block number, catalogue row and count of rows."""
    return np.dtype("<u2") if max(num_blocks, num_items) < 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class BlockLayout:
    """Item groups x slices.

    item_group: (I,) int32, the item group of each item, numbered 0..G-1, none empty.
    embedding_dim: columns of the table, d; num_slices: S, a divisor of d.
    """

    item_group: NDArray[np.int32]
    embedding_dim: int
    num_slices: int

    def __post_init__(self) -> None:
        if self.num_slices < 1 or self.embedding_dim % self.num_slices:
            raise ScenarioError(
                f"blocks.num_slices: {self.num_slices} does not divide embedding_dim {self.embedding_dim}; "
                "choose a divisor"
            )
        assert self.group_sizes.min() > 0, "empty item group"

    @property
    def num_items(self) -> int:
        """Rows of the table, I."""
        return len(self.item_group)

    @cached_property
    def group_sizes(self) -> NDArray[np.int64]:
        """Items per item group, shape (G,)."""
        return np.bincount(self.item_group).astype(np.int64)

    @property
    def num_item_groups(self) -> int:
        """Item groups, G."""
        return len(self.group_sizes)

    @property
    def num_blocks(self) -> int:
        """Blocks, G x S."""
        return self.num_item_groups * self.num_slices

    @property
    def slice_dim(self) -> int:
        """Columns of one block, d / S."""
        return self.embedding_dim // self.num_slices

    @property
    def full_table_bytes(self) -> int:
        """Bytes of the full item table in fp32, the whole of which a budget is a share."""
        return 4 * self.num_items * self.embedding_dim

    @cached_property
    def catalogue(self) -> NDArray[np.int32]:
        """Item at each catalogue row, shape (I,): items sorted by group, by number within a group."""
        return np.argsort(self.item_group, kind="stable").astype(np.int32)

    @cached_property
    def row_in_catalogue(self) -> NDArray[np.int32]:
        """Catalogue row of each item, shape (I,)."""
        rows = np.empty(self.num_items, np.int32)
        rows[self.catalogue] = np.arange(self.num_items, dtype=np.int32)
        return rows

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes that tell catalogues apart: BLAKE2b of each item's group, as 32-bit little-endian integers."""
        return hashlib.blake2b(self.item_group.astype("<i4").tobytes(), digest_size=8).digest()

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First catalogue row of each group, shape (G + 1,)."""
        return np.concatenate([[0], np.cumsum(self.group_sizes)])

    @cached_property
    def is_single(self) -> bool:
        """Whether every item is a group of its own, in item order."""
        return self.num_item_groups == self.num_items and bool((self.catalogue == np.arange(self.num_items)).all())

    @cached_property
    def id_fields(self) -> int:
        """Numbers that identify a stored block: its own, and for groups of items also (start, count)."""
        return 1 if self.is_single else 3

    @cached_property
    def id_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type in which the numbers that identify a block are stored."""
        return number_dtype(self.num_items, self.num_blocks)

    @property
    def id_bytes(self) -> int:
        """Bytes that identify one stored block."""
        return self.id_fields * self.id_dtype.itemsize

    def block_bytes(self, precision: Precision) -> NDArray[np.int64]:
        """Stored bytes of every block, shape (num_blocks,), read-only: identification, scales and codes."""
        if precision not in self._bytes_in:
            per_group = self.id_bytes + self.group_sizes * row_bytes(self.slice_dim, precision)
            stored = np.repeat(per_group, self.num_slices)
            stored.flags.writeable = False
            self._bytes_in[precision] = stored
        return self._bytes_in[precision]

    @cached_property
    def _bytes_in(self) -> dict[Precision, NDArray[np.int64]]:
        """What :meth:`block_bytes` was asked for: by every list that is packed or read."""
        return {}

    def num_rows(self, blocks: NDArray[np.integer]) -> int:
        """Items with a block among these."""
        there = np.zeros(self.num_item_groups, np.bool_)
        there[blocks // self.num_slices] = True
        return int(np.count_nonzero(there) if self.is_single else self.group_sizes[there].sum())

    def block_rows(self, blocks: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Spell out blocks (K,) as the row pieces they hold, block after block.

        Returns (item, slice, place), each (T,), T the number of row pieces: the piece is the slice of that item's
        row, and belongs to ``blocks[place]``.
        """
        groups = blocks.astype(np.int64) // self.num_slices
        sizes = self.group_sizes[groups]
        place = np.repeat(np.arange(len(blocks)), sizes)
        within = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        items = self.catalogue[self.group_starts[groups][place] + within].astype(np.int64)
        return items, (blocks.astype(np.int64) % self.num_slices)[place], place


def budget_bytes(layout: BlockLayout, share: float) -> int:
    """Bytes of a share of the fp32 full item table."""
    return share_bytes(layout.full_table_bytes, share)


def share_bytes(full_table_bytes: int, share: float) -> int:
    """The same where there is no layout yet; a share that is meant to be whole bytes does not lose one."""
    return math.floor(share * full_table_bytes + 1e-6)
