"""What local training takes of one device's memory, besides what the device stores.

It reads rows where they are stored and copies to fp32 those that its batches touch; a row's gradient is a multiple of
the user embedding, so that one number a row says it; interactions are worked off one by one, and the update is sent row
by row. ``train_lean`` of the tests allocates what is counted here and no more. Not counted: the device's
own interactions, which are the app's data, code, and the messages of secure aggregation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.training.settings import LocalTraining

IntArray = NDArray[np.int64]

NUMBER_BYTES = 4
"""Bytes of a number, fp32 or 32-bit integer."""
HELD_BYTES = 5
"""Bytes for each row piece that takes part: where its row's copy is, and whether the row is a train item."""
SLICED_BYTES = 8
"""Bytes for each row piece in addition, where rows have several: its slice, and where a row's pieces begin."""
TOUCHED_BYTES = 24
"""Bytes for each row piece that is copied, in addition to the copy: row, place of the copy, logit, coefficient, times
it is in the batch, its entry in the batch's list of rows.
"""
CLIPPED_BYTES = 16
"""Bytes for each row piece where blocks are clipped one by one: norm and number of entries of its block, fp64."""


@dataclass(frozen=True)
class TrainingMemory:
    """Memory that local training takes, for devices that train alike. A row counts once for each of its pieces.

    list_length: length of the top list from which signals are computed, 0 where there are none.
    """

    dim: int
    num_slices: int
    how: LocalTraining
    list_length: int

    @property
    def _held_bytes(self) -> int:
        sliced, clipped = self.num_slices > 1, self.how.clip_blocks
        return HELD_BYTES + sliced * SLICED_BYTES + clipped * CLIPPED_BYTES

    @property
    def _touched_bytes(self) -> int:
        return TOUCHED_BYTES + NUMBER_BYTES * (self.dim // self.num_slices)

    def fixed_bytes(self, interactions: IntArray) -> IntArray:
        """Return the bytes (N,) of what is held in any case: row numbers of the train interactions (N,); places and
        chances of an interaction and its negatives; user embedding, its gradient and a row of the update; rows and
        scores of the top list.
        """
        numbers = interactions + 2 * (1 + self.how.num_negatives) + 3 * self.dim + 2 * self.list_length
        return np.asarray(NUMBER_BYTES * numbers, np.int64)

    def taken_bytes(self, held: IntArray, touched: IntArray, interactions: IntArray) -> IntArray:
        """Return bytes (N,) of devices, by train interactions, row pieces that take part, and row pieces touched."""
        return self.fixed_bytes(interactions) + held * self._held_bytes + touched * self._touched_bytes

    def most_touched(self, held: IntArray, interactions: IntArray) -> IntArray:
        """Return how many row pieces (N,) training can touch: those of a batch's items and of its negatives."""
        drawn = interactions * (1 + self.how.num_negatives * self.how.epochs)
        return np.asarray(np.minimum(held, self.num_slices * drawn), np.int64)

    def most_bytes(self, held: IntArray, interactions: IntArray) -> IntArray:
        """Return the bytes (N,) that training never exceeds."""
        return self.taken_bytes(held, self.most_touched(held, interactions), interactions)

    def most_held(self, allowed_bytes: IntArray, interactions: IntArray) -> IntArray:
        """Return how many row pieces (N,) can take part in ``allowed_bytes`` (N,) of memory; 0 where not one can."""
        room = np.maximum(allowed_bytes - self.fixed_bytes(interactions), 0)
        every = np.iinfo(np.int64).max
        touchable = self.most_touched(np.full_like(room, every), interactions)
        each = self._held_bytes + self._touched_bytes
        beyond = (room - touchable * self._touched_bytes) // self._held_bytes  # all that can be touched is copied
        return np.asarray(np.where(room <= touchable * each, room // each, beyond), np.int64)
