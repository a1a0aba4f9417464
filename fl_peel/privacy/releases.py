"""What devices of one user group contribute to a round's sums under privacy: bounded per device, then added up.

Everything else that an unprotected round sends (row counts and losses, holders, exposure, what was shown) is left out;
the server has it from what is public: whom it asked, and what it sent. All parts are dense, over every row and block
that was sent, in units of 1 / FIXED_POINT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.interactions import UserItems
from fl_peel.kernels import FIXED_POINT
from fl_peel.local_training import GroupUpdate
from fl_peel.privacy.mechanisms import Mechanism, fixed_point, noise_share
from fl_peel.privacy.plan import Part
from fl_peel.randomness import rng_for
from fl_peel.selection import RankedBlocks

Sums = dict[Part, NDArray[np.int64]]
"""updates (R, d), signals (K,), counts (R,), quantile (1,): those that are released."""


@dataclass(frozen=True)
class Trained:
    """Devices (M,) of one user group after local training. best: (M, L) top rows, None in rounds without signals."""

    devices: NDArray[np.int64]
    cutoffs: NDArray[np.int64]
    users: NDArray[np.float32]
    update: GroupUpdate
    best: NDArray[np.int32] | None
    train: UserItems
    validation: UserItems


def bounded_sums(
    ranked: RankedBlocks, trained: Trained, parts: tuple[Part, ...], bounds: dict[Part, float], *, l1: bool
) -> Sums:
    """Add up the devices' contributions, each part of each device within its bound (updates: by the trainer)."""
    sums: Sums = {}
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
    return sums


def bounded_counts(ranked: RankedBlocks, train: UserItems, bound: float, *, l1: bool) -> NDArray[np.int64]:
    """Devices that have train interactions with each row sent (R,), a device with n rows counting bound / sqrt(n)
    (L1: bound / n) in each, 1 at most.
    """
    rows = ranked.row_of_item[train.items]
    who = np.repeat(np.arange(train.num_users), train.counts())
    num_rows = len(ranked.table)
    pairs = np.unique(who[rows >= 0] * num_rows + rows[rows >= 0])  # an item counts once
    owners, here = pairs // max(num_rows, 1), pairs % max(num_rows, 1)
    distinct = np.bincount(owners, minlength=train.num_users)
    spread = np.maximum(distinct, 1) if l1 else np.sqrt(np.maximum(distinct, 1))
    weights = np.floor(np.minimum(1.0, bound * (1 - 1e-12) / spread) * FIXED_POINT).astype(np.int64)
    counts = np.zeros(num_rows, np.int64)
    np.add.at(counts, here, weights[owners])
    return counts


def shapes(ranked_rows: int, embedding_dim: int, num_blocks: int) -> dict[Part, tuple[int, ...]]:
    """Shape of every part for R rows of d columns and K blocks."""
    return {
        "updates": (ranked_rows, embedding_dim),
        "signals": (num_blocks,),
        "counts": (ranked_rows,),
        "quantile": (1,),
    }


def noise(
    mechanism: Mechanism,
    scales: dict[Part, float],
    sizes: dict[Part, tuple[int, ...]],
    identity: tuple[str | int, ...],
    seed: int,
) -> Sums:
    """Noise on every number of the parts in ``scales``, drawn from seeds of the given identity.

    Seeds make a simulation repeatable. Whoever knows them can subtract the noise: a deployment must draw it from the
    operating system's randomness.
    """
    return {
        part: fixed_point(mechanism.draw(rng_for(seed, *identity, part), sizes[part], scale), FIXED_POINT)
        for part, scale in scales.items()
    }


def with_noise_shares(
    sums: Sums,
    stds: dict[Part, float],
    num_devices: int,
    seed: int,
    server_round: int,
    devices: NDArray[np.int64],
) -> Sums:
    """The sums after each of the devices (M,) added its share of normal noise, of which ``num_devices`` shares reach
    ``stds``: more devices, more noise. The share depends on the device and the round alone, not on nodes.
    """
    total = {part: values.copy() for part, values in sums.items()}
    for device in devices.tolist():
        for part, values in total.items():
            rng = rng_for(seed, "noise-share", server_round, device, part)
            values += noise_share(rng, values.shape, stds[part], num_devices, FIXED_POINT)
    return total


def with_device_noise(
    sums: Sums,
    plan_scales: dict[Part, float],
    mechanism: Mechanism,
    seed: int,
    server_round: int,
    devices: NDArray[np.int64],
) -> Sums:
    """The sums after each of the devices (M,) added noise of its own to all of its contribution."""
    total = {part: values.copy() for part, values in sums.items()}
    sizes: dict[Part, tuple[int, ...]] = {part: values.shape for part, values in sums.items()}
    for device in devices.tolist():
        drawn = noise(mechanism, plan_scales, sizes, ("device-noise", server_round, device), seed)
        for part, values in drawn.items():
            total[part] += values
    return total


__all__ = [
    "Sums",
    "Trained",
    "bounded_counts",
    "bounded_sums",
    "noise",
    "shapes",
    "with_device_noise",
    "with_noise_shares",
]
