"""Bucketed contents: robust block-wise aggregation.

From the sums of sub-cohorts to one update that a few of them cannot move far.

Devices are hashed by identity into buckets, so that what is aggregated does not depend on the nodes. Of every row only
the buckets that changed it have a say: with one item per block a bucket meets few of the items.

- ``median``: of the buckets' mean updates, coordinate by coordinate; ``trimmed-mean``: the same without the largest and
  the smallest ones (Yin, Chen, Ramchandran and Bartlett, ICML 2018; over sub-cohorts: Chen, Su and Xu, 2017).
- ``krum``: the mean over the buckets that lie closest together (Multi-Krum: Blanchard et al., NeurIPS 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MessageContext
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.exchange.open_sums import IN_BUCKETS
from fl_peel.scenario.refinement import Robust
from fl_peel.wire import Arrays
from strategies.groups.aggregation import CHUNK_ROWS, BlockSums, Denominator, mean_update
from strategies.rounds.open import OpenServerContents
from strategies.rounds.record import SentRound

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class BucketedServerContents(OpenServerContents):
    """Open contents, bucket by bucket; the update of the table is robust against a few of them."""

    def expects(self, sent: SentRound, group: int, devices: int) -> MessageContext | None:
        """Row by row, and whose it is."""
        known = super().expects(sent, group, devices)
        assert known is not None
        known = replace(known, arrays={**(known.arrays or {}), **IN_BUCKETS})
        return known.with_sizes(buckets=self.federation.scenario.refinement.aggregation.robust.buckets)

    def take_group(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> None:
        """One user group. blocks: (K,) as they were ranked when sent; parts: sums with one entry a bucket."""
        state, layout = self.federation.states[group], self.federation.layout
        aggregation = self.federation.scenario.refinement.aggregation
        order = RowOrder.from_blocks(layout, blocks)
        total = self.empty(order, blocks)
        buckets = by_bucket(parts, aggregation.robust.buckets, total)
        add_statistics(total, parts, buckets)
        update, changed = robust_update(buckets, order.position, aggregation.denominator, aggregation.robust)
        rows = changed.any(axis=1)
        state.optimizer.apply(state.table, order.items[rows], update[rows], changed[rows])
        state.take_statistics(layout, blocks, order, total, self.federation.scenario)
        state.drop_pages()


def by_bucket(contents: Sequence[Arrays], num_buckets: int, zeros: BlockSums) -> list[BlockSums]:
    """Sums of each bucket over all nodes. zeros: the empty sums, of the right shapes; it stays as it is.

    Row arrays of a reply come with ``buckets`` (T,), ``wide_buckets`` (W,): whose they are; per-block arrays are sums
    of the buckets, (K,), but ``bucket_holders`` (buckets, K).
    """
    num_rows, num_slices = zeros.touched.shape
    sums = [BlockSums.zeros(num_rows, num_slices, zeros.dim, len(zeros.holders)) for _ in range(num_buckets)]
    for content in contents:
        for bucket in np.unique(content["buckets"]).tolist():
            mine, wide = content["buckets"] == bucket, content["wide_buckets"] == bucket
            part = {name: content[name][mine] for name in ("rows", "sums", "touched", "row_loss", "row_examples")}
            part |= {name: content[name][wide] for name in ("wide_rows", "wide_sums")}
            sums[bucket].add(part | {"holders": content["bucket_holders"][bucket]})
    return sums


def add_statistics(total: BlockSums, contents: Sequence[Arrays], buckets: list[BlockSums]) -> None:
    """Add what a group's statistics need to ``total``: everything but the block updates themselves."""
    for part in buckets:
        for name in ("touched", "row_loss", "row_examples"):
            getattr(total, name)[:] += getattr(part, name)
    for content in contents:
        for name in ("holders", "hits", "shown", "exposed"):
            if name in content:
                getattr(total, name)[:] += content[name]


def robust_update(
    parts: list[BlockSums], position: NDArray[np.int32], denominator: Denominator, robust: Robust
) -> tuple[FloatArray, BoolArray]:
    """Update (R, d) and which entries any bucket changed (R, d). position: (R, S), as for a plain mean."""
    if robust.rule == "krum":
        return _krum(parts, position, denominator, robust.trim)
    pairs = [mean_update(part, position, denominator) for part in parts]
    changed = np.logical_or.reduce([touched for _, touched in pairs])
    update = np.zeros(changed.shape, np.float32)
    for start in range(0, len(changed), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        values = np.stack([np.where(touched[rows], mean[rows], np.nan) for mean, touched in pairs])  # (buckets, r, d)
        update[rows] = trimmed(values, 0.5 if robust.rule == "median" else robust.trim)
    return update, changed


def trimmed(values: FloatArray, trim: float) -> FloatArray:
    """Mean over the first axis without the ``floor(trim n)`` largest and smallest of the n numbers that are no nan.

    Half or more leaves the median: the middle number, or the mean of the two in the middle. Without numbers 0.
    """
    ordered = np.sort(values, axis=0)  # nan last
    count = (~np.isnan(values)).sum(axis=0)
    cut = np.minimum(np.floor(trim * count + 1e-9), np.maximum((count - 1) // 2, 0)).astype(np.int64)
    place = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    kept = (place >= cut) & (place < count - cut)
    total = np.where(kept, ordered, 0.0).sum(axis=0, dtype=np.float64)
    return np.asarray(total / np.maximum(kept.sum(axis=0), 1), np.float32)


def _krum(
    parts: list[BlockSums], position: NDArray[np.int32], denominator: Denominator, share: float
) -> tuple[FloatArray, BoolArray]:
    """The mean over the chosen buckets: sums added up, then divided."""
    chosen = krum_choice(np.stack([mean_update(part, position, denominator)[0].ravel() for part in parts]), share)
    num_rows, num_slices = parts[0].touched.shape
    total = BlockSums.zeros(num_rows, num_slices, parts[0].dim, len(parts[0].holders))
    for i in chosen.tolist():
        total.parts += parts[i].parts
        total.touched += parts[i].touched
        total.holders += parts[i].holders
    return mean_update(total, position, denominator)


def krum_choice(updates: FloatArray, share: float) -> NDArray[np.int64]:
    """Return which of the updates (n, D) to keep when ``share`` of them may be poisoned: f = ceil(share n), n - f are
    kept. Score: sum of the squared distances to the n - f - 2 nearest others. Updates that are all zero contribute
    nothing and are left out first.

    Score: sum of the squared distances to the n - f - 2 nearest others. Updates that are all zero have nothing to say
    and are left out first.
    """
    some = np.flatnonzero(updates.any(axis=1))
    few = math.ceil(share * len(some))
    near = len(some) - few - 2
    if near < 1:
        return some
    mine = updates[some].astype(np.float64)
    squares = (mine**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * mine @ mine.T, 0.0)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, :near].sum(axis=1)
    return np.sort(some[np.argsort(scores, kind="stable")[: len(some) - few]])
