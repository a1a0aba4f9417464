"""Whom a strategy works with, what it starts from, and the records of its rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.blocks.layout import BlockLayout
from fl_peel.events import known
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces
from fl_peel.scenario.scenario import Scenario
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.wire import RoundReply, RoundRequest
from strategies.groups.state import UserGroupState
from strategies.nodes import Content, Members, NodeRequest, Nodes, bounds_of
from strategies.rounds.masked_exchange import IntArray

Result = TypeVar("Result")


@dataclass(frozen=True)
class Federation:
    """One refinement's parties. states: (G) user groups, which rounds change; temperature: of the local loss, where the
    scenario gives none; begin: rounds of the fleet's clock that are over when the first one opens.
    """

    scenario: Scenario
    setting: wire.RunSetting
    layout: BlockLayout
    states: list[UserGroupState]
    members: Members
    nodes: Nodes
    temperature: float
    begin: int = 0

    @property
    def num_classes(self) -> int:
        """Device classes, C."""
        return len(self.members.class_names)

    def statistics(self, group: int) -> BlockStatistics:
        """Return what is known of the item groups in a user group, which selectors weigh."""
        return self.states[group].statistics.of_item_groups(self.layout.num_slices)

    def all_statistics(self) -> list[BlockStatistics]:
        """Return the same for every user group."""
        return [self.statistics(group) for group in range(len(self.states))]

    def to_all(self, request: object, **sizes: int) -> Content:
        """Return the content that is the same request to every node, whose devices reply with sums. sizes: of these, by
        the names that messages use, besides numbers of classes, of user groups and of devices.
        """
        hosts, known = self.nodes.partitions_of(self.members.devices), {"C": self.num_classes, "G": len(self.states)}

        def content(partition: int) -> NodeRequest:
            return NodeRequest(request, MessageContext(known | sizes | bounds_of(int((hosts == partition).sum()))))

        return content


def for_groups(work: Callable[[int], Result], groups: Iterable[int]) -> list[Result]:
    """Do work for each user group, two at a time: nodes wait meanwhile, and compiled loops run side by side."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(work, groups))


