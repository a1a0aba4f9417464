"""Device half of a channel: how contributions of a node's devices are combined on their way to the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from clients.round.outcome import StateUpdate
from clients.round.round_context import RoundContext
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts

Reply = TypeVar("Reply")


class DeviceChannel(ABC, Generic[Reply]):
    """The device half of a channel, on one node and in one round: it takes one user group after the other, then makes
    the reply.
    """

    def __init__(self, context: RoundContext) -> None:
        self.context = context

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


def run_round(channel: DeviceChannel[Reply]) -> Reply:
    """One round of a node's devices."""
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
