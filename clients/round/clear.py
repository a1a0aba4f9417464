"""The clear channel: a node adds up the contributions of its devices, and the server reads the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clients.node.cohort import Cohort
from clients.round.channel import DeviceChannel, run_round
from clients.round.members import ChannelTerms, train_members
from clients.round.outcome import MembersReply, StateUpdate
from clients.round.round_context import RoundContext
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.wire import Arrays, RoundReply, RoundRequest


class ClearDeviceChannel(DeviceChannel[RoundReply]):
    """The clear channel of a node. noise_devices: number of devices of user groups that add central noise in shares,
    which together make its full strength.
    """

    def __init__(self, context: RoundContext, noise_devices: Mapping[int, int] | None = None) -> None:
        super().__init__(context)
        self._noise_devices = noise_devices or {}
        self._groups = np.asarray(context.state.groups)
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


def clear_round(cohort: Cohort, request: RoundRequest, noise_devices: Mapping[int, int] | None = None) -> RoundReply:
    """One round for the sampled devices of this node, in the clear."""
    return run_round(ClearDeviceChannel(RoundContext.from_request(cohort, request), noise_devices))
