"""Devices train the blocks they keep and their own user embedding on their local train items.

Inner level of PEEL's bi-level optimization (section III-C). The loss of an interaction (u, i) with negatives
j1..jK drawn uniformly from the items present on the device that it has not interacted with:

- ``bpr``: mean over k of -log sigmoid(u.i - u.jk)  (Rendle et al., UAI 2009)
- ``sampled-softmax``: -log of the softmax of u.i / t among {i, j1..jK}  (Wu et al., arXiv 2201.02327)

plus l2 / 2 times the squared norms of the embeddings involved. Plain SGD; the gradient of a mini-batch is the sum
over its interactions, so that an interaction counts the same on a busy device and on a quiet one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.errors import ScenarioError
from fl_peel.scenario.settings import torch_device
from fl_peel.training.update import GroupUpdate, LocalWork, holders_of, in_two_parts

_FP16_MAX = 65504.0

if TYPE_CHECKING:
    import torch

Train = Callable[[LocalWork], tuple[NDArray[np.float32], GroupUpdate]]
"""What trains the devices of a user group, as :func:`train_group` does."""


def train_group(work: LocalWork) -> tuple[NDArray[np.float32], GroupUpdate]:
    """Train the devices of one user group.

    Returns the new user embeddings (N, d), which stay on the devices, and the sums.

    Raises:
        ScenarioError: training diverged: a device's numbers are no longer finite, or its user embedding no longer
            fits in fp16, in which it is stored.
    """
    where = torch_device(work.device)
    if where is not None:
        return _checked(*_in_torch(work, where))
    ranked, cutoffs, users, train, how = work.ranked, work.cutoffs, work.users, work.train, work.how
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
        work.seeds,
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
    norms = np.sqrt(squares)
    update = GroupUpdate(narrow, wide, is_wide, tallies, holders, loss, examples, touched_pieces, norms)
    return _checked(trained, update)


def _checked(trained: NDArray[np.float32], update: GroupUpdate) -> tuple[NDArray[np.float32], GroupUpdate]:
    """Return what devices came to, unless their training diverged."""
    finite = np.isfinite(update.norms).all() and np.isfinite(update.loss).all()
    if not (finite and np.abs(trained).max(initial=0.0) < _FP16_MAX):
        raise ScenarioError(
            "refinement.local: training diverged on a device; lower learning_rate and user_learning_rate, or raise l2"
        )
    return trained, update


def _in_torch(work: LocalWork, where: torch.device) -> tuple[NDArray[np.float32], GroupUpdate]:
    from fl_peel.training.torch_cohort import train_devices as train_in_torch

    done = train_in_torch(work, where)
    holders = holders_of(work.cutoffs[done.examples > 0], len(work.ranked.blocks))
    sums, norms = in_two_parts(done.sums), np.sqrt(done.squared_norms)
    return done.users, GroupUpdate(*sums, done.tallies, holders, done.loss, done.examples, done.touched_pieces, norms)


# ---- Validation signals of ranked blocks, what the controller learns from


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
    best: (N, m) table rows from :func:`fl_peel.ranking.top.top_rows`.
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
