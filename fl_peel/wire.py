"""What crosses the network: the named payload of every message, and how it is packed. Used by both sides.

The one module of ``fl_peel`` that knows Flower, and only its record types. Each message is a frozen dataclass whose
fields are all that is sent; the kinds of messages, with the request and the reply of each, stand below these classes.

Locally trained user embeddings and single devices' interactions are fields of none of them. But sums say something
about those who are in them: a node that hosts one device answers with that device's own row counts and signals, from
which its items can be read. What a node may answer about too few devices is a matter of the privacy mechanisms.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Generic, SupportsIndex, TypeVar, get_args, get_origin

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fl_peel.array_specs import SUM_SCALE, TOTAL, ArraySpec, IntColumns, fields_of, hosted, metric_of, name_of, plain_of
from fl_peel.errors import FieldError, MessageError
from fl_peel.exchange.counters import (
    ClassCounts,
    ClockCounts,
    OwnCounts,
    RefreshCounts,
    RoundCounts,
    StepCounts,
    StepTraces,
)
from fl_peel.ranking.bootstrap import NUM_BINS, Histogram, PairedSums, Replicates
from fl_peel.ranking.top import ListSums, MetricSums
from fl_peel.scenario.settings import PRECISIONS
from fl_peel.steps import find_step
from fl_peel.steps.base import Step

USER_MISTAKE = 1001
"""Code of an error reply whose reason is a :class:`NodeError`."""
NODE_FAILED = 1002
"""Code of an error reply of a node that failed otherwise; its own log says how."""

NEW, RESCALED = 1, 2
"""Changes of a block from one period to the next."""
UNLIMITED = -1
"""Budget that holds everything that was sent."""
OWN_BUDGET = -2
"""Budget that stands for the one a device has at that moment."""
EVERYBODY = -1
"""User group number of a payload that is for the devices of all groups."""

Arrays = dict[str, NDArray[Any]]
Reply = TypeVar("Reply")

MOST_NODES, MOST_ROUNDS, MOST_REPLICATES = 1 << 20, 1 << 20, 1 << 20
MOST_HOSTED = 1 << 27
"""Largest number of devices that have their data on one node: the server has a number for each."""
LABEL = r"[\w.-]*"
"""Pattern of the label in the names of files that a device writes."""
_COUNT = ArraySpec(least=0, most=TOTAL)
_SIZE = ArraySpec(least=0)
_COLUMNS = ArraySpec(least=0, most=1 << 24)
_HOSTED = ArraySpec(least=0, most="hosted")
_IN_CELLS = hosted(cells=1)
_SECONDS = ArraySpec(least=0)
_ROUND = ArraySpec(least=0, most=MOST_ROUNDS)
_DEVICES = ArraySpec(("N",), least=0, among="devices", ascending=True)
_WAITS = ArraySpec(("W",), least=0, most=TOTAL)
_BY_CLASS = ArraySpec(("C",), least=0, most=TOTAL)
_KEYS = ArraySpec(("N", 32))
_STEPS = {
    **dict.fromkeys(("devices", "counted", "violations", "grew", "shrank", "reselected"), _IN_CELLS),
    **dict.fromkeys(("recall_before", "recall_after"), metric_of("reselected")),
    **dict.fromkeys(("recall", "recall_square", "floor_recall", "floor_square"), metric_of("counted")),
}
_STEPS_OF_ONE = {
    name: dataclasses.replace(spec, most=1 if spec is _IN_CELLS else int(SUM_SCALE)) for name, spec in _STEPS.items()
}
_METRICS = {"devices": _IN_CELLS, **dict.fromkeys(("recall", "ndcg", "square"), metric_of("devices"))}
_PAIRED = {
    "devices": hosted(cells=0),
    "difference": metric_of("devices", least="-metrics"),
    "square": metric_of("devices"),
}
_TRACED = {"device": ArraySpec(among="devices"), "device_class": ArraySpec(within="C"), "step": ArraySpec(within="T")}


@dataclass(frozen=True)
class NodeError:
    """Reason why a node did not answer. code: the class of :mod:`fl_peel.errors`; place: a key of the scenario, or
    "node config", or "" where there is none; text: the whole line, if the mistake is public or the node is simulated.
    """

    code: str
    place: str = ""
    text: str = ""

    def to_reason(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_reason(reason: str) -> NodeError:
        """Read :meth:`to_reason`.

        Raises:
            MessageError: it is none.
        """
        try:
            return NodeError(**{name: str(value) for name, value in json.loads(reason).items()})
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise MessageError("an error reply that is none") from None


@dataclass(frozen=True)
class RunSetting:
    """Setting of a run, which every request carries. data_dir, run_dir: where a node that is simulated finds its
    devices' data and keeps their state; any other node has folders of its own. num_devices: how many devices there are,
    for nodes that cannot see it. fleet: the fleet files that the scenario names, as
    :func:`fl_peel.scenario.fleet_files.fleet_files` packs them.
    """

    scenario: str
    data_dir: str
    run_dir: str
    num_devices: Annotated[int, ArraySpec(least=0)] = dataclasses.field(default=0, kw_only=True)
    fleet: str = dataclasses.field(default="", kw_only=True)


@dataclass(frozen=True)
class HelloRequest:
    """Request for the partition that a node hosts. catalogue: ids of all items, one a line, for nodes with own data."""

    scenario: str
    catalogue: str = dataclasses.field(default="", kw_only=True)


@dataclass(frozen=True)
class HelloReply:
    """The node's place among the nodes. root: folder that its copy of the packages lies in; code: which code it is;
    first, hosted: of a node that has its own interactions, the number of its first device, and how many it has.
    """

    partition: Annotated[int, ArraySpec(least=0)]
    num_partitions: Annotated[int, ArraySpec(least=1, most=MOST_NODES)]
    root: str
    code: str
    first: Annotated[int, ArraySpec(least=0, most=MOST_HOSTED)] = dataclasses.field(default=0, kw_only=True)
    hosted: Annotated[int, ArraySpec(least=0, most=MOST_HOSTED)] = dataclasses.field(default=0, kw_only=True)


@dataclass(frozen=True)
class StepRequest:
    """A part of a step (:mod:`fl_peel.steps.base`) for the devices of this node. time: in rounds, when the first of its
    windows opens; first, stop: pieces of the part; sent: its arrays by name; noise_multiplier: of noise that devices
    add, see :class:`fl_peel.privacy.noise_plan.Stage1Scales`.

    opened: the rows that the server opens, as :func:`fl_peel.steps.base.packed_rows` sends them; of no use
    where contributors are not counted (``privacy.counts_contributors``).
    """

    setting: RunSetting
    step: Step
    time: Annotated[int, _ROUND]
    first: Annotated[int, _COLUMNS]
    stop: Annotated[int, _COLUMNS]
    sent: Arrays
    opened: Annotated[NDArray[np.uint8], ArraySpec(("opened",))]
    noise_multiplier: Annotated[float, _SECONDS] = 0.0


@dataclass(frozen=True)
class StepReply:
    """Reply with the sums of a part of a step over the devices of a node, by name. counts: cost of the step, where this
    is its first part; waits_us: (W,) of the slowest device in each window.
    """

    sums: Arrays
    counts: RoundCounts
    waits_us: Annotated[NDArray[np.int64], _WAITS]


@dataclass(frozen=True)
class JoinRequest:
    """Start of a run. devices (M,): those whose data was collected, with users (M, d) and groups (M,).

    item_table: (I, d) if some device must find its embedding and group by itself, else (0, d);
    item_group: (I,); centroids: (G, d). maps: (G, K, d) from the vector that a device made in stage 1 to its embedding,
    centroids are then (G, c) and of those vectors; with an item_table (G, d, d) from the embedding that a device finds
    to the one on the axes of its group's table; (0, 0, d) where there are none; pull: (1, d) in a timeline, added to
    what a map makes of a vector, (0, d) where nothing is. former: (G,) in a timeline, the
    number that each group had in the last period, -1 for new ones: devices that are in it may stay.

    Of many devices some join at a time, one part after the other: first, count: of the node's hosted devices, the place
    of the first one in this part and how many are, -1 for all.
    """

    setting: RunSetting
    item_group: Annotated[NDArray[np.int32], ArraySpec(("I",), within="I")]
    centroids: Annotated[NDArray[np.float32], ArraySpec(("G", "c"))]
    item_table: Annotated[NDArray[np.float32], ArraySpec(("rows", "d"))]
    devices: Annotated[NDArray[np.int64], ArraySpec(("M",), least=0, among="devices", ascending=True)]
    users: Annotated[NDArray[np.float32], ArraySpec(("M", "d"))]
    groups: Annotated[NDArray[np.int32], ArraySpec(("M",), within="G")]
    maps: Annotated[NDArray[np.float32], ArraySpec(("mapped", "K", "d"))]
    pull: Annotated[NDArray[np.float32], ArraySpec(("pulls", "d"))]
    former: Annotated[NDArray[np.int64], ArraySpec(("former",), least=-1, most="most groups")] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int64)
    )
    first: Annotated[int, ArraySpec(least=0, most=MOST_HOSTED)] = 0
    count: Annotated[int, ArraySpec(least=-1, most=MOST_HOSTED)] = -1


@dataclass(frozen=True)
class JoinReply:
    """Reply of devices (N,) that joined: their user groups (N,) and the largest budget each group's devices here can
    ever have (G,); where requests are hidden, that any device of the fleet can have.

    class_names: the fleet's device classes, one a line.
    """

    class_names: str
    devices: Annotated[NDArray[np.int64], _DEVICES]
    groups: Annotated[NDArray[np.int32], ArraySpec(("N",), within="G")]
    ceilings: Annotated[NDArray[np.int64], ArraySpec(("G",), least=0)]


@dataclass(frozen=True)
class RoundRequest:
    """One round. devices: (N,) sampled here; groups: user group -> its ranked blocks (``pack_ranking``).

    signals: whether validation signals are wanted; temperature: of the local loss; traced: devices whose budgets
    and kept blocks the report shows (simulation only). clip_norm: bound of a device's update, where the scenario clips;
    noise_multiplier: of devices that add noise to what they send.
    """

    setting: RunSetting
    server_round: Annotated[int, _ROUND]
    signals: bool
    temperature: Annotated[float, ArraySpec()]
    devices: Annotated[NDArray[np.int64], _DEVICES]
    traced: Annotated[NDArray[np.int64], ArraySpec(("traced",))]
    groups: dict[int, Arrays]
    clip_norm: Annotated[float, ArraySpec(least=0, most=math.inf)] = dataclasses.field(default=math.inf, kw_only=True)
    noise_multiplier: Annotated[float, _SECONDS] = dataclasses.field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class RoundReply:
    """groups: user group -> what its devices here say, as the round's contents have it.

    In the open: rows (T,) touched, sums (T, d), wide_rows (W,), wide_sums (W, d) to be added to them, touched (T, S),
    row_loss (T,), row_examples (T,), holders (K,), and with signals hits, shown, exposed (K,). Bounded: the parts of
    :mod:`fl_peel.exchange.release`, e.g. updates (R, d), signals (K,), counts (R,), quantile (1,).

    counts: everything else that is counted; nothing but how many devices were asked where counters are withheld.
    """

    groups: dict[int, Arrays]
    counts: RoundCounts


@dataclass(frozen=True)
class EvaluateRequest:
    """Rank all items under each budget. budgets: (X,) bytes, UNLIMITED or OWN_BUDGET; groups as in a round.

    factors: (X,) what OWN_BUDGET is multiplied with; rooms: (X,) where >= 0, a device has these blocks only if they
    fit into that many times its own budget, and nothing else;
    artifacts: devices whose stored embeddings are written to the run folder (simulation only); replicates: of the
    bootstrap, 0 for none; per_device: whether what single devices get is told (simulation only); first, last: numbers
    of the devices that count, last excluded, -1 for no end. on_validation: so many of the last budgets are of
    validation items, whatever the split: of these there are no replicates, and nothing of single devices but 0; stored:
    under how many of the first budgets embeddings are written, -1 for all.
    """

    setting: RunSetting
    server_round: Annotated[int, _ROUND]
    precision: Annotated[str, ArraySpec(choices=PRECISIONS)]
    split: Annotated[str, ArraySpec(choices=("test", "validation", "targets"))]
    label: Annotated[str, ArraySpec(pattern=LABEL)]
    budgets: Annotated[NDArray[np.int64], ArraySpec(("X",), least=OWN_BUDGET)]
    factors: Annotated[NDArray[np.float64], ArraySpec(("X",))]
    rooms: Annotated[NDArray[np.float64], ArraySpec(("X",))]
    artifacts: Annotated[NDArray[np.int64], ArraySpec(("artifacts",))]
    groups: dict[int, Arrays]
    replicates: Annotated[int, ArraySpec(least=0, most=MOST_REPLICATES)] = 0
    per_device: bool = False
    first: Annotated[int, _SIZE] = 0
    last: int = -1
    on_validation: Annotated[int, _SIZE] = 0
    stored: Annotated[int, ArraySpec(least=-1)] = -1


@dataclass(frozen=True)
class RefreshRequest:
    """A period's tables are out: read what you lack. budgets: (X,) as in :class:`EvaluateRequest`; changed: (T, B) NEW
    for blocks that are no longer as they were, RESCALED for those of which all numbers grew or shrank alike, else 0,
    of the one table that groups share or each group's own; groups: ranked blocks, as in a round; former: (G,) as in
    :class:`JoinRequest`.
    """

    setting: RunSetting
    server_round: Annotated[int, _ROUND]
    precision: Annotated[str, ArraySpec(choices=PRECISIONS)]
    budgets: Annotated[NDArray[np.int64], ArraySpec(("X",), least=OWN_BUDGET)]
    changed: Annotated[NDArray[np.uint8], ArraySpec(("tables", "B"), least=0, most=RESCALED)]
    groups: dict[int, Arrays]
    former: Annotated[NDArray[np.int64], ArraySpec(("G",), least=-1, most="most groups")]


@dataclass(frozen=True)
class RefreshReply:
    """Reply to a refresh. refreshed: (X, C); short: devices whose list ended before their budget did."""

    refreshed: Annotated[
        RefreshCounts,
        ArraySpec(
            ("X", "C"), least=0, most=TOTAL, columns=dict.fromkeys(("devices", "violations", "moved"), _IN_CELLS)
        ),
    ]
    short: Annotated[int, _COUNT]

    def __add__(self, other: RefreshReply) -> RefreshReply:
        return RefreshReply(self.refreshed + other.refreshed, self.short + other.short)


@dataclass(frozen=True)
class DeviceFigures:
    """Figures of single devices: their numbers, classes, user groups and how many items they have to find, (N,); recall
    and ndcg under each budget, (N, X).
    """

    devices: Annotated[NDArray[np.int64], ArraySpec(("M",), among="devices")]
    classes: Annotated[NDArray[np.int64], ArraySpec(("M",), within="C")]
    groups: Annotated[NDArray[np.int64], ArraySpec(("M",), within="G")]
    items: Annotated[NDArray[np.int64], ArraySpec(("M",), least=0)]
    recall: Annotated[NDArray[np.float64], ArraySpec(("M", "X"), least=0, most=1)]
    ndcg: Annotated[NDArray[np.float64], ArraySpec(("M", "X"), least=0, most=1)]

    def only(self, places: slice) -> DeviceFigures:
        return dataclasses.replace(self, recall=self.recall[:, places], ndcg=self.ndcg[:, places])

    def __add__(self, other: DeviceFigures) -> DeviceFigures:
        names = [field.name for field in dataclasses.fields(self)]
        return DeviceFigures(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class EvaluateReply:
    """Reply to an evaluation. sums: metrics per budget, device class and user group, (X, C, G); stored_max: (X,) bytes
    of the largest artefact; owned: memory of the tables that devices would serve from; spread: of recall over devices,
    (X, C, NUM_BINS); replicates: (X, B), of all devices that have items to find; single: figures of single devices
    where they were requested, else of nobody; short: devices, under any of the budgets, whose list of ranked blocks
    ended before the budget did; lists: metrics of lists of other lengths, and other metrics.
    """

    sums: Annotated[MetricSums, ArraySpec(("X", "C", "groups"), columns=_METRICS)]
    stored_max: Annotated[NDArray[np.int64], ArraySpec(("X",), least=0)]
    owned: Annotated[
        OwnCounts,
        ArraySpec(
            ("X", "C"),
            least="-hosted",  # UNLIMITED is the budget -1
            most=TOTAL,
            columns={"devices": _IN_CELLS, "stored_bytes": _COUNT, "violations": _IN_CELLS},
        ),
    ]
    spread: Annotated[
        Histogram,
        ArraySpec(
            ("X", "C", NUM_BINS), least=0, most="metrics", columns={"counts": _IN_CELLS, "sums": metric_of("counts")}
        ),
    ]
    replicates: Replicates
    single: DeviceFigures
    short: Annotated[int, _COUNT]
    lists: ListSums

    def by_budget(self) -> MetricSums:
        """Return the metrics of all devices under each budget, (X,)."""
        return self.sums.total(axis=(1, 2))

    def by_class(self, place: int = 0) -> MetricSums:
        """Return the metrics per device class, (C,), under one of the requested budgets."""
        return self.sums[place].total(axis=1)

    def by_group(self, place: int = 0) -> MetricSums:
        """Return the metrics per user group, (G,), under one of the requested budgets."""
        return self.sums[place].total(axis=0)

    def only(self, places: slice) -> EvaluateReply:
        return EvaluateReply(
            self.sums[places],
            self.stored_max[places],
            self.owned[places],
            self.spread[places],
            self.replicates.only(places),
            self.single.only(places),
            self.short,
            self.lists.only(places),
        )

    def __add__(self, other: EvaluateReply) -> EvaluateReply:
        """Return the reply for both sets of devices; one may know more user groups than the other."""
        groups = max(self.sums.recall.shape[2], other.sums.recall.shape[2])
        return EvaluateReply(
            self.sums.with_groups(groups) + other.sums.with_groups(groups),
            np.maximum(self.stored_max, other.stored_max),
            self.owned + other.owned,
            self.spread + other.spread,
            self.replicates + other.replicates,
            self.single + other.single,
            self.short + other.short,
            self.lists + other.lists,
        )


@dataclass(frozen=True)
class MovingRequest:
    """Follow devices (M,) for ``rounds`` rounds from ``server_round`` on; groups as in a round, traced likewise.
    keeps: whether devices remember what they hold in the end, for the next :class:`RefreshRequest`; replicates: of the
    bootstrap.
    """

    setting: RunSetting
    server_round: Annotated[int, _ROUND]
    rounds: Annotated[int, ArraySpec(least=1, most=MOST_ROUNDS)]
    precision: Annotated[str, ArraySpec(choices=PRECISIONS)]
    devices: Annotated[NDArray[np.int64], _DEVICES]
    traced: Annotated[NDArray[np.int64], ArraySpec(("traced",))]
    groups: dict[int, Arrays]
    keeps: bool = False
    replicates: Annotated[int, ArraySpec(least=0, most=MOST_REPLICATES)] = 0


@dataclass(frozen=True)
class MovingReply:
    """Reply with figures of devices whose budgets move. steps: (T, C) sums over devices; traced, trace_steps: (X,)
    single devices at single steps; replicates: (2, B) of the mean recall over time of devices with test items, as they
    follow their budgets, and at their floor; step_s: seconds of a step of the fleet's clock.
    """

    steps: Annotated[StepCounts, ArraySpec(("T", "C"), least=0, most=TOTAL, columns=_STEPS)]
    traced: Annotated[StepTraces, ArraySpec(("traces",), columns=_TRACED)]
    trace_steps: Annotated[StepCounts, ArraySpec(("traces",), least=0, most=TOTAL, columns=_STEPS_OF_ONE)]
    replicates: Replicates
    step_s: Annotated[float, _SECONDS]

    def __add__(self, other: MovingReply) -> MovingReply:
        return MovingReply(
            self.steps + other.steps,
            StepTraces.joined([self.traced, other.traced]),
            StepCounts.joined([self.trace_steps, other.trace_steps]),
            self.replicates + other.replicates,
            self.step_s,
        )


@dataclass(frozen=True)
class CompareRequest:
    """Request to compare two tables per user group. kept, current: ranked blocks as last kept and as they are now."""

    setting: RunSetting
    server_round: Annotated[int, _ROUND]
    precision: Annotated[str, ArraySpec(choices=PRECISIONS)]
    num_groups: Annotated[int, ArraySpec(least=0, most="most groups")]
    kept: dict[int, Arrays]
    current: dict[int, Arrays]


@dataclass(frozen=True)
class CompareReply:
    """Reply to a comparison. sums: (G,) :class:`fl_peel.ranking.bootstrap.PairedSums`; download_bytes: for it."""

    sums: Annotated[PairedSums, ArraySpec(("G",), columns=_PAIRED)]
    download_bytes: Annotated[int, _COUNT]


@dataclass(frozen=True)
class KeepRequest:
    """Request to keep or restore tables. accepted (A,), restored (R,): user groups that do the one or the other."""

    setting: RunSetting
    accepted: Annotated[NDArray[np.int64], ArraySpec(("accepted",))]
    restored: Annotated[NDArray[np.int64], ArraySpec(("restored",))]


@dataclass(frozen=True)
class KeepReply:
    """Reply with the numbers of devices that kept their state, and that restored it."""

    accepted: Annotated[int, _HOSTED]
    restored: Annotated[int, _HOSTED]


@dataclass(frozen=True)
class SecureKeysRequest:
    """Request for the keys of devices (N,) of this node, with which a round of secure aggregation begins. counts:
    whether the keys are for the count of owners before it (:mod:`fl_peel.exchange.release`).
    """

    setting: RunSetting
    server_round: Annotated[int, _ROUND]
    devices: Annotated[NDArray[np.int64], _DEVICES]
    counts: bool = False


@dataclass(frozen=True)
class SecureKeysReply:
    """Keys of the devices (N,) that were reached: their user groups (N,), public keys (N, 32) of channels and of masks.

    clock: (C,), devices sampled, not available, not let in; protocol_s: seconds spent on keys.
    """

    devices: Annotated[NDArray[np.int64], _DEVICES]
    groups: Annotated[NDArray[np.int32], ArraySpec(("N",), least="first group", most="last group")]
    channel_keys: Annotated[NDArray[np.uint8], _KEYS]
    mask_keys: Annotated[NDArray[np.uint8], _KEYS]
    clock: Annotated[ClockCounts, _BY_CLASS]
    protocol_s: Annotated[float, _SECONDS]


@dataclass(frozen=True)
class Directory:
    """Directory of a user group: the devices (N,) hosted here, their neighbours (N, k) as places in the directory (M,)
    of all its devices, and channel_keys and mask_keys (M, 32) of those.
    """

    devices: Annotated[NDArray[np.int64], _DEVICES]
    neighbours: Annotated[NDArray[np.int64], ArraySpec(("N", "k"), within="M")]
    directory: Annotated[NDArray[np.int64], ArraySpec(("M",), least=0, ascending=True)]
    channel_keys: Annotated[NDArray[np.uint8], ArraySpec(("M", 32))]
    mask_keys: Annotated[NDArray[np.uint8], ArraySpec(("M", 32))]


@dataclass(frozen=True)
class SecureSharesRequest:
    """Request for shares of secrets. groups: directory of each user group. A user group that is not named sits out."""

    setting: RunSetting
    server_round: int
    groups: dict[int, Directory]


@dataclass(frozen=True)
class SealedShares:
    """Sealed shares of devices (N,) that shared their secrets; sealed (N, k, SEALED_BYTES) for each neighbour."""

    devices: Annotated[NDArray[np.int64], _DEVICES]
    sealed: Annotated[NDArray[np.uint8], ArraySpec(("N", "k", "sealed"))]


@dataclass(frozen=True)
class SecureSharesReply:
    """Reply with sealed shares. groups: shares of the devices of each user group."""

    groups: dict[int, SealedShares]
    protocol_s: Annotated[float, _SECONDS]


@dataclass(frozen=True)
class Inbox:
    """Messages for devices (N,) here: present (N, k), which neighbours shared their secrets; sealed (N, k,
    SEALED_BYTES), what these sealed for the device; opened: of a round whose owners were counted
    (:mod:`fl_peel.exchange.release`), a bit for each slice of each row, as of a step: where none are sent none is.
    """

    devices: Annotated[NDArray[np.int64], _DEVICES]
    present: Annotated[NDArray[np.bool_], ArraySpec(("N", "k"))]
    sealed: Annotated[NDArray[np.uint8], ArraySpec(("N", "k", "sealed"))]
    opened: Annotated[NDArray[np.uint8], ArraySpec(("opened",))] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.uint8)
    )


@dataclass(frozen=True)
class SecureRoundRequest(RoundRequest):
    """Request for a round under secure aggregation, or for the count of owners before it. secure: what neighbours
    sealed for devices, by user group.
    """

    secure: dict[int, Inbox] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class MaskedSum:
    """Sum of the masked vectors of devices (N,): narrow (V,) and wide (W,)."""

    devices: Annotated[NDArray[np.int64], _DEVICES]
    narrow: Annotated[NDArray[np.uint32], ArraySpec(("narrow",))]
    wide: Annotated[NDArray[np.uint64], ArraySpec(("wide",))]


@dataclass(frozen=True)
class SecureRoundReply:
    """groups: masked sum of each user group. What a masked vector holds: :func:`fl_peel.exchange.release.layout_of`,
    and of the count of owners :func:`fl_peel.exchange.release.owners_layout`.

    classes, clock: of devices that are not in a sum, which the simulation knows of and a server would not; slowest_us:
    when the server would have had the last vector.
    """

    groups: dict[int, MaskedSum]
    classes: Annotated[ClassCounts, _BY_CLASS]
    clock: Annotated[ClockCounts, _BY_CLASS]
    slowest_us: Annotated[int, _COUNT]
    protocol_s: Annotated[float, _SECONDS]


@dataclass(frozen=True)
class ShareRequests:
    """Requests to devices (N,) here: which of their neighbours (N, k) survived, and which dropped out."""

    devices: Annotated[NDArray[np.int64], _DEVICES]
    survived: Annotated[NDArray[np.bool_], ArraySpec(("N", "k"))]
    dropped: Annotated[NDArray[np.bool_], ArraySpec(("N", "k"))]


@dataclass(frozen=True)
class SecureUnmaskRequest:
    """groups: what each user group's devices are asked. The round is over for every user group, named or not."""

    setting: RunSetting
    server_round: int
    groups: dict[int, ShareRequests]


