"""What a round releases, worked out once for devices and server alike: its parts, their sums, and the bytes they take.

In the open a device's user group gets row updates with their counts, losses and signals. Bounded contents are a vector
of parts, each bounded by itself per device:

========== ==================================================== ===============================
part       what a device adds to its user group's sum           bound
========== ==================================================== ===============================
updates    change of every row that was sent                    ``privacy.clipping.norm``
signals    validation hits of every block                       ``privacy.signals_norm``
counts     whether it has train interactions with a row         ``privacy.counts_norm``
quantile   +1/2 or -1/2: its update was within the bound or not 1/2
========== ==================================================== ===============================

and one more for every statistic that ``privacy.statistics`` names (:mod:`fl_peel.exchange.release`).

Everything else that an unprotected round sends (row counts and losses, holders, exposure, what was shown) is left out;
the server has it from what is public: whom it asked, and what it sent. All parts are dense, over every row and block
that was sent, in units of 1 / FIXED_POINT.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import kernels
from fl_peel.array_specs import WHOLE, ArraySpec, summed
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import UserItems
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundTotals, counts_within
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import STATISTICS
from fl_peel.secure.device_protocol import DeviceBytes
from fl_peel.secure.vector import CHECK, Bits, Field, Values, VectorLayout, sum_bits
from fl_peel.training.update import GroupUpdate
from fl_peel.weighting.block_statistics import BlockStatistics

# ---- Bounded statistics of a user's own, and what devices know when they contribute to them
# A statistic says what a device would contribute; the framework bounds each device's contribution in the mechanism's
# norm, adds up, noises and accounts for it as for every other part. Register one under the entry point group
# ``fl_peel.statistics`` and name it in a scenario::
#
#     privacy:
#       statistics:
#         top-list-rows: {share: 0.1, norm: 1.0}
#
# :class:`fl_peel.contracts.StatisticContract` tests it.


@dataclass(frozen=True)
class TrainedDevices:
    """Devices (M,) of one user group, those that count. cutoffs (M,): blocks each holds; users (M, d): new user
    embeddings, which stay on the devices; update: sums over them; best: (M, L) top rows, None in rounds without
    signals; train, validation: their items.
    """

    devices: NDArray[np.int64]
    cutoffs: NDArray[np.int64]
    users: NDArray[np.float32]
    update: GroupUpdate
    best: NDArray[np.int32] | None
    train: UserItems
    validation: UserItems


FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class GroupShape:
    """Shape of what a user group is sent: R ``rows`` of ``slices`` slices and ``dim`` columns, in K ``blocks``."""

    rows: int
    slices: int
    dim: int
    blocks: int

    @staticmethod
    def from_blocks(layout: BlockLayout, blocks: NDArray[np.int64]) -> GroupShape:
        """Return the shape of some blocks (K,), as the server sends them."""
        return GroupShape(layout.num_rows(blocks), layout.num_slices, layout.embedding_dim, len(blocks))

    @staticmethod
    def from_ranked(ranked: RankedBlocks) -> GroupShape:
        layout = ranked.layout
        return GroupShape(len(ranked.items), layout.num_slices, layout.embedding_dim, len(ranked.blocks))


class BoundedStatistic(ABC):
    """Base class of an additional noised statistic; a stateless value, made without arguments."""

    @abstractmethod
    def shape(self, group: GroupShape) -> tuple[int, ...]:
        """Return the shape of one device's contribution, from public quantities alone."""

    @abstractmethod
    def values(self, ranked: RankedBlocks, trained: TrainedDevices) -> FloatArray:
        """Return each device's contribution, (M, *shape), before clipping; finite."""

    @abstractmethod
    def take(
        self,
        total: FloatArray,
        std: float,
        num_devices: float,
        blocks: NDArray[np.int64],
        statistics: BlockStatistics,
    ) -> None:
        """Use a user group's noised sum (shape) on the server; it may change ``statistics`` in place. std: standard
        deviation of the noise on each number; num_devices: divisor of the sums; blocks: (K,) blocks that were sent."""


