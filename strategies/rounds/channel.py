"""The server's half of a channel: how sums are transported; and the clear one, whose sums the server reads.

A channel brings the contributions of devices to the server as one round's sums, whatever they are. ``clear``: nodes add
up, the server reads; ``masked``: secure aggregation, the server reads sums alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.wire import RoundReply, RoundRequest
from strategies.nodes import bounds_of
from strategies.rounds.federation import Federation, SecureRecord, SentRound
from strategies.rounds.masked_exchange import IntArray

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