@dataclass(frozen=True)
class OpenedShares:
    """Shares that devices (N,) opened: of each neighbour index (N, k), 0: none, and share (N, k, SHARE_BYTES)."""

    devices: Annotated[NDArray[np.int64], _DEVICES]
    index: Annotated[NDArray[np.int64], ArraySpec(("N", "k"), least=0, most="k")]
    shares: Annotated[NDArray[np.uint8], ArraySpec(("N", "k", 16))]


@dataclass(frozen=True)
class SecureUnmaskReply:
    """groups: what each user group's devices opened."""

    groups: dict[int, OpenedShares]
    protocol_s: Annotated[float, _SECONDS]


@dataclass(frozen=True)
class SecureStepRequest:
    """A step of stage 1 under secure aggregation begins, for devices to know whether they have the memory.
    server_round: its number, -1 for the first, -2, ...; time: in rounds, when the first of its windows opens.
    """

    setting: RunSetting
    server_round: int
    time: Annotated[int, _ROUND]
    step: Step


@dataclass(frozen=True)
class SecureSumsRequest(StepRequest):
    """A part of a step under secure aggregation. The first one has what the devices' neighbours sealed for them."""

    server_round: int = dataclasses.field(kw_only=True)
    secure: dict[int, Inbox] = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class SecureSumsReply:
    """sum: a part of the masked vector, see :class:`fl_peel.steps.base.StepVector`; classes, clock: of devices
    that are not in the sum, which the simulation knows of and a server would not; waits_us: (W,) of the slowest device
    that the step had, by the window in which it came.
    """

    sum: MaskedSum
    classes: Annotated[ClassCounts, _BY_CLASS]
    clock: Annotated[ClockCounts, _BY_CLASS]
    waits_us: Annotated[NDArray[np.int64], _WAITS]
    protocol_s: Annotated[float, _SECONDS]


