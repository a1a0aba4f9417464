"""Validation signals of ranked blocks, what the controller learns from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems


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
