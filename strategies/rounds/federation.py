"""Whom a strategy works with, what it starts from, and the records of its rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.blocks.layout import BlockLayout
from fl_peel.events import known
from fl_peel.exchange.counters import ClassCounts, ClockCounts, DeviceTraces
from fl_peel.scenario.scenario import Scenario
from fl_peel.weighting.block_statistics import BlockStatistics
from strategies.groups.state import UserGroupState
from strategies.nodes import Content, Members, NodeRequest, Nodes, bounds_of

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