class MessageKind(str, Generic[Reply]):
    """A kind of message, named as Flower names it. request, reply: what a node is asked, and what it answers.

    remembered: devices remember that they have answered, so that they are not asked again; noised: an answer may have
    noise, of which a second answer would have another.
    """

    request: type[Any]
    reply: type[Reply]
    remembered: bool
    noised: bool

    def __new__(
        cls, name: str, request: type[Any], reply: type[Reply], *, remembered: bool = False, noised: bool = False
    ) -> MessageKind[Reply]:
        kind = super().__new__(cls, name)
        kind.request, kind.reply, kind.remembered, kind.noised = request, reply, remembered, noised
        return kind

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process makes the same kind of: Ray carries the nodes' app, with its kinds."""
        make = partial(MessageKind, remembered=self.remembered, noised=self.noised)
        return make, (str(self), self.request, self.reply)


HELLO = MessageKind("query.hello", HelloRequest, HelloReply)
STEP = MessageKind("train.step", StepRequest, StepReply, noised=True)
JOIN = MessageKind("query.join", JoinRequest, JoinReply, noised=True)
ROUND = MessageKind("train.round", RoundRequest, RoundReply)
EVALUATE = MessageKind("evaluate.budgets", EvaluateRequest, EvaluateReply)
REFRESH = MessageKind("query.refresh", RefreshRequest, RefreshReply, remembered=True)
COMPARE = MessageKind("evaluate.compare", CompareRequest, CompareReply)
KEEP = MessageKind("query.keep", KeepRequest, KeepReply)
MOVING = MessageKind("evaluate.moving", MovingRequest, MovingReply)
# secure aggregation: of a round, and of a step of stage 1
SECURE_KEYS = MessageKind("query.secure_keys", SecureKeysRequest, SecureKeysReply)
SECURE_SHARES = MessageKind("query.secure_shares", SecureSharesRequest, SecureSharesReply)
SECURE_OWNERS = MessageKind("train.secure_owners", SecureRoundRequest, SecureRoundReply)
SECURE_ROUND = MessageKind("train.secure_round", SecureRoundRequest, SecureRoundReply)
SECURE_UNMASK = MessageKind("query.secure_unmask", SecureUnmaskRequest, SecureUnmaskReply)
SECURE_STEP = MessageKind("query.secure_step", SecureStepRequest, SecureKeysReply)
SECURE_SUMS = MessageKind("train.secure_sums", SecureSumsRequest, SecureSumsReply)


