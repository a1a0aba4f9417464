"""Contribution of a single device in a round, as if its node hosted it alone: the view of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.round.channel import clear_round
from clients.round.masked import announce_keys
from clients.round.members import train_members
from clients.round.round_context import RoundContext, extra_bytes
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.exchange.counters import ClockCounts
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.secure.protocol_plan import DropoutStage, vanishing
from fl_peel.wire import RoundReply, RoundRequest, SecureKeysRequest


@dataclass(frozen=True)
class UnmaskedFigures:
    """The part of the messages of secure aggregation about one device that is outside its masked vector: the keys
    reply, but for keys, which are random numbers; whether it sends a vector, whether it opens shares.
    """

    clock: ClockCounts
    announced: int
    sends: bool
    opens: bool


def answer_alone(cohort: Cohort, request: RoundRequest, announced: Mapping[int, int] | None = None) -> RoundReply:
    """The reply for the request's devices. announced: where sums are masked, how many devices of each user group
    announced keys, which their shares of noise are of.
    """
    shared = in_masked_sums(cohort.scenario, find_mechanism(cohort.scenario.privacy.mechanism))
    numbers = (announced or {}).items() if shared else ()
    return clear_round(cohort, request, {group: noise_devices_of(cohort.scenario, number) for group, number in numbers})


def stages_alone(cohort: Cohort, request: RoundRequest, ranked: RankedBlocks) -> UnmaskedFigures:
    """The stages of secure aggregation of the request's one device."""
    keys = announce_keys(cohort, SecureKeysRequest(request.setting, request.server_round, request.devices))
    when = int(vanishing(cohort.scenario, request.server_round, request.devices)[0])
    if when == DropoutStage.NEVER and not _sends(cohort, request, ranked):
        when = int(DropoutStage.VECTOR)
    sends = when != DropoutStage.VECTOR
    return UnmaskedFigures(keys.clock, len(keys.devices), sends, sends and when != DropoutStage.OPENING)


def _sends(cohort: Cohort, request: RoundRequest, ranked: RankedBlocks) -> bool:
    """Whether memory and time let the device end the round."""
    world, places = RoundContext.from_request(cohort, request), cohort.places(request.devices)
    if world.memory(ranked, places, world.working(places)).dropped_out.all():
        return False
    if cohort.scenario.refinement.deadline_s is None:
        return True
    return len(train_members(world, ranked, places).state_update.places) > 0


def present_rows(
    cohort: Cohort, server_round: int, ranked: RankedBlocks, places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows (N,) that devices at these places hold when the round ends: the first ones of the ranked blocks."""
    lowest = cohort.budgets.during(server_round)[:, places].min(axis=0)
    return ranked.num_present(ranked.cutoffs(lowest - extra_bytes(cohort.scenario)))
