"""What devices of one user group are to train, and what they return together: sums only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.training.settings import LocalTraining


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