class _SharedArray(Array):
    """Flower's array, to whom it passes for one of its own. When Ray carries it from process to process, its bytes go
    as NumPy's do: side by side with the message in shared memory, instead of being copied into it and out again.
    """

    __module__, __qualname__ = Array.__module__, Array.__qualname__

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _array, (self.dtype, self.shape, self.stype, np.frombuffer(self.data, np.uint8))


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: NDArray[np.uint8]) -> Array:
    """An array that leaves its bytes where they are."""
    array = _SharedArray(dtype, shape, stype, b"")
    array.data = data.data if len(data) else b""  # type: ignore[assignment]
    return array


def _to_array(content: NDArray[Any]) -> Array:
    """As ``Array(content)``, with one copy of the content instead of three."""
    content = np.ascontiguousarray(content).reshape(content.shape)  # a number alone keeps its shape, ()
    data = b"".join([_header(content.dtype, content.shape), content.reshape(-1).view(np.uint8).data])
    return _SharedArray(name_of(content.dtype), content.shape, "numpy.ndarray", data)


@lru_cache(maxsize=4096)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What comes before the bytes of an array in rows: a round has thousands, of few shapes."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


_USUAL_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, "
    rb"'shape': \((\d{1,18},|(?:\d{1,18}(?:, \d{1,18})+)?)\), \} *\n",
    re.DOTALL,
)
"""As numpy writes the header of an array of rows of numbers."""


