"""Server half of a round's contents: whom it concerns, what becomes of the sums, which figures that leaves.

To add one, subclass :class:`ServerContents` (or one that ships, :class:`OpenServerContents`), register it
under the entry point group ``fl_peel.server_contents`` and name it as ``refinement.contribution``.
:class:`strategies.rounds.contracts.ServerContentsContract` tests it; docs/contents.md has examples.

Bucketed contents are robust against a few sub-cohorts, which cannot move the update far. Devices are hashed by identity
into buckets, so that what is aggregated does not depend on the nodes. Of every row only the buckets that changed it
have a say: with one item per block a bucket meets few of the items.

- ``median``: of the buckets' mean updates, coordinate by coordinate; ``trimmed-mean``: the same without the largest and
  the smallest ones (Yin, Chen, Ramchandran and Bartlett, ICML 2018; over sub-cohorts: Chen, Su and Xu, 2017).
- ``krum``: the mean over the buckets that lie closest together (Multi-Krum: Blanchard et al., NeurIPS 2017).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MessageContext
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.exchange.release import IN_BUCKETS, SIGNAL_ARRAYS, UPDATE_ARRAYS, Release
from fl_peel.privacy.noise_plan import Plan
from fl_peel.scenario.method import Robust
from fl_peel.wire import Arrays
from strategies.groups.state import CHUNK_ROWS, BlockSums, Denominator, UserGroupState, apply_mean, mean_update
from strategies.rounds.federation import Federation, OpenedSum, RoundRecord, SentRound, for_groups

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller


class ServerContents(ABC):
    """Base class of a contribution on the server side, for one refinement. plan: plan of the noise, None without."""

    def __init__(self, federation: Federation, plan: Plan | None) -> None:
        self.federation = federation
        self.plan = plan

    @property
    def clip_norm(self) -> float:
        """Clipping bound of a device's update in the next round, sent to devices; infinite for none."""
        clipping = self.federation.scenario.privacy.clipping
        return math.inf if clipping.kind == "none" else clipping.norm

    @property
    def clip_norms(self) -> list[float]:
        """Clipping bounds of the rounds so far, for the report; none where they did not apply."""
        return []

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier, sent to devices that add noise; 0 where they add none."""
        return 0.0 if self.plan is None else self.plan.multiplier

    def groups(self, asked: NDArray[np.int32]) -> list[int]:
        """Return the user groups whose blocks are ranked, ascending. asked: (N,) groups of the requested devices."""
        return [int(group) for group in np.unique(asked)]

    def expects(self, sent: SentRound, group: int, devices: int) -> MessageContext | None:
        """Return what a node must contribute for a user group with this many requested devices; None where anything is
        accepted. A reply that differs is ignored, with the rest of the node's reply."""
        return None

    @property
    def aggregates_incrementally(self) -> bool:
        """Whether :meth:`take` may be called for one user group at a time, as soon as its contributions are complete,
        so that the server need not hold the sums of a whole round."""
        return False

    @abstractmethod
    def take(self, sent: SentRound, sums: Mapping[int, Sequence[Arrays]], opened: Mapping[int, OpenedSum]) -> None:
        """Update the user groups' tables and statistics. sums: contributions to each user group, in parts that add up;
        opened: the devices of these sums, where the channel reveals them."""

    def may_change(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> NDArray[np.integer]:
        """Return the items (T,) whose rows of a user group's table :meth:`take` may have changed: among those of the
        blocks (K,) that it was sent. Checkpoints contain only these rows. parts: contributions to the user group."""
        return RowOrder.from_blocks(self.federation.layout, blocks).items

    def outer_step(self, controller: Controller) -> float | None:
        """Update the controller from the signals of a round that had any; return its loss, if there is one."""
        loss = controller.outer_step(self.federation.all_statistics())
        return loss if np.isfinite(loss) else None

    def figures(self, sent: SentRound, record: RoundRecord) -> RoundRecord:
        """Return the round's record, with what the server knows by itself."""
        return record


class OpenServerContents(ServerContents):
    """Contribution on the server side in the clear, for each user group: its sums, then its table, then its statistics.

    Override :meth:`apply` for an aggregation rule of your own.
    """

    def expects(self, sent: SentRound, group: int, devices: int) -> MessageContext | None:
        """Return the expected sums: those of the rows that were sent."""
        layout, blocks = self.federation.layout, sent.blocks[group]
        release = Release.from_scenario(self.federation.scenario, signals=sent.signals)
        sizes = {
            "R": layout.num_rows(blocks),
            "d": layout.embedding_dim,
            "S": layout.num_slices,
            "K": len(blocks),
            "N": devices,
        }
        return MessageContext(sizes, arrays=UPDATE_ARRAYS | (SIGNAL_ARRAYS if release.signals else {}))

    @property
    def aggregates_incrementally(self) -> bool:
        """Whether groups are aggregated one by one: yes, unless a rule of your own needs all of them together."""
        return type(self).take is OpenServerContents.take

    def take(self, sent: SentRound, sums: Mapping[int, Sequence[Arrays]], opened: Mapping[int, OpenedSum]) -> None:
        """Update the table and statistics of each user group with a contribution."""
        for_groups(lambda group: self.take_group(group, sent.blocks[group], sums[group]), sums)

    def take_group(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> None:
        """Update one user group. blocks: (K,) as they were ranked when sent; parts: sums that add up."""
        state, layout = self.federation.states[group], self.federation.layout
        order = RowOrder.from_blocks(layout, blocks)
        total = self.empty(order, blocks)
        for part in parts:
            total.add(part)
        self.apply(state, order, total)
        scenario = self.federation.scenario
        state.take_statistics(layout, blocks, order, total, scenario, all_rows=self._applies_its_own)
        state.drop_pages()

    def may_change(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> NDArray[np.integer]:
        """Return the rows that may have changed: those that some device changed, unless you override it."""
        items = super().may_change(group, blocks, parts)
        if self._applies_its_own or type(self).take_group is not OpenServerContents.take_group:
            return items
        rows = [part[name] for part in parts for name in ("rows", "wide_rows") if name in part]
        changed = np.zeros(len(items), np.bool_)
        for some in rows:
            changed[some] = True
        return items[changed]

    @property
    def _applies_its_own(self) -> bool:
        return type(self).apply is not OpenServerContents.apply

    def empty(self, order: RowOrder, blocks: NDArray[np.int64]) -> BlockSums:
        layout = self.federation.layout
        return BlockSums.zeros(len(order.items), layout.num_slices, layout.embedding_dim, len(blocks))

    def apply(self, state: UserGroupState, order: RowOrder, total: BlockSums) -> None:
        """Add the mean update to the table. order: of the table's rows (R,); total: sums over the devices."""
        denominator = self.federation.scenario.refinement.aggregation.denominator
        apply_mean(state.table, order.items, total, order.position, denominator, state.optimizer)


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
    kept.

    Score: sum of the squared distances to the n - f - 2 nearest others. Updates that are all zero contribute
    nothing and are left out first.
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