@dataclass
class SentRound:
    """The round as the server sent it. asked: devices; group_sizes: (G,) number of them in each user group; signals:
    whether validation signals are wanted; blocks: ranked blocks (K,) that each user group was sent.
    """

    server_round: int
    signals: bool
    asked: int
    group_sizes: NDArray[np.int64]
    blocks: dict[int, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """The record of one round; bytes are summed over its devices. loss, recall, ndcg: means, None where no device
    contributed any. classes, clock: (C,) per device class; virtual_seconds: time on the fleet's clock.
    """

    server_round: int
    devices: int
    failures: int
    seconds: float
    download_bytes: int
    upload_bytes: int
    message_bytes: int
    loss: float | None
    recall: float | None
    ndcg: float | None
    controller_loss: float | None
    classes: ClassCounts
    clock: ClockCounts
    virtual_seconds: float
    traces: DeviceTraces = field(repr=False)

    def figures(self, asked: int) -> dict[str, float]:
        """The measured ones, by their names in events. asked: devices, in place of those that count, if not told."""
        return known(
            {
                "refinement/loss": self.loss,
                "refinement/controller_loss": self.controller_loss,
                "refinement/devices": self.devices,
                "refinement/failures": self.failures,
                "refinement/devices_per_second": (self.devices or asked) / self.seconds,
                "refinement/seconds": self.seconds,
                "refinement/virtual_seconds": self.virtual_seconds,
                "refinement/download_bytes": self.download_bytes,
                "refinement/upload_bytes": self.upload_bytes,
                "validation/recall_at_20": self.recall,
                "validation/ndcg_at_20": self.ndcg,
            }
        )


@dataclass
class SecureRecord:
    """The record of the protocol in a round. Devices: that announced keys in groups that did not sit out; that are in a
    sum; that dropped out; that dropped out after they had shared their secrets, and whose masks were recovered; that
    sent their vector in vain, in a group that is void. owned_rows: rows, of each user group, that some device
    learns from; few_owner_rows: those that stay closed, as fewer than ``privacy.min_owners`` may do in the end. Bytes
    are sums over the devices that shared their secrets.
    """

    server_round: int
    groups: int = 0
    sat_out_groups: int = 0
    void_groups: int = 0
    announced: int = 0
    devices: int = 0
    dropped: int = 0
    recovered: int = 0
    void_devices: int = 0
    owned_rows: int = 0
    few_owner_rows: int = 0
    shared: int = 0
    vector_bytes: int = 0
    download_bytes: int = 0
    upload_bytes: int = 0
    device_s: float = 0.0
    server_s: float = 0.0
    why_void: dict[int, str] = field(default_factory=dict)


# ---- The server's half of a channel: how sums are transported; and the clear one, whose sums the server reads
# A channel brings the contributions of devices to the server as one round's sums, whatever they are. ``clear``: nodes
# add up, the server reads; ``masked``: secure aggregation, the server reads sums alone.


Expects = Callable[[SentRound, int, int], MessageContext | None]
"""Function that returns what a right contribution of a node to a user group looks like, for so many requested devices.
"""


Request = Callable[[int], RoundRequest | None]
"""Function from a partition to what its node is asked, None for nothing."""
Requests = Callable[[IntArray], Iterable[Request]]
"""Function from devices (N,) to the requests of a round for these, one for each batch of user groups."""


@dataclass(frozen=True)
class OpenedSum:
    """The size of an opened sum of a user group: devices that announced keys, and those that it is over."""

    announced: int
    survivors: int


@dataclass(frozen=True)
class RoundDevices:
    """The devices of a round, ascending: those asked, and of these the ones that may contribute."""

    asked: IntArray
    ready: IntArray


class ServerChannel(ABC):
    """The server half of a channel for one refinement. Each round calls begin, counted, then message for every node,
    then collect.

    kind: of its messages; records: one a round, where the channel keeps any; opened: the
    last round's sums by user group, where the channel opens them.
    """

    kind: ClassVar[wire.MessageKind[Any]]

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.records: list[SecureRecord] = []
        self.opened: Mapping[int, OpenedSum] = {}

    @abstractmethod
    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """A round begins for the devices of a cohort (N,), ascending."""

    def counted(self, sent: SentRound, ready: IntArray, requests: Requests) -> IntArray:
        """Return which of the ``ready`` devices (N,) may contribute: all of them, unless owners are counted first.
        requests: makes what nodes are asked of some devices.
        """
        return ready

    @abstractmethod
    def message(self, request: RoundRequest) -> RoundRequest:
        """Return what a node is sent for a request, as :attr:`kind`."""

    @abstractmethod
    def known(self, sent: SentRound, request: RoundRequest, expects: Expects) -> MessageContext:
        """Return what is known of the right answer to a message. expects: what the contents expect."""

    @abstractmethod
    def collect(self, sent: SentRound, replies: Iterable[Any]) -> Iterable[RoundReply]:
        """The round's sums, from nodes' replies in any order, in as many parts as the channel likes."""


class ClearServerChannel(ServerChannel):
    """The clear channel of the server, whose messages are sent as they are."""

    kind = wire.ROUND

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Return the cohort: all of its devices may be asked."""
        return RoundDevices(cohort, cohort)

    def message(self, request: wire.RoundRequest) -> wire.RoundRequest:
        return request

    def known(self, sent: SentRound, request: wire.RoundRequest, expects: Expects) -> MessageContext:
        """Return what right replies look like: expectations of each group, and totals without double counts."""
        members = self.federation.members.groups_of(request.devices)
        counts = {group: int((members == group).sum()) for group in request.groups}
        anything = MessageContext(arrays=None)
        return MessageContext(
            {"C": self.federation.num_classes, **bounds_of(len(request.devices))},
            {"traced": np.sort(request.traced)},
            groups={group: expects(sent, group, count) or anything for group, count in counts.items()},
            totals={"counts.clock.sampled": len(request.devices)},
        )

    def collect(self, sent: SentRound, replies: Iterable[wire.RoundReply]) -> Iterable[wire.RoundReply]:
        """One part a node and message, as they come."""
        return replies
