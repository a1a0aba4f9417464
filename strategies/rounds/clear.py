"""The clear channel: nodes add up the contributions of their devices, and the server reads the sum."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from strategies.nodes.members import bounds_of
from strategies.rounds.channel import Expects, IntArray, RoundDevices, ServerChannel
from strategies.rounds.record import SentRound


class ClearServerChannel(ServerChannel):
    """The clear channel of the server, whose messages are sent as they are."""

    kind = wire.ROUND
    answer = wire.RoundReply

    def begin(self, server_round: int, cohort: IntArray) -> RoundDevices:
        """Return the cohort: all of its devices may be asked."""
        return RoundDevices(cohort, cohort)

    def message(self, request: wire.RoundRequest) -> wire.RoundRequest:
        """Return the request itself."""
        return request

    def known(self, sent: SentRound, request: wire.RoundRequest, expects: Expects) -> MessageContext:
        """Return what right replies look like: what the contributions expect of every user group, and totals that
        differ when a device is counted twice or not at all.
        """
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
