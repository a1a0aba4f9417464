"""What crosses the network: the named payload of every message, and how it is packed. Used by both sides.

The one module of ``fl_peel`` that knows Flower, and only its record types. Each message is a frozen dataclass whose
fields are all that is sent:

=================== ==============================================================================================
``hello``           server asks a node which partition it hosts
``join``            server -> devices: layout, centroids, and to devices whose data was collected the user embedding
                    the server learned for them; devices -> server: the number of their user group, their largest
                    possible budget
``round``           server -> devices: ranked blocks of their user group; devices -> server: sums of block updates,
                    of validation signals and of metrics over the devices of a node
``evaluate``        server -> devices: ranked blocks; devices -> server: sums and histograms of metrics
``moving``          server -> devices: ranked blocks; devices -> server: sums over devices whose budgets move
``secure_keys``     server -> devices: a round begins; devices -> server: two public keys each
``secure_shares``   server -> devices: neighbours' public keys; devices -> server: shares, sealed for the neighbours
``secure_round``    server -> devices: ranked blocks, sealed shares; devices -> server: masked sums, for ``round``
``secure_unmask``   server -> devices: which neighbours are left; devices -> server: one share of each neighbour
=================== ==============================================================================================

Locally trained user embeddings and single devices' interactions are fields of none of them. But sums say something
about those who are in them: a node that hosts one device answers with that device's own row counts and signals, from
which its items can be read. What a node may answer about too few devices is a matter of the privacy mechanisms.
"""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

HELLO = "query.hello"
JOIN = "query.join"
ROUND = "train.round"
EVALUATE = "evaluate.budgets"
MOVING = "evaluate.moving"
SECURE_KEYS = "query.secure_keys"
SECURE_SHARES = "query.secure_shares"
SECURE_ROUND = "train.secure_round"
SECURE_UNMASK = "query.secure_unmask"

USER_MISTAKE = 1001
"""Code of an error reply whose reason is the one line of a :class:`fl_peel.errors.FlPeelError`."""

UNLIMITED = -1
"""A budget that holds everything that was sent."""
OWN_BUDGET = -2
"""The budget a device has at that moment."""
EVERYBODY = -1
"""User group number of a payload that is for the devices of all groups."""

Arrays = dict[str, NDArray[Any]]


class ClassColumn(IntEnum):
    """Columns of ``RoundReply.classes``. DEVICES, BUDGET and STORED are of the devices whose update counts."""

    DEVICES = 0
    BUDGET = 1
    DOWNLOAD = 2
    UPLOAD = 3
    RESELECTIONS = 4
    VIOLATIONS = 5
    STORED = 6


class ClockColumn(IntEnum):
    """Columns of ``RoundReply.clock``: devices that were sampled, that were not available, whose budget was too small
    to be let in, that missed the deadline, that ended without a block, that lost blocks while they trained;
    microseconds and millijoules spent; fixed-point recall, and devices it is of.
    """

    SAMPLED = 0
    UNAVAILABLE = 1
    EXCLUDED = 2
    STRAGGLERS = 3
    MEMORY_DROPOUTS = 4
    MEMORY_DROPS = 5
    TIME_US = 6
    ENERGY_MJ = 7
    RECALL = 8
    EVALUATED = 9


class StepColumn(IntEnum):
    """Columns of ``MovingReply.steps``: devices, those with test items, bytes of their budgets and of what they store,
    blocks kept, devices over budget; devices that grew, that shrank, stored bytes of the blocks the former lacked and
    bytes sent for them; devices with test items that re-selected, their fixed-point recall before and after; recall of
    all; and for rigid devices: recall, how many serve nothing, bytes sent.
    """

    DEVICES = 0
    COUNTED = 1
    BUDGET = 2
    STORED = 3
    KEPT = 4
    VIOLATIONS = 5
    GREW = 6
    SHRANK = 7
    MISSING = 8
    MOVED = 9
    RESELECTED = 10
    RECALL_BEFORE = 11
    RECALL_AFTER = 12
    RECALL = 13
    RIGID_RECALL = 14
    RIGID_EMPTY = 15
    RIGID_MOVED = 16


@dataclass(frozen=True)
class Setting:
    """Where a simulated node finds its devices' data and keeps their state. A real device has its own."""

    scenario: str
    data_dir: str
    run_dir: str


@dataclass(frozen=True)
class HelloRequest:
    """Which partition do you host?"""

    scenario: str


@dataclass(frozen=True)
class HelloReply:
    """The node's place among the nodes. root: folder that its copy of the packages lies in; code: which code it is."""

    partition: int
    num_partitions: int
    root: str
    code: str


