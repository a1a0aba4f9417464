"""Items by the names that the data has for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.errors import ModelError, shortened

OwnId = str | int
"""An item as a user names it; a number means its digits."""
LONGEST_QUOTED = 60


@dataclass(frozen=True)
class Catalogue:
    """Items and how they are cut into blocks. ids: (I,) the data's own, by item number; empty where the numbers are the
    ids; titles: for readers, by id, of the items that have one.
    """

    layout: BlockLayout
    ids: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        """Items, I."""
        return self.layout.num_items

    def id_of(self, item: int) -> str:
        """The data's own id of an item."""
        return self.ids[item] if self.ids else str(item)

    def by_row(self) -> list[str]:
        """Own ids (I,) by catalogue row, which is how artefacts number items."""
        return [self.id_of(item) for item in self.layout.catalogue.tolist()]

    def items(self, given: Iterable[OwnId]) -> NDArray[np.int32]:
        """Item numbers (N,) of own ids, each once, in the order given.

        Raises:
            ModelError: an id that no item has.
        """
        numbers = dict.fromkeys(self._item(own) for own in given)
        return np.fromiter(numbers, np.int32, len(numbers))

    def _item(self, own: object) -> int:
        if isinstance(own, bool) or not isinstance(own, str | int | np.integer):
            raise ModelError(f"item {shortened(repr(own), LONGEST_QUOTED)} is no id; give text or whole numbers")
        name = str(own)
        if self.ids:
            item = self._numbers.get(name, -1)
        else:
            item = int(name) if name.isascii() and name.isdigit() and len(name) <= len(str(self.num_items)) else -1
        if not 0 <= item < self.num_items or self.id_of(item) != name:
            raise ModelError(
                f"item {shortened(repr(name), LONGEST_QUOTED)} is none of the model's {self.num_items}; "
                f"ids are those of its data, such as {', '.join(self.id_of(i) for i in range(min(3, self.num_items)))}"
            )
        return item

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: item for item, name in enumerate(self.ids)}

    def places_of(self, other: Catalogue, blocks: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where blocks (K,) of this catalogue stand among blocks (L,) of another one, (K,); -1 for those that do not,
        or whose items have other names there.
        """
        mine, theirs = self.layout, other.layout
        if mine.num_slices != theirs.num_slices or mine.embedding_dim != theirs.embedding_dim:
            return np.full(len(blocks), -1, np.int64)
        place = np.full(theirs.num_blocks, -1, np.int64)
        place[among] = np.arange(len(among))
        groups, slices = blocks // mine.num_slices, blocks % mine.num_slices
        there = self._groups_in(other, groups)
        return np.where(there >= 0, place[np.maximum(there, 0) * mine.num_slices + slices], -1)

    def _groups_in(self, other: Catalogue, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Item groups (K,) of this catalogue in another one: all keep their number where both are alike, single items
        are found by name, and no others are.
        """
        if self.ids == other.ids and self.layout.digest == other.layout.digest:
            return groups
        if not (self.layout.is_single and other.layout.is_single):
            return np.full(len(groups), -1, np.int64)
        return np.array([other.find(self.id_of(item)) for item in groups.tolist()], np.int64)

    def find(self, name: str) -> int:
        """The item of an own id; -1 where there is none."""
        try:
            return self._item(name)
        except ModelError:
            return -1
