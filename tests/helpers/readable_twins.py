"""Readable twins of the compiled loops: one device at a time, plain NumPy in float64. Tests compare the two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.layout import integer_scales, scale_divisors
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.kernels import FIXED_POINT
from fl_peel.kernels.lanes import LANES
from fl_peel.scenario.settings import LocalTraining


class DeviceRandom:
    """SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), the source of a device's local randomness."""

    def __init__(self, seed: int) -> None:
        self._state = int(seed)

    def below(self, bound: int) -> int:
        """A whole number in 0..bound-1."""
        mask = (1 << 64) - 1
        self._state = (self._state + 0x9E3779B97F4A7C15) & mask
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (((z ^ (z >> 31)) >> 32) * bound) >> 32


def block_mask(ranked: RankedBlocks, cutoff: int) -> NDArray[np.bool_]:
    """Which columns of which rows a device has, (R, d): those of the blocks ranked before its cutoff."""
    return np.repeat(ranked.position < cutoff, ranked.layout.slice_dim, axis=1)


def train_device(
    ranked: RankedBlocks,
    cutoff: int,
    user: NDArray[np.float32],
    items: NDArray[np.integer],
    seed: int,
    how: LocalTraining,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Train one device: its new user embedding (d,), its block update (R, d), its mean loss in the last epoch."""
    mask = block_mask(ranked, cutoff)
    before = np.where(mask, ranked.table, 0).astype(np.float64)
    table: NDArray[np.float64] = before.copy()
    mine: NDArray[np.float64] = user.astype(np.float64)
    present = int((ranked.first_position < cutoff).sum())
    rows = ranked.row_of_item[items]
    positives = [int(row) for row in rows if 0 <= row < present]
    liked = set(positives)
    if not positives or len(liked) >= present:
        return mine, np.zeros_like(before), 0.0
    random = DeviceRandom(seed)
    mean_loss = 0.0
    for _ in range(how.epochs):
        for j in range(len(positives) - 1, 0, -1):
            other = random.below(j + 1)
            positives[j], positives[other] = positives[other], positives[j]
        losses = []
        for start in range(0, len(positives), how.batch_size):
            table_gradient, user_gradient = np.zeros_like(table), np.zeros_like(mine)
            for positive in positives[start : start + how.batch_size]:
                chosen = [positive]
                while len(chosen) <= how.num_negatives:
                    row = random.below(present)
                    if row not in liked:
                        chosen.append(row)
                logits = table[chosen] @ mine / how.temperature
                if how.loss == "sampled-softmax":
                    shifted = np.exp(logits - logits.max())
                    losses.append(float(np.log(shifted.sum()) + logits.max() - logits[0]))
                    weights = shifted[1:] / shifted.sum()
                else:
                    gaps = logits[1:] - logits[0]
                    losses.append(float(np.logaddexp(0, gaps).mean()))
                    weights = 1 / (1 + np.exp(-gaps)) / how.num_negatives
                weights = weights / how.temperature
                for row, weight in zip(chosen, [-weights.sum(), *weights], strict=True):
                    table_gradient[row] += weight * mine + how.l2 * table[row]
                    user_gradient += weight * table[row]
                user_gradient += how.l2 * mine
            table -= how.learning_rate * np.where(mask, table_gradient, 0)
            mine -= how.user_learning_rate * user_gradient
        mean_loss = float(np.mean(losses))
    update = table - before
    norm = float(np.linalg.norm(update))
    return mine, update * min(1.0, how.max_norm / norm if norm > 0 else 1.0), mean_loss


def fixed_point(update: NDArray[np.float64]) -> NDArray[np.int64]:
    """A device's update as it enters sums: the nearest multiple of 1 / FIXED_POINT."""
    return np.floor(update * FIXED_POINT + 0.5).astype(np.int64)


def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """Sum of products (n,) as :func:`fl_peel.kernels.lanes.dot` adds it up: 16 lanes, halved, then what is left. A
    product of two float32 is exact in float64; that the sum with it is rounded there first does not show in practice.
    """
    lanes = np.zeros(LANES, np.float32)
    whole = len(a) // LANES * LANES
    products = a.astype(np.float64) * b.astype(np.float64)
    for start in range(0, whole, LANES):
        lanes = (products[start : start + LANES] + lanes).astype(np.float32)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    total = np.float32(lanes[0])
    for product in products[whole:]:
        total = np.float32(product + np.float64(total))
    return total


def top_rows(
    ranked: RankedBlocks, cutoff: int, user: NDArray[np.float32], exclude: NDArray[np.integer], n: int
) -> list[int]:
    """The n best table rows of one device, best first; ties go to the smaller catalogue row."""
    scores = np.where(block_mask(ranked, cutoff), ranked.table, 0).astype(np.float64) @ user.astype(np.float64)
    excluded = set(ranked.row_of_item[exclude].tolist())
    candidates = [row for row in range(len(scores)) if ranked.first_position[row] < cutoff and row not in excluded]
    order = ranked.layout.row_in_catalogue[ranked.items]
    return sorted(candidates, key=lambda row: (-scores[row], order[row]))[:n]


def integer_codes(rows: NDArray[np.float32], most: int, clips: tuple[float, ...]) -> NDArray[np.int8]:
    """Codes (R, s) of rows: of scales from some shares of the largest magnitude, those with the least squared error."""
    best, least = np.zeros(rows.shape, np.int8), np.full(len(rows), np.inf, np.float32)
    for clip in clips:
        scales = integer_scales(np.abs(rows).max(axis=1) * clip, "int8" if most == 127 else "int4")
        codes = np.clip(np.rint(rows / scale_divisors(scales)[:, None]), -most, most).astype(np.int8)
        error = ((codes * scales[:, None].astype(np.float32) - rows) ** 2).sum(axis=1)
        best[error < least] = codes[error < least]
        least = np.minimum(least, error)
    return best