def _to_numpy(array: Array) -> NDArray[Any]:
    """As ``array.numpy()``, without a copy: the result is read-only."""
    start = bytes(array.data[:1024])
    usual = _USUAL_HEADER.match(start) if array.stype == "numpy.ndarray" else None
    if usual is not None and usual.end() == 10 + int.from_bytes(usual[1], "little"):
        # numpy's reader has Python parse a header as a program: a tenth of a message's time
        length = tuple(int(number) for number in usual[3].split(b",") if number)
        return np.frombuffer(array.data, usual[2].decode(), math.prod(length), usual.end()).reshape(length)
    header = io.BytesIO(start)
    if array.stype != "numpy.ndarray" or np.lib.format.read_magic(header) != (1, 0):
        return array.numpy()
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype.hasobject:
        return array.numpy()  # refuses it
    content = np.frombuffer(array.data, dtype, math.prod(shape), header.tell())
    return content.reshape(shape, order="F" if by_column else "C")


def packed_once(arrays: Arrays) -> Arrays:
    """Arrays in Flower's own form, so that one payload in many messages is serialized once."""
    return {name: _to_array(array) for name, array in arrays.items()}  # type: ignore[misc]


Payload = TypeVar("Payload")


def pack(value: object) -> RecordDict:
    """A message dataclass as Flower records: arrays in one, everything else in the other."""
    arrays: dict[str, Array] = {}
    config: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        _put(field.name, getattr(value, field.name), arrays, config)
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array  # of a whole dict Flower would make arrays of its own, whose bytes Ray copies
    return RecordDict({"arrays": record, "config": ConfigRecord(config)})


