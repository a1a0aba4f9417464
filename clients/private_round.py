"""A round of one node's devices under privacy: what is bounded, noised and sent, and what is withheld."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clients.cohort import Cohort
from clients.group_round import GroupRound
from fl_peel.config import Scenario
from fl_peel.interactions import IntArray
from fl_peel.local_training import LocalTraining
from fl_peel.privacy.mechanisms import find_mechanism, randomized_groups
from fl_peel.privacy.plan import Part, bounds, in_masked_sums, released, shares_of
from fl_peel.privacy.releases import Sums, Trained, bounded_sums, with_device_noise, with_noise_shares
from fl_peel.privacy.traffic import Hiding
from fl_peel.secure.plan import withholds
from fl_peel.selection import RankedBlocks
from fl_peel.wire import Arrays, ClockColumn, RoundReply, RoundRequest


def answered_groups(
    cohort: Cohort, places: IntArray, groups: NDArray[np.int32], centroids: NDArray[np.float32]
) -> NDArray[np.int32]:
    """What devices at these places (N,) answer when asked for their user group (N,)."""
    epsilon = cohort.scenario.privacy.group_epsilon
    if epsilon is None:
        return groups
    return randomized_groups(groups, len(centroids), epsilon, cohort.scenario.seed, cohort.devices[places])


def clipped(scenario: Scenario, how: LocalTraining, request: RoundRequest) -> LocalTraining:
    """Local training that bounds each device's update as the scenario asks; unchanged where it asks for nothing."""
    clipping = scenario.privacy.clipping
    if clipping.kind == "none":
        return how
    mechanism = find_mechanism(scenario.privacy.mechanism)
    return replace(
        how,
        max_norm=request.clip_norm,
        clip_blocks=clipping.kind == "per-block",
        clip_l1=mechanism is not None and mechanism.norm == "l1",
    )


def round_parts(scenario: Scenario, *, signals: bool) -> tuple[Part, ...]:
    """What devices send in this round; without a mechanism no counts, which would tell a lone device's items."""
    if scenario.privacy.noised:
        return released(shares_of(scenario), signals=signals)
    return ("updates", "signals") if signals else ("updates",)


def hiding(scenario: Scenario, request: RoundRequest) -> Hiding | None:
    """How requests and updates hide their size; None where nothing is hidden."""
    privacy = scenario.privacy
    if not privacy.sums_only and privacy.requests == "own-budget":
        return None
    return Hiding.of(scenario, round_parts(scenario, signals=request.signals) if privacy.sums_only else ())


def private_sums(
    cohort: Cohort,
    request: RoundRequest,
    ranked: RankedBlocks,
    kept: IntArray,
    done: GroupRound,
    noise_devices: int | None = None,
) -> Arrays:
    """The sums over the devices that count, at these places (M,), each device's contribution bounded and noised.

    noise_devices: whose shares of central noise reach its full strength, where devices are to add it to sums that
    the server does not see before; None where it is the server's to add.
    """
    scenario = cohort.scenario
    mechanism = find_mechanism(scenario.privacy.mechanism)
    parts = round_parts(scenario, signals=request.signals)
    trained = Trained(
        cohort.devices[kept],
        done.cutoffs,
        done.users,
        done.update,
        done.best,
        cohort.splits.train.select(kept),
        cohort.splits.validation.select(kept),
    )
    if mechanism is None:
        limits: dict[Part, float] = {"signals": np.inf}
        return _arrays(bounded_sums(ranked, trained, parts, limits, l1=False))
    limits = bounds(scenario, request.clip_norm)
    sums = bounded_sums(ranked, trained, parts, limits, l1=mechanism.norm == "l1")
    shares = shares_of(scenario)
    if in_masked_sums(scenario, mechanism) and noise_devices is not None:
        stds = {
            part: mechanism.std(mechanism.scale(request.noise_multiplier, shares[part], limits[part])) for part in parts
        }
        sums = with_noise_shares(sums, stds, noise_devices, scenario.seed, request.server_round, trained.devices)
    elif mechanism.where == "device":
        scales = {part: mechanism.scale(request.noise_multiplier, shares[part], limits[part]) for part in parts}
        sums = with_device_noise(sums, scales, mechanism, scenario.seed, request.server_round, trained.devices)
    return _arrays(sums)


def _arrays(sums: Sums) -> Arrays:
    return {str(part): values for part, values in sums.items()}


def withheld_clock(clock: IntArray) -> IntArray:
    """Of the counters (C, len(ClockColumn)) only how many devices were asked, which the server knows; not of which
    class they are, which a node of one device would tell: all in the first row.
    """
    lumped = np.zeros_like(clock)
    lumped[0, ClockColumn.SAMPLED] = clock[:, ClockColumn.SAMPLED].sum()
    return lumped


def as_sent(scenario: Scenario, reply: RoundReply) -> RoundReply:
    """The reply without what no mechanism noises, where such counters are withheld."""
    if not withholds(scenario):
        return reply
    return replace(
        reply,
        classes=np.zeros_like(reply.classes),
        clock=withheld_clock(reply.clock),
        slowest_us=0,
        trained=0,
        loss=0,
        recall=0,
        ndcg=0,
        evaluated=0,
        traces=reply.traces[:0],
    )


__all__ = ["answered_groups", "as_sent", "clipped", "hiding", "private_sums", "round_parts", "withheld_clock"]
