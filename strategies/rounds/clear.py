"""The clear channel: nodes add up what their devices say, and the server reads it."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import RecordDict

from fl_peel import wire
from strategies.rounds.channel import Begun, Channel, IntArray
from strategies.rounds.record import SentRound


class ClearChannel(Channel):
    """Messages as they are."""

    kind = wire.ROUND

    def begin(self, server_round: int, cohort: IntArray) -> Begun:
        """Everybody may be asked."""
        return Begun(cohort, cohort)

    def message(self, request: wire.RoundRequest) -> wire.RoundRequest:
        """The request itself."""
        return request

    def collect(self, sent: SentRound, replies: Iterable[RecordDict]) -> Iterable[wire.RoundReply]:
        """One part a node and message, as they come."""
        return (wire.unpack(wire.RoundReply, reply) for reply in replies)


__all__ = ["ClearChannel"]