def _put(name: str, content: Any, arrays: dict[str, Array], config: dict[str, Any]) -> None:
    if isinstance(content, np.ndarray):
        arrays[name] = _to_array(content)
    elif isinstance(content, IntColumns):
        stacked = content.stacked()
        if stacked.ndim > 1:
            arrays[name] = _to_array(stacked)
        else:  # a handful of numbers needs no array
            config[name] = stacked.tolist()
    elif isinstance(content, dict) and any(isinstance(key, str) for key in content):
        arrays.update({f"{name}/{key}": _to_array(array) for key, array in content.items()})
    elif isinstance(content, dict):
        config[name] = [int(group) for group in content]
        for group, inner in content.items():
            for key, array in (inner if isinstance(inner, dict) else vars(inner)).items():
                arrays[f"{name}/{group}/{key}"] = array if isinstance(array, Array) else _to_array(array)
    elif dataclasses.is_dataclass(content):
        if isinstance(content, Step):
            config[name] = content.name
        for field in dataclasses.fields(content):
            _put(f"{name}.{field.name}", getattr(content, field.name), arrays, config)
    else:
        config[name] = content


def unpack(kind: type[Payload], content: RecordDict) -> Payload:
    """The message dataclass that :func:`pack` packed. Its arrays are read-only: they lie in the message.

    Raises:
        MessageError: it is no such message: a field is missing, is not known, or is of another type.
    """
    try:
        arrays, config = content.array_records["arrays"], content.config_records["config"]
    except KeyError as error:
        raise MessageError(f"{kind.__name__}: has no record {error}") from None
    reader = _MessageReader(kind.__name__, arrays, config)
    fields = {field: reader.read(of, field) for field, of in fields_of(kind).items()}
    reader.end()
    return kind(**fields)