@dataclass(frozen=True)
class JoinRequest:
    """Start of a run. devices (M,): those whose data was collected, with users (M, d) and groups (M,).

    item_table: (I, d) if some device must find its embedding and group by itself, else (0, d);
    item_group: (I,); centroids: (G, d).
    """

    scenario: str
    data_dir: str
    run_dir: str
    item_group: NDArray[np.int32]
    centroids: NDArray[np.float32]
    item_table: NDArray[np.float32]
    devices: NDArray[np.int64]
    users: NDArray[np.float32]
    groups: NDArray[np.int32]


@dataclass(frozen=True)
class JoinReply:
    """devices (N,), their user groups (N,) and the largest budget each group's devices here can ever have (G,);
    where requests are hidden, that any device of the fleet can have.

    class_names: the fleet's device classes, one a line.
    """

    class_names: str
    devices: NDArray[np.int64]
    groups: NDArray[np.int32]
    ceilings: NDArray[np.int64]


@dataclass(frozen=True)
class RoundRequest:
    """One round. devices: (N,) sampled here; groups: user group -> its ranked blocks (``pack_ranking``).

    signals: whether validation signals are wanted; temperature: of the local loss; traced: devices whose budgets
    and kept blocks the report shows (simulation only). clip_norm: bound of a device's update, where the scenario clips;
    noise_multiplier: of devices that add noise to what they send.
    """

    scenario: str
    data_dir: str
    run_dir: str
    server_round: int
    signals: bool
    temperature: float
    devices: NDArray[np.int64]
    traced: NDArray[np.int64]
    groups: dict[int, Arrays]
    clip_norm: float = dataclasses.field(default=math.inf, kw_only=True)
    noise_multiplier: float = dataclasses.field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class RoundReply:
    """groups: user group -> rows (T,) touched, sums (T, d), wide_rows (W,), wide_sums (W, d) to be added to them,
    touched (T, S), row_loss (T,), row_examples (T,), holders (K,), and with signals hits, shown, exposed (K,).
    Under privacy instead the parts of :mod:`fl_peel.privacy.plan`: updates (R, d), signals (K,), counts (R,),
    quantile (1,), and where counters are withheld everything else is zero.

    classes: per device class, columns of :class:`ClassColumn`; clock: likewise of :class:`ClockColumn`;
    slowest_us: virtual microseconds of the slowest device whose update counts; loss, recall, ndcg: fixed-point sums
    over ``evaluated`` / ``trained`` devices; traces: (X, 5) device, its class, budget bytes, stored bytes, kept
    blocks.
    """

    groups: dict[int, Arrays]
    classes: NDArray[np.int64]
    clock: NDArray[np.int64]
    slowest_us: int
    trained: int
    loss: int
    recall: int
    ndcg: int
    evaluated: int
    traces: NDArray[np.int64]


@dataclass(frozen=True)
class EvaluateRequest:
    """Rank all items under each budget. budgets: (X,) bytes, UNLIMITED or OWN_BUDGET; groups as in a round.

    factors: (X,) what OWN_BUDGET is multiplied with; rooms: (X,) where >= 0, a device has these blocks only if they
    fit into that many times its own budget, and nothing else;
    artifacts: devices whose stored embeddings are written to the run folder (simulation only).
    """

    scenario: str
    data_dir: str
    run_dir: str
    server_round: int
    precision: str
    split: str
    label: str
    budgets: NDArray[np.int64]
    factors: NDArray[np.float64]
    rooms: NDArray[np.float64]
    artifacts: NDArray[np.int64]
    groups: dict[int, Arrays]


@dataclass(frozen=True)
class EvaluateReply:
    """Fixed-point sums recall, ndcg and counts devices, each (X, classes, user groups) int64.

    stored_max (X,); owned (X, classes, 4): devices, budget bytes, stored bytes, budget violations; histogram and
    histogram_sums (X, classes, NUM_BINS): see :class:`fl_peel.spread.Histogram`, of recall.
    """

    recall: NDArray[np.int64]
    ndcg: NDArray[np.int64]
    devices: NDArray[np.int64]
    stored_max: NDArray[np.int64]
    owned: NDArray[np.int64]
    histogram: NDArray[np.int64]
    histogram_sums: NDArray[np.int64]


@dataclass(frozen=True)
class MovingRequest:
    """Follow devices (M,) for ``rounds`` rounds from ``server_round`` on; groups as in a round, traced likewise."""

    scenario: str
    data_dir: str
    run_dir: str
    server_round: int
    rounds: int
    precision: str
    devices: NDArray[np.int64]
    traced: NDArray[np.int64]
    groups: dict[int, Arrays]


@dataclass(frozen=True)
class MovingReply:
    """steps: (T, classes, len(StepColumn)) int64 sums; traces: (X, 3 + len(StepColumn)) device, its class, the step,
    and the same columns of that device alone; step_s: seconds of a step of the fleet's clock.
    """

    steps: NDArray[np.int64]
    traces: NDArray[np.int64]
    step_s: float


