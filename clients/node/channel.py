"""Device half of a channel: how contributions of a node's devices are combined on their way to the server; the clear
one adds them up for the server to read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from clients.node.cohort import Cohort
from clients.node.contents import MembersReply, StateUpdate
from clients.node.members import ChannelTerms, train_members
from clients.node.round_context import RoundContext
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.wire import (
    Arrays,
    RoundReply,
    RoundRequest,
)

Reply = TypeVar("Reply")


class DeviceChannel(ABC, Generic[Reply]):
    """The device half of a channel, on one node in one round: one user group after the other, then the reply."""

    def __init__(self, cohort: Cohort, request: RoundRequest) -> None:
        self.context = RoundContext.from_request(cohort, request)

    def begin(self) -> RoundCounts:
        """Start the round before the first user group; return what is counted already."""
        return RoundCounts.nothing(len(self.context.cohort.fleet.names))

    @abstractmethod
    def members(self, group: int) -> IntArray:
        """Return the places (N,) of a user group's devices that are reached."""

    @abstractmethod
    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """The round of devices (N,), one at least: what is counted in the open, and what they will keep."""

    @abstractmethod
    def reply(self, counts: RoundCounts) -> Reply:
        """Return the reply of the node. counts: counts of the round, as far as they are sent in the open."""


def run_round(kind: Callable[..., DeviceChannel[Reply]], cohort: Cohort, request: RoundRequest, *more: Any) -> Reply:
    """One round of a node's devices through a kind of channel. more: of what that kind takes besides."""
    channel = kind(cohort, request, *more)
    world = channel.context
    counts, keeps = channel.begin(), list[StateUpdate]()
    layout, precision = world.cohort.layout(), world.cohort.scenario.blocks.precision
    for group, payload in world.request.groups.items():
        members = channel.members(group)
        if not len(members):
            continue
        counted, kept = channel.take(RankedBlocks.unpack(layout, precision, payload), group, members)
        counts += counted
        keeps += kept
    state = world.cohort.state()
    for one in keeps:  # last, so that a round that fails half-way leaves devices as they were
        one.remember(state)
    return channel.reply(world.contents.counted(counts))


class ClearDeviceChannel(DeviceChannel[RoundReply]):
    """The clear channel of a node. noise_devices: of groups that add shares of central noise, how many they are."""

    def __init__(self, cohort: Cohort, request: RoundRequest, noise_devices: Mapping[int, int] | None = None) -> None:
        super().__init__(cohort, request)
        self._noise_devices = noise_devices or {}
        self._groups = np.asarray(self.context.state.groups)
        self._reached = np.zeros(0, np.int64)
        self._contributions: dict[int, Arrays] = {}

    def begin(self) -> RoundCounts:
        """Determine which of the sampled devices are reached."""
        self._reached, clock = self.context.reached(self.context.cohort.places(self.context.request.devices))
        return replace(super().begin(), clock=clock)

    def members(self, group: int) -> IntArray:
        """Return the reached devices of the user group."""
        return np.asarray(self._reached[self._groups[self._reached] == group])

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """Train all devices of the group together, as the contents have it."""
        terms = ChannelTerms(noise_devices=self._noise_devices.get(group))
        contents, replies = self.context.contents, dict[int, MembersReply]()
        for number, some in contents.parts(self.context.cohort.devices[members]).items():
            replies[number] = train_members(self.context, ranked, members[some], terms)
        done = contents.joined(replies)
        self._contributions[group] = done.arrays
        return done.counts, [done.state_update]

    def reply(self, counts: RoundCounts) -> RoundReply:
        """Sums and counters."""
        return RoundReply(self._contributions, counts)


clear_round = partial(run_round, ClearDeviceChannel)
"""One round for the sampled devices of this node, in the clear."""