@dataclass(frozen=True)
class _MessageReader:
    """Reader of one message. taken: names in its two records that were read."""

    what: str
    arrays: ArrayRecord
    config: ConfigRecord
    taken: set[str] = dataclasses.field(default_factory=set)

    def read(self, of: Any, name: str) -> Any:
        of = plain_of(of)
        if get_origin(of) is dict and get_args(of)[0] is str:
            prefix = f"{name}/"
            self.taken.add(name)  # which says that there are none
            return {key.removeprefix(prefix): self._array(key) for key in self.arrays if key.startswith(prefix)}
        if get_origin(of) is dict:
            return self._groups(get_args(of)[1], name)
        if get_origin(of) is None and issubclass(of, IntColumns):
            return self._columns(of, name)
        if dataclasses.is_dataclass(of):
            kind: Any = self._step(name) if of is Step else of
            return kind(**{field: self.read(its, f"{name}.{field}") for field, its in fields_of(kind).items()})
        return self._number(of, name) if get_origin(of) is None else self._array(name, np.dtype(_number_type(of)))

    def _step(self, name: str) -> type[Step]:
        step = self._number(str, name)
        try:
            if name.count(".") <= 1:
                return find_step(step)
        except FieldError:
            pass  # as one that is nowhere
        raise MessageError(f"{self.what}: {name} is {step[:40]!r}, which is no step")

    def end(self) -> None:
        """Nothing is left that no field has."""
        strange = sorted({*self.arrays, *self.config} - self.taken)
        if strange:
            raise MessageError(f"{self.what}: nothing is called {strange[0][:40]!r}")

    def _array(self, name: str, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        if name not in self.arrays:
            raise MessageError(f"{self.what}: {name} is missing")
        self.taken.add(name)
        try:
            array = _to_numpy(self.arrays[name])
        except Exception as error:  # whatever a stranger's bytes make of the reader
            why = " ".join(str(error).split())[:80]
            raise MessageError(f"{self.what}: {name} is no array: {why}") from None
        if dtype is not None and array.dtype != dtype:
            raise MessageError(f"{self.what}: {name} is of type {array.dtype}, not {dtype}")
        return array

    def _number(self, of: type[Any], name: str) -> Any:
        if name not in self.config:
            raise MessageError(f"{self.what}: {name} is missing")
        self.taken.add(name)
        value = self.config[name]
        kinds = (int, float) if of is float else (of,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and of is not bool):
            raise MessageError(f"{self.what}: {name} is of type {type(value).__name__}, not {of.__name__}")
        return value

    def _numbers(self, name: str) -> list[int]:
        value = self._number(list, name)
        if not all(type(number) is int and -(1 << 63) <= number < 1 << 63 for number in value):
            raise MessageError(f"{self.what}: {name} is no list of whole numbers")
        return list(value)

    def _columns(self, of: type[IntColumns], name: str) -> IntColumns:
        stacked = self._array(name, np.dtype(np.int64)) if name in self.arrays else np.array(self._numbers(name))
        if stacked.ndim < 1 or stacked.shape[-1] != len(of.names()):
            raise MessageError(f"{self.what}: {name} is of shape {stacked.shape}, of {len(of.names())} columns")
        return of.unstacked(stacked.astype(np.int64, copy=False))

    def _groups(self, inner: Any, name: str) -> dict[int, Any]:
        groups = self._numbers(name)
        by_group: dict[int, dict[str, NDArray[Any]]] = {group: {} for group in groups}
        if len(by_group) < len(groups):
            raise MessageError(f"{self.what}: {name} names a user group twice")
        for place in [place for place in self.arrays if place.startswith(f"{name}/")]:
            group, _, key = place.removeprefix(f"{name}/").partition("/")
            if not key or not group.removeprefix("-").isdecimal() or len(group) > 20 or int(group) not in by_group:
                raise MessageError(f"{self.what}: nothing is called {place[:40]!r}")
            by_group[int(group)][key] = self._array(place)
        if inner == Arrays:
            return by_group
        return {group: self._of_arrays(inner, arrays, f"{name}/{group}") for group, arrays in by_group.items()}

    def _of_arrays(self, kind: type[Any], arrays: Arrays, where: str) -> Any:
        wanted = fields_of(kind)
        if set(arrays) != set(wanted):
            raise MessageError(f"{self.what}: {where} has {sorted(arrays)}, not {sorted(wanted)}")
        for name, of in wanted.items():
            dtype = np.dtype(_number_type(plain_of(of)))
            if arrays[name].dtype != dtype:
                raise MessageError(f"{self.what}: {where}/{name} is of type {arrays[name].dtype}, not {dtype}")
        return kind(**arrays)


def _number_type(array: Any) -> Any:
    """NDArray[number] -> number. Before NumPy 2.5 it was short for ndarray[shape, dtype[number]]."""
    last = get_args(array)[-1]
    return (get_args(last) or (last,))[0]