@dataclass(frozen=True)
class SecureKeysRequest:
    """A round of secure aggregation begins for devices (N,) of this node."""

    scenario: str
    data_dir: str
    run_dir: str
    server_round: int
    devices: NDArray[np.int64]


@dataclass(frozen=True)
class SecureKeysReply:
    """Of the devices (N,) that were reached: their user groups (N,), public keys (N, 32) of channels and of masks.

    clock: (C, len(ClockColumn)), devices sampled, not available, not let in; protocol_s: seconds spent on keys.
    """

    devices: NDArray[np.int64]
    groups: NDArray[np.int32]
    channel_keys: NDArray[np.uint8]
    mask_keys: NDArray[np.uint8]
    clock: NDArray[np.int64]
    protocol_s: float


@dataclass(frozen=True)
class SecureSharesRequest:
    """groups: user group -> directory (M,) of its devices, their channel_keys and mask_keys (M, 32); of those hosted
    here devices (N,), and neighbours (N, k) as places in the directory. A user group that is not named sits out.
    """

    scenario: str
    data_dir: str
    run_dir: str
    server_round: int
    groups: dict[int, Arrays]


@dataclass(frozen=True)
class SecureSharesReply:
    """groups: user group -> devices (N,) that shared their secrets, sealed (N, k, SEALED_BYTES) for each neighbour."""

    groups: dict[int, Arrays]
    protocol_s: float


@dataclass(frozen=True)
class SecureRoundRequest(RoundRequest):
    """A round. secure: user group -> num_devices (1,) of the group all over; of devices (N,) here, present (N, k) which
    neighbours shared their secrets, and sealed (N, k, SEALED_BYTES) what these sealed for the device.
    """

    secure: dict[int, Arrays] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class SecureRoundReply:
    """groups: user group -> devices (N,) whose masked vectors add up to narrow (V,) uint32 and wide (W,) uint64.

    What a masked vector holds: :func:`fl_peel.secure.plan.layout_of`. classes, clock: as in a RoundReply, of
    devices that are not in a sum, which the simulation knows of and a server would not; slowest_us: when the server
    would have had the last vector.
    """

    groups: dict[int, Arrays]
    classes: NDArray[np.int64]
    clock: NDArray[np.int64]
    slowest_us: int
    protocol_s: float


@dataclass(frozen=True)
class SecureUnmaskRequest:
    """groups: user group -> devices (N,) here, and which neighbours survived (N, k) or dropped out (N, k). The round is
    over for every user group, named or not.
    """

    scenario: str
    data_dir: str
    run_dir: str
    server_round: int
    groups: dict[int, Arrays]


@dataclass(frozen=True)
class SecureUnmaskReply:
    """groups: user group -> devices (N,) that answered; of each neighbour the index (N, k) of the share, 0 for none,
    and the share (N, k, SHARE_BYTES).
    """

    groups: dict[int, Arrays]
    protocol_s: float


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
    header = io.BytesIO()
    content = np.ascontiguousarray(content).reshape(content.shape)  # a number alone keeps its shape, ()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(content))
    data = b"".join([header.getvalue(), content.reshape(-1).view(np.uint8).data])
    return _SharedArray(str(content.dtype), tuple(content.shape), "numpy.ndarray", data)


def _to_numpy(array: Array) -> NDArray[Any]:
    """As ``array.numpy()``, without a copy: the result is read-only."""
    header = io.BytesIO(bytes(array.data[:1024]))
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
        content = getattr(value, field.name)
        if isinstance(content, np.ndarray):
            arrays[field.name] = _to_array(content)
        elif isinstance(content, dict):
            config[field.name] = [int(group) for group in content]
            for group, inner in content.items():
                for name, array in inner.items():
                    arrays[f"{field.name}/{group}/{name}"] = array if isinstance(array, Array) else _to_array(array)
        else:
            config[field.name] = content
    return RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(config)})


def unpack(kind: type[Payload], content: RecordDict) -> Payload:
    """The message dataclass that :func:`pack` packed. Its arrays are read-only: they lie in the message."""
    arrays, config = content.array_records["arrays"], content.config_records["config"]
    fields: dict[str, Any] = {}
    by_group: dict[str, dict[int, Arrays]] = {}
    for name, array in arrays.items():
        if "/" in name:
            field, group, inner = name.split("/")
            by_group.setdefault(field, {}).setdefault(int(group), {})[inner] = _to_numpy(array)
        else:
            fields[name] = _to_numpy(array)
    for name, value in config.items():
        if isinstance(value, list):
            fields[name] = {int(group): by_group.get(name, {}).get(int(group), {}) for group in value}
        else:
            fields[name] = value
    return kind(**fields)