@lru_cache(maxsize=32)
def find_statistic(name: str) -> BoundedStatistic:
    """The statistic of this name.

    Raises:
        ScenarioError: no statistic has this name, or what is registered under it is none.
    """
    try:
        return STATISTICS.make(name, BoundedStatistic)  # type: ignore[type-abstract]
    except FieldError as error:
        raise ScenarioError(f"privacy.statistics: {error}") from None


def bounded(values: FloatArray, bound: float, *, l1: bool) -> NDArray[np.int64]:
    """Sum over devices of their contributions (M, ...), each scaled into the bound, in units of 1 / FIXED_POINT.

    Every device rounds towards zero, so that no norm passes the bound.
    """
    flat = values.reshape(len(values), -1)
    sizes = np.abs(flat).sum(axis=1) if l1 else np.sqrt((flat**2).sum(axis=1))
    scale = np.minimum(1.0, bound * (1 - 1e-12) / np.maximum(sizes, 1e-300))
    fixed = np.trunc(flat * scale[:, None] * FIXED_POINT).astype(np.int64)
    return np.asarray(fixed.sum(axis=0, dtype=np.int64)).reshape(values.shape[1:])


class NamedSums(dict[str, NDArray[np.int64]]):
    """updates (R, d), signals (K,), counts (R,), quantile (1,), and a user's statistics: those that are released.

    Those of disjoint sets of devices add up with ``+``.
    """

    @staticmethod
    def zeros(shapes: Mapping[str, tuple[int, ...]]) -> NamedSums:
        return NamedSums({part: np.zeros(shape, np.int64) for part, shape in shapes.items()})

    def __add__(self, other: Mapping[str, NDArray[Any]]) -> NamedSums:
        """Over both; ``other`` has the same parts."""
        return NamedSums({part: values + other[part] for part, values in self.items()})


BY_ROW = ("sums", "touched", "row_loss", "row_examples")
"""Arrays of a group's reply that have one entry a row, of those rows that its ``rows`` name."""

_ROWS = ArraySpec(("T",), within="R", ascending=True, dtypes=WHOLE)
_WIDE_ROWS = ArraySpec(("W",), within="R", ascending=True, dtypes=WHOLE)
_DEVICES_OF_BLOCKS = ArraySpec(("K",), least=0, most="N", dtypes=WHOLE)
UPDATE_ARRAYS = {
    "rows": _ROWS,
    "sums": summed("T", "d"),
    "wide_rows": _WIDE_ROWS,
    "wide_sums": summed("W", "d"),
    "touched": ArraySpec(("T", "S"), least=0, most="N", dtypes=WHOLE),
    "row_loss": summed("T"),
    "row_examples": summed("T", least=0),
    "holders": _DEVICES_OF_BLOCKS,
}
"""A group's arrays of a reply: of N devices, with K blocks of S slices in R rows of d columns."""
SIGNAL_ARRAYS = {"hits": summed("K"), "shown": summed("K"), "exposed": _DEVICES_OF_BLOCKS}
"""And in rounds with signals."""
IN_BUCKETS = {
    "rows": replace(_ROWS, by="buckets"),
    "buckets": ArraySpec(("T",), within="buckets", dtypes=WHOLE),
    "wide_rows": replace(_WIDE_ROWS, by="wide_buckets"),
    "wide_buckets": ArraySpec(("W",), within="buckets", dtypes=WHOLE),
    "bucket_holders": ArraySpec(("buckets", "K"), least=0, most="N", dtypes=WHOLE),
}
"""What is different, or besides, where devices are in buckets."""


def update_fields(group: GroupShape, *, signals: bool, update_bits: Bits) -> tuple[Field, ...]:
    """A group's arrays of a :class:`fl_peel.wire.RoundReply`, with an entry for every row.

    Counts of devices or of interactions take 32 bits, losses and signals 64.
    """
    rows, blocks = group.rows, group.blocks
    fields = [
        Field("sums", (rows, group.dim), update_bits),
        Field("touched", (rows, group.slices), 32),
        Field("row_loss", (rows,), 64),
        Field("row_examples", (rows,), 32),
        Field("holders", (blocks,), 32),
    ]
    if signals:
        fields += [Field("hits", (blocks,), 64), Field("shown", (blocks,), 64), Field("exposed", (blocks,), 32)]
    return tuple(fields)


