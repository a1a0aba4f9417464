"""Devices train the blocks they keep and their own user embedding on their local train items.

Inner level of PEEL's bi-level optimization (section III-C). The loss of an interaction (u, i) with negatives
j1..jK drawn uniformly from the items present on the device that it has not interacted with:

- ``bpr``: mean over k of -log sigmoid(u.i - u.jk)  (Rendle et al., UAI 2009)
- ``sampled-softmax``: -log of the softmax of u.i / t among {i, j1..jK}  (Wu et al., arXiv 2201.02327)

plus l2 / 2 times the squared norms of the embeddings involved. Plain SGD; the gradient of a mini-batch is the sum
over its interactions, so that an interaction counts the same on a busy device and on a quiet one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.errors import ScenarioError
from fl_peel.interactions import UserItems
from fl_peel.processor import torch_device
from fl_peel.selection import RankedBlocks
from fl_peel.torch_cohort import train_devices as train_in_torch

_FP16_MAX = 65504.0

LocalLoss = Literal["bpr", "sampled-softmax"]


@dataclass(frozen=True)
class LocalTraining:
    """How a device trains.

    max_norm: bound of one device's block update, infinite for none; clip_blocks: instead, each of the K blocks sent is
    bounded by max_norm / sqrt(K), so that all together are bounded as well; clip_l1: norms are L1 (then max_norm / K).
    """

    epochs: int = 1
    batch_size: int = 64
    num_negatives: int = 1
    learning_rate: float = 0.05
    user_learning_rate: float = 0.05
    l2: float = 0.0
    loss: LocalLoss = "bpr"
    temperature: float = 1.0
    max_norm: float = float("inf")
    clip_blocks: bool = False
    clip_l1: bool = False

    def bound(self, num_blocks: int) -> float:
        """Of what is clipped as one: the whole update, or a block of those that were sent."""
        if not self.clip_blocks:
            return self.max_norm
        return self.max_norm / (num_blocks if self.clip_l1 else math.sqrt(num_blocks))


@dataclass(frozen=True)
class GroupUpdate:
    """What the devices of one user group return together: sums only.

    narrow, wide: (R, d) int32 and int64, whose sum are the block updates in units of 1 / FIXED_POINT: ``narrow`` holds
    something in the rows that are touched, ``wide`` in the rows ``is_wide`` (R,), what does not fit in 32 bits.
    tallies: (R, 3 + S), see :mod:`fl_peel.kernels.training`. holders: (K,) devices that kept each block and trained.
    Per device, not sent: loss, examples, touched_pieces, norms, each (N,).
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
        """The sums of the rows that some device changed, in two parts that add up: rows (T,), ascending, with sums
        (T, d) int32; wide_rows (W,) with wide_sums (W, d) int64, what did not fit there.
        """
        rows = np.flatnonzero(self.touched.any(axis=1)).astype(np.int32)
        wide_rows = np.flatnonzero(self.is_wide).astype(np.int32)
        return {
            "rows": rows,
            "sums": self.narrow[rows],
            "wide_rows": wide_rows,
            "wide_sums": self.wide[wide_rows],
        }

    @property
    def touched(self) -> NDArray[np.int64]:
        """Devices that changed each slice of each row, (R, S)."""
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


def train_group(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: NDArray[np.float32],
    train: UserItems,
    seeds: NDArray[np.uint64],
    how: LocalTraining,
    device: str = "cpu",
) -> tuple[NDArray[np.float32], GroupUpdate]:
    """Train the devices of one user group, each from the same blocks.

    cutoffs: (N,) blocks each keeps; users: (N, d); train: N rows of item numbers; seeds: (N,), one per device.
    device: as ``engine.device``, where it is computed. Returns the new user embeddings (N, d), which stay on the
    devices, and the sums.

    Raises:
        ScenarioError: training diverged: a device's numbers are no longer finite, or its user embedding no longer
            fits in fp16, in which it is stored.
    """
    where = torch_device(device)
    if where is None:
        trained, update = _compiled(ranked, cutoffs, users, train, seeds, how)
    else:
        done = train_in_torch(ranked, cutoffs, users, train, seeds, how, where)
        trained, holders = done.users, holders_of(cutoffs[done.examples > 0], len(ranked.blocks))
        update = GroupUpdate(
            *in_two_parts(done.sums),
            done.tallies,
            holders,
            done.loss,
            done.examples,
            done.touched_pieces,
            np.sqrt(done.squared_norms),
        )
    finite = np.isfinite(update.norms).all() and np.isfinite(update.loss).all()
    if not (finite and np.abs(trained).max(initial=0.0) < _FP16_MAX):
        raise ScenarioError(
            "refinement.local: training diverged on a device; lower learning_rate and user_learning_rate, or raise l2"
        )
    return trained, update


def _compiled(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: NDArray[np.float32],
    train: UserItems,
    seeds: NDArray[np.uint64],
    how: LocalTraining,
) -> tuple[NDArray[np.float32], GroupUpdate]:
    """As :func:`train_group`, by the compiled loop."""
    num_devices = len(cutoffs)
    num_rows, dim = ranked.table.shape
    trained = np.array(users, np.float32, order="C", copy=True)
    narrow, wide = np.empty((num_rows, dim), np.int32), np.empty((num_rows, dim), np.int64)
    is_wide = np.zeros(num_rows, np.bool_)
    tallies = np.zeros((num_rows, 3 + ranked.layout.num_slices), np.int64)
    loss, squares = np.zeros(num_devices), np.zeros(num_devices)
    examples, touched_pieces = np.zeros(num_devices, np.int64), np.zeros(num_devices, np.int64)
    kernels.train_devices(
        ranked.table,
        ranked.position,
        ranked.num_present(cutoffs),
        cutoffs,
        trained,
        train.indptr,
        ranked.row_of_item[train.items],
        seeds,
        how.epochs,
        how.batch_size,
        how.num_negatives,
        how.learning_rate,
        how.user_learning_rate,
        how.l2,
        how.loss == "sampled-softmax",
        how.temperature,
        how.bound(max(len(ranked.blocks), 1)),
        how.clip_blocks,
        how.clip_l1,
        narrow,
        wide,
        is_wide,
        tallies,
        loss,
        examples,
        touched_pieces,
        squares,
    )
    holders = holders_of(cutoffs[examples > 0], len(ranked.blocks))
    return trained, GroupUpdate(
        narrow, wide, is_wide, tallies, holders, loss, examples, touched_pieces, np.sqrt(squares)
    )


def signals_of_group(
    ranked: RankedBlocks,
    cutoffs: NDArray[np.int64],
    users: NDArray[np.float32],
    best: NDArray[np.int32],
    validation: UserItems,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Validation signals of ranked blocks: (hits, shown), each (K,) int64 in units of 1 / FIXED_POINT.

    shown: how much a block appears in the devices' top lists, an item at rank r counting 1 / log2(r + 1), shared
    among the item's slices by their part in the score; hits: the part of it that validation items account for.
    best: (N, m) table rows from :func:`fl_peel.ranking.top_rows`.
    """
    hits, shown = np.zeros(len(ranked.blocks), np.int64), np.zeros(len(ranked.blocks), np.int64)
    kernels.block_signals(
        ranked.table,
        ranked.position,
        cutoffs,
        np.ascontiguousarray(users, np.float32),
        best,
        validation.indptr,
        ranked.row_of_item[validation.items],
        hits,
        shown,
    )
    return hits, shown
