"""What devices of one user group are to train, and what they return together: sums only.

Memory that this takes of one device, besides what the device stores: training reads rows where they are stored and
copies to fp32 those that its batches touch; a row's gradient is a multiple of the user embedding, so that one number a
row says it; interactions are worked off one by one, and the update is sent row by row. ``train_lean`` of the tests
allocates what is counted here and no more. Not counted: the device's own interactions, which are the app's data, code,
and the messages of secure aggregation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.scenario.settings import LocalTraining


@dataclass(frozen=True)
class LocalWork:
    """Local training to be done for devices (N,), each of which starts from the same blocks.

    ranked: the blocks; cutoffs: (N,) how many of them each keeps; users: (N, d) embeddings to start with; train: N rows
    of item numbers; seeds: (N,), one per device; how: settings of the training; device: where it is computed, as
    ``engine.device``.
    """

    ranked: RankedBlocks
    cutoffs: NDArray[np.int64]
    users: NDArray[np.float32]
    train: UserItems
    seeds: NDArray[np.uint64]
    how: LocalTraining
    device: str = "cpu"

    def __len__(self) -> int:
        """Return the number of devices, N."""
        return len(self.cutoffs)

    def select(self, devices: NDArray[np.int64]) -> LocalWork:
        """Return the work of some of the devices, by their places (M,)."""
        return replace(
            self,
            cutoffs=self.cutoffs[devices],
            users=self.users[devices],
            train=self.train.select(devices),
            seeds=self.seeds[devices],
        )


@dataclass(frozen=True)
class GroupUpdate:
    """Sums that the devices of one user group return together.

    narrow, wide: (R, d) int32 and int64, whose sum are the block updates in units of 1 / FIXED_POINT: ``narrow`` is set
    in the rows that were changed, ``wide`` in the rows ``is_wide`` (R,), whose values do not fit in 32 bits. tallies:
    (R, 3 + S), see :mod:`fl_peel.kernels.training`. holders: (K,) devices that stored each block and trained. Per
    device, not sent: loss, examples, touched_pieces, norms, each (N,).
    """

    narrow: NDArray[np.int32]
    wide: NDArray[np.int64]
    is_wide: NDArray[np.bool_]
    tallies: NDArray[np.int64]
    holders: NDArray[np.int64]
    loss: NDArray[np.float64]
    examples: NDArray[np.int64]
    touched_pieces: NDArray[np.int64]
    norms: NDArray[np.float64]

    @cached_property
    def sums(self) -> NDArray[np.int64]:
        """Block updates (R, d) in units of 1 / FIXED_POINT."""
        written = self.touched.any(axis=1)
        sums = np.zeros(self.narrow.shape, np.int64)
        sums[written] = self.narrow[written]
        sums[self.is_wide] += self.wide[self.is_wide]
        return sums

    def changed(self) -> dict[str, NDArray[np.int32] | NDArray[np.int64]]:
        """Return the sums of the rows that some device changed, in two parts that add up: rows (T,), ascending, with
        sums (T, d) int32; wide_rows (W,) with wide_sums (W, d) int64, for values that do not fit there."""
        touched = self.touched[:, 0] if self.touched.shape[1] == 1 else self.touched.any(axis=1)
        rows = np.flatnonzero(touched).astype(np.int32)
        wide_rows = np.flatnonzero(self.is_wide).astype(np.int32)
        return {
            "rows": rows,
            "sums": self.narrow if len(rows) == len(self.narrow) else self.narrow.take(rows, axis=0),
            "wide_rows": wide_rows,
            "wide_sums": self.wide[wide_rows],
        }

    def scaled(self, factor: float) -> GroupUpdate:
        """Return one device's update times ``factor``; of several, rounding would depend on which they are."""
        narrow, wide, is_wide = in_two_parts(np.rint(self.sums * factor).astype(np.int64))
        return replace(self, narrow=narrow, wide=wide, is_wide=is_wide, norms=self.norms * factor)

    @staticmethod
    def joined(parts: Sequence[GroupUpdate]) -> GroupUpdate:
        """Join updates of disjoint sets of devices, in this order: sums are added up, the rest is concatenated."""
        narrow, wide, is_wide = in_two_parts(np.asarray(sum(part.sums for part in parts), np.int64))
        tallies, holders = (np.asarray(sum(getattr(part, name) for part in parts)) for name in ("tallies", "holders"))
        names = ("loss", "examples", "touched_pieces", "norms")
        loss, examples, pieces, norms = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return GroupUpdate(narrow, wide, is_wide, tallies, holders, loss, examples, pieces, norms)

    @property
    def touched(self) -> NDArray[np.int64]:
        """Number of devices that changed each slice of each row, (R, S)."""
        return self.tallies[:, 3:]

    @property
    def row_loss(self) -> NDArray[np.int64]:
        """Loss of each row's train interactions (R,) in units of 1 / FIXED_POINT."""
        return self.tallies[:, 0]

    @property
    def row_examples(self) -> NDArray[np.int64]:
        """Train interactions of each row (R,), over epochs."""
        return self.tallies[:, 1]


def in_two_parts(sums: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
    """Sums (R, d) as a :class:`GroupUpdate` holds them: narrow, wide, is_wide; wide where 32 bits are too few."""
    is_wide = np.asarray((np.abs(sums) >= 2**31).any(axis=1))
    narrow = np.where(is_wide[:, None], 0, sums).astype(np.int32)
    return narrow, np.where(is_wide[:, None], sums, 0), is_wide


def holders_of(cutoffs: NDArray[np.int64], num_blocks: int) -> NDArray[np.int64]:
    """Devices that keep each ranked block, (K,): those whose cutoff lies beyond it."""
    counts = np.bincount(cutoffs, minlength=num_blocks + 1)
    return (len(cutoffs) - np.cumsum(counts))[:num_blocks].astype(np.int64)


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