def dense(content: Mapping[str, NDArray[Any]], rows: int, dim: int) -> Values:
    """A group's arrays with an entry for every row, from those of a reply, which may name their rows."""
    if "rows" not in content:
        return {name: array.astype(np.int64) for name, array in content.items()}
    where = content["rows"]
    result: Values = {}
    for name, array in content.items():
        if name in BY_ROW:
            result[name] = np.zeros((rows, *array.shape[1:]), np.int64)
            result[name][where] = array
        elif name not in ("rows", "wide_rows", "wide_sums"):
            result[name] = array.astype(np.int64)
    if "wide_rows" in content:
        result["sums"][content["wide_rows"]] += content["wide_sums"]
    return result


def sparse(values: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
    """A group's arrays as a reply has them, from sums with an entry for every row: rows that some device changed."""
    if "touched" not in values:
        return dict(values)
    by_row = {name: values[name] for name in BY_ROW}
    changed = np.any([array.reshape(len(array), -1).any(axis=1) for array in by_row.values()], axis=0)
    rows = np.flatnonzero(changed).astype(np.int32)
    others = {name: values[name] for name in ("holders", "hits", "shown", "exposed") if name in values}
    return {"rows": rows, **{name: array[rows] for name, array in by_row.items()}, **others}


Part = str
"""Name of a part."""
BUILT_IN: tuple[Part, ...] = ("updates", "signals", "counts", "quantile")
SIGNALS: Part = "signals"


@dataclass(frozen=True)
class Release:
    """Contents of one round's release. bounded: whether devices contribute bounded ``parts`` alone, instead of
    everything in the open.

    signals: whether validation signals are part of it; withheld: whether losses, metrics, times and bytes are left out
    (``privacy.counters``).
    """

    bounded: bool
    parts: tuple[Part, ...]
    signals: bool
    withheld: bool

    @staticmethod
    def from_scenario(scenario: Scenario, *, signals: bool) -> Release:
        """Return the contents of a round's release in this scenario; not every round releases signals.

        Without a mechanism there are no counts, which would reveal a lone device's items; where owners are counted,
        there are no signals.
        """
        privacy = scenario.privacy
        signals = signals and not scenario.counts_owners
        if not privacy.sums_only:
            return Release(False, (), signals, False)
        parts = (
            released(shares_of(scenario), signals=signals) if privacy.noised else ("updates", SIGNALS)[: 1 + signals]
        )
        return Release(True, parts, signals, privacy.counters == "withheld")

    def fields(self, group: GroupShape, update_bits: Bits) -> tuple[Field, ...]:
        """Return the fields of a device's contribution to a user group's blocks, as words of a vector."""
        if not self.bounded:
            return update_fields(group, signals=self.signals, update_bits=update_bits)
        sizes = shapes(group, self.parts)
        return tuple(Field(part, size, update_bits if part == "updates" else 64) for part, size in sizes.items())

    def counter_fields(self, num_classes: int) -> tuple[Field, ...]:
        """Return the fields of a device's counters, as words of a vector."""
        if self.withheld:
            return ()
        return (
            Field("classes", (num_classes, len(ClassCounts.names())), 64),
            Field("clock", (num_classes, len(ClockCounts.names())), 64),
            Field("totals", (len(RoundTotals.names()),), 64),
        )


def wants_signals(scenario: Scenario) -> bool:
    """Return whether any selector of the scenario is the controller, and there is something for it to learn from: not
    where a round's owners are counted, since hardly a block is hit by as many devices as a sum has to have.
    """
    return not scenario.counts_owners and "controller" in (scenario.selector, *scenario.evaluation.selectors)


def shares_of(scenario: Scenario) -> dict[Part, float]:
    """Return the parts' shares of a full round's release, which sum to 1; unused parts are left out."""
    privacy = scenario.privacy
    given: dict[Part, float] = privacy.shares.model_dump(exclude={"stage1"})
    if not wants_signals(scenario):
        given[SIGNALS] = 0.0
    if privacy.clipping.kind != "adaptive":
        given["quantile"] = 0.0
    given |= {name: statistic.share for name, statistic in privacy.statistics.items()}
    total = sum(given.values())
    return {part: share / total for part, share in given.items() if share > 0}


def released(shares: Mapping[Part, float], *, signals: bool) -> tuple[Part, ...]:
    """Return the parts of one round; not every round releases signals."""
    return tuple(part for part in shares if signals or part != SIGNALS)


def shapes(group: GroupShape, parts: Iterable[Part]) -> dict[Part, tuple[int, ...]]:
    """Return the shapes of these parts."""
    built_in: dict[Part, tuple[int, ...]] = {
        "updates": (group.rows, group.dim),
        SIGNALS: (group.blocks,),
        "counts": (group.rows,),
        "quantile": (1,),
    }
    return {part: built_in[part] if part in built_in else find_statistic(part).shape(group) for part in parts}


def bounds(scenario: Scenario, clip_norm: float) -> dict[Part, float]:
    """Return the bound of every part, in the mechanism's norm; ``clip_norm``: that of updates in this round."""
    privacy = scenario.privacy
    built_in = {"updates": clip_norm, SIGNALS: privacy.signals_norm, "counts": privacy.counts_norm, "quantile": 0.5}
    return built_in | {name: statistic.norm for name, statistic in privacy.statistics.items()}


def update_bits(scenario: Scenario, num_devices: int) -> Bits:
    """Return the width of the words of block updates: see ``secure_aggregation.word_bits``."""
    privacy = scenario.privacy
    honest = not scenario.poisoning.active  # who lies need not keep to a bound
    bounded = honest and not privacy.noised and privacy.clipping.kind in ("flat", "per-block")
    norm = privacy.clipping.norm if bounded else math.inf  # noise of a device's own has no bound
    return sum_bits(scenario.secure_aggregation.word_bits, num_devices, norm)


def layout_of(
    scenario: Scenario, *, num_devices: int, group: GroupShape, num_classes: int, signals: bool
) -> VectorLayout:
    """Return the layout of the vector of a user group's devices in a round of secure aggregation."""
    release = Release.from_scenario(scenario, signals=signals)
    fields = release.fields(group, update_bits(scenario, num_devices))
    return VectorLayout((*fields, *release.counter_fields(num_classes), Field(CHECK, (1,), 64)), num_devices)


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
    """Devices with train interactions in each row sent, (R,): :func:`fl_peel.exchange.counters.counts_within`."""
    rows = ranked.row_of_item[train.items]
    sent = rows >= 0
    return counts_within(train.users()[sent], rows[sent], len(ranked.table), bound, FIXED_POINT, l1=l1)


NUMBER_BYTES = 4
"""Bytes of a number in an update or a noised part: fp32, as without privacy."""


@dataclass(frozen=True)
class TrafficPadding:
    """Padding that makes traffic independent of a device's data.

    all_rows: updates cover every row that was downloaded; group_prefix: every device downloads all ranked blocks;
    dense: the parts other than updates that are sent for all blocks or rows.
    """

    all_rows: bool
    group_prefix: bool
    dense: tuple[Part, ...]

    @staticmethod
    def from_scenario(scenario: Scenario, parts: tuple[Part, ...]) -> TrafficPadding:
        """Return the padding of a scenario; parts: released in this round, none where no mechanism adds noise."""
        privacy = scenario.privacy
        dense = tuple(part for part in parts if part != "updates") if privacy.noised else ()
        return TrafficPadding(privacy.rows == "all-sent", privacy.requests == "group-prefix", dense)

    def download_bytes(self, ranked: RankedBlocks, cutoffs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes (N,) of the list that devices download, if they want the first ``cutoffs`` (N,) blocks."""
        wanted = np.full_like(cutoffs, len(ranked.blocks)) if self.group_prefix else cutoffs
        return ranked.read_bytes(np.zeros_like(wanted), wanted)

    def update_bytes(
        self, ranked: RankedBlocks, cutoffs: NDArray[np.int64], touched_pieces: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Block updates (N,). Those of all rows need no numbers: their order is that of the ranked list."""
        layout = ranked.layout
        if not self.all_rows:
            return touched_pieces * (layout.id_dtype.itemsize + NUMBER_BYTES * layout.slice_dim)
        wanted = np.full_like(cutoffs, len(ranked.blocks)) if self.group_prefix else cutoffs
        return ranked.row_pieces[wanted] * NUMBER_BYTES * layout.slice_dim

    def part_bytes(self, ranked: RankedBlocks) -> int:
        return NUMBER_BYTES * sum(
            math.prod(shape) for shape in shapes(GroupShape.from_ranked(ranked), self.dense).values()
        )

    def is_public(self) -> bool:
        """Return whether a device's traffic does not depend on its data: the server can compute it."""
        return self.all_rows and self.group_prefix


# ---- Owners in a round of refinement under secure aggregation: they are counted first, and few of them open
# nothing
# A device that trains changes the rows of its items and those of others, as negatives: a row's sum is over many
# devices, of which few may have the item. What such a sum says is then what these have. Before each round devices
# therefore say, in a sum of its own over the same devices of the same user group, of which slices of rows they have
# the item and learn from it. Where :func:`fl_peel.steps.base.opened_rows` says no they then say zeros, as of a row
# that stays closed in a step of stage 1. Who touches a row is not counted, since nearly everybody does.
#
# They count once they have trained, so that who is late or loses its memory is in neither sum. Validation hits of a
# block are of fewer devices than that almost everywhere, so such rounds have no signals
# (:func:`fl_peel.exchange.release.wants_signals`).


OWNER_ARRAYS = {"owners": ArraySpec(("R", "S"), least=0, most="N")}
"""What N devices count: those that have the item of each of R rows, by slice."""


def owners_layout(group: GroupShape, *, num_devices: int) -> VectorLayout:
    """Return the layout of the vector in which devices of a user group count."""
    return VectorLayout((Field("owners", (group.rows, group.slices), 32), Field(CHECK, (1,), 64)), num_devices)


def owners_bytes(neighbours: int, group: GroupShape, layout: VectorLayout) -> DeviceBytes:
    """Return the bytes that counting takes of a device with so many neighbours: the exchanges of the protocol, and
    what is opened, a bit each.
    """
    moved = DeviceBytes.from_sizes(neighbours, layout.num_bytes)
    return DeviceBytes(moved.download + -(-group.rows * group.slices // 8), moved.upload, moved.vector)


def spare_devices(lost: int) -> int:
    """Return how many devices may be lost between the request for a round's vectors and their sum, where so many were
    lost as owners were counted: with more the sum stays masked, and a row is opened if it has enough owners without.
    """
    return 2 * lost + 2


def owned(update: GroupUpdate) -> Values:
    """Return what one device counts. update: its own, of this round."""
    mine = (update.row_examples > 0)[:, None] & (update.touched > 0)
    return {"owners": mine.astype(np.int64)}


def closed(values: Values, opened: NDArray[np.bool_]) -> Values:
    """Return a device's contribution, with an entry for every row, and zeros for all that stays closed. opened: (R, S)
    slices of rows.
    """
    rows = opened.any(axis=1)
    masks = {"touched": opened, "row_loss": rows, "row_examples": rows}
    result: Values = {}
    for name, array in values.items():
        if name in ("sums", "updates"):
            by_slice = array.reshape(*opened.shape, -1)
            result[name] = np.where(opened[:, :, None], by_slice, 0).reshape(array.shape)
        else:
            result[name] = np.where(masks[name], array, 0) if name in masks else array
    return result
