"""What devices of one user group contribute to a round's sums under privacy: bounded per device, then added up.

Everything else that an unprotected round sends (row counts and losses, holders, exposure, what was shown) is left out;
the server has it from what is public: whom it asked, and what it sent. All parts are dense, over every row and block
that was sent, in units of 1 / FIXED_POINT.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.bounded_counts import counts_within
from fl_peel.data.interactions import UserItems
from fl_peel.exchange.bounded_statistic import bounded, find_statistic
from fl_peel.exchange.named_sums import NamedSums
from fl_peel.exchange.release import BUILT_IN, Part
from fl_peel.exchange.trained_devices import TrainedDevices
from fl_peel.kernels import FIXED_POINT


def bounded_sums(
    ranked: RankedBlocks, trained: TrainedDevices, parts: tuple[Part, ...], bounds: dict[Part, float], *, l1: bool
) -> NamedSums:
    """Add up the devices' contributions, each part of each device within its bound (updates: by the trainer)."""
    sums = NamedSums()
    if "updates" in parts:
        sums["updates"] = trained.update.sums
    if "signals" in parts:
        assert trained.best is not None
        hits = np.zeros(len(ranked.blocks), np.int64)
        validation = trained.validation
        kernels.bounded_hits(
            ranked.table,
            ranked.position,
            trained.cutoffs,
            np.ascontiguousarray(trained.users, np.float32),
            trained.best,
            validation.indptr,
            ranked.row_of_item[validation.items],
            bounds["signals"],
            l1,
            hits,
        )
        sums["signals"] = hits
    if "counts" in parts:
        sums["counts"] = bounded_counts(ranked, trained.train, bounds["counts"], l1=l1)
    if "quantile" in parts:
        within = trained.update.norms <= bounds["updates"]
        half = int(FIXED_POINT / 2)
        sums["quantile"] = np.array([half * int(within.sum()) - half * int((~within).sum())], np.int64)
    for part in parts:
        if part not in BUILT_IN:
            sums[part] = bounded(find_statistic(part).values(ranked, trained), bounds[part], l1=l1)
    return sums


def bounded_counts(ranked: RankedBlocks, train: UserItems, bound: float, *, l1: bool) -> NDArray[np.int64]:
    """Devices that have train interactions with each row sent (R,), see
    :func:`fl_peel.bounded_counts.counts_within`.
    """
    rows = ranked.row_of_item[train.items]
    sent = rows >= 0
    return counts_within(train.users()[sent], rows[sent], len(ranked.table), bound, FIXED_POINT, l1=l1)
