"""A run's plan: how much noise on what, from the scenario's keys, and what it costs.

One round's release is a vector of parts, each bounded by itself per device:

========== ==================================================== ===============================
part       what a device adds to its user group's sum           bound
========== ==================================================== ===============================
updates    change of every row that was sent                    ``privacy.clipping.norm``
signals    validation hits of every block                       ``privacy.signals_norm``
counts     whether it has train interactions with a row         ``privacy.counts_norm``
quantile   +1/2 or -1/2: its update was within the bound or not 1/2
========== ==================================================== ===============================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fl_peel.config import Scenario
from fl_peel.errors import ScenarioError
from fl_peel.privacy.accounting import Schedule, Spent, calibrated, event_of, spent
from fl_peel.privacy.mechanisms import Mechanism, find_mechanism
from fl_peel.secure.graph import answers_needed

Part = Literal["updates", "signals", "counts", "quantile"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Plan:
    """Which mechanism, how strong, divided how. shares: of a full round's release, they sum to 1.

    multiplier: noise of a full release relative to the distance of two contributions; schedule: rounds of one device.
    """

    mechanism: Mechanism
    multiplier: float
    shares: Mapping[Part, float]
    schedule: Schedule
    cost: Spent
    group_epsilon: float
    """Of the answer which user group a device is in, spent besides; 0 where no device is asked."""

    def scale(self, part: Part, bound: float) -> float:
        """Scale of the noise on a part."""
        return self.mechanism.scale(self.multiplier, self.shares[part], bound)

    def std(self, part: Part, bound: float) -> float:
        """Standard deviation of the noise on a part, of one draw."""
        return self.mechanism.std(self.scale(part, bound))

    @property
    def epsilon(self) -> float:
        """User level, of everything that is released after pretraining."""
        return self.cost.epsilon + self.group_epsilon


def bounds(scenario: Scenario, clip_norm: float) -> dict[Part, float]:
    """Bound of every part, in the mechanism's norm; ``clip_norm``: that of updates in this round."""
    privacy = scenario.privacy
    return {"updates": clip_norm, "signals": privacy.signals_norm, "counts": privacy.counts_norm, "quantile": 0.5}


def wants_signals(scenario: Scenario) -> bool:
    """Whether the controller learns at all."""
    return "controller" in (scenario.selector, *scenario.evaluation.selectors)


def shares_of(scenario: Scenario) -> dict[Part, float]:
    """Of a full round's release, normalized; parts that nobody asks for have none and are left out."""
    given = scenario.privacy.shares.model_dump()
    if not wants_signals(scenario):
        given["signals"] = 0.0
    if scenario.privacy.clipping.kind != "adaptive":
        given["quantile"] = 0.0
    total = sum(given.values())
    return {part: given[part] / total for part in PARTS if given[part] > 0}


def released(shares: Mapping[Part, float], *, signals: bool) -> tuple[Part, ...]:
    """Parts of one round; signals are not of every round."""
    return tuple(part for part in PARTS if part in shares and (signals or part != "signals"))


def in_masked_sums(scenario: Scenario, mechanism: Mechanism | None) -> bool:
    """Whether devices add the noise of a sum, each its share, before they mask it: the server sees no sum without it.

    Where secure aggregation is on, for mechanisms whose noise can be divided; the server then adds none.
    """
    secure = scenario.secure_aggregation.enabled
    return mechanism is not None and secure and mechanism.where == "server" and mechanism.divides


def noise_devices_of(scenario: Scenario, num_devices: int) -> int:
    """Of the ``num_devices`` of a user group that begin a round: how many, at least, are in a sum that is opened and
    keep their noise to themselves.

    Each device's share of the noise is one of so many: whatever sum is opened has all of the noise, or more.

    Raises:
        ScenarioError: none are left.
    """
    quorum = answers_needed(num_devices, scenario.secure_aggregation.threshold)
    colluding = scenario.privacy.colluding_devices
    if quorum <= colluding:
        raise ScenarioError(
            f"privacy.colluding_devices: of {num_devices} devices {quorum} must last, and {colluding} may tell their "
            "noise, which leaves none; lower it, or raise secure_aggregation.min_devices or threshold"
        )
    return quorum - colluding


def schedule_of(scenario: Scenario, mechanism: Mechanism, shares: Mapping[Part, float], rounds: int) -> Schedule:
    """Rounds that a device pays for: those with signals in full, the others without the signals' share.

    rounds: it can be in; under fixed sampling, those that the most sampled device is in, here counted as if all of
    them had signals as far as there are any.
    """
    refinement, every = scenario.refinement, scenario.controller.every
    with_signals = min(rounds, refinement.rounds // every)
    without = sum(share for part, share in shares.items() if part != "signals")
    # the server sees who takes part: where it is one of those whom the noise is against, nothing is amplified
    hidden = mechanism.where == "server" and not in_masked_sums(scenario, mechanism)
    poisson = refinement.sampling == "poisson" and hidden
    sampling = min(1.0, refinement.cohort_share * (1 + refinement.over_selection)) if poisson else 1.0
    return Schedule(((with_signals, 1.0), (rounds - with_signals, without)), sampling)


def make_plan(scenario: Scenario, *, most_rounds: int | None = None, asks_groups: bool = False) -> Plan | None:
    """The plan of a scenario; None where no mechanism adds noise.

    most_rounds: that any device is in (None: all of them); asks_groups: some devices answer which user group they are
    in, because their data was not collected.

    Raises:
        ScenarioError: a target that cannot be met, or keys that spend what is not accounted for.
    """
    privacy = scenario.privacy
    mechanism = find_mechanism(privacy.mechanism)
    if mechanism is None:
        return None
    check_keys(scenario, mechanism)
    if asks_groups and privacy.target_epsilon is not None and privacy.group_epsilon is None:
        raise ScenarioError(
            "privacy.group_epsilon: devices whose data is not collected answer which user group they are in; give the "
            "part of target_epsilon that this answer may cost, or pretraining.collected.share 100%"
        )
    group_epsilon = (privacy.group_epsilon or 0.0) if asks_groups else 0.0
    shares = shares_of(scenario)
    rounds = scenario.refinement.rounds if most_rounds is None else most_rounds
    schedule = schedule_of(scenario, mechanism, shares, rounds)
    multiplier = privacy.noise_multiplier
    if multiplier is None:
        assert privacy.target_epsilon is not None
        multiplier = calibrated(mechanism, schedule, privacy.target_epsilon - group_epsilon, privacy.delta)
    cost = spent(event_of(mechanism, multiplier, schedule), privacy.delta)
    plan = Plan(mechanism, multiplier, shares, schedule, cost, group_epsilon)
    if privacy.target_epsilon is not None and plan.epsilon > privacy.target_epsilon * (1 + 1e-6):
        raise ScenarioError(
            f"privacy.noise_multiplier: {multiplier:g} spends epsilon {plan.epsilon:.3g} over the rounds of this run, "
            f"above privacy.target_epsilon {privacy.target_epsilon:g}; leave noise_multiplier out, or raise it"
        )
    return plan


def check_keys(scenario: Scenario, mechanism: Mechanism) -> None:
    """Refuse keys under which the epsilon would not be true.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    privacy = scenario.privacy
    if mechanism.where == "device" and privacy.rows == "touched":
        raise ScenarioError(
            f"privacy.rows: touched tells which rows a device changed, which {mechanism.name} must hide; set all-sent"
        )
    if in_masked_sums(scenario, mechanism):
        noise_devices_of(scenario, scenario.secure_aggregation.min_devices)
    for key, again in (
        ("fairness.exclude_below", scenario.fairness.exclude_below is not None),
        ("elasticity.trained_for", bool(scenario.elasticity.trained_for)),
    ):
        if again:
            raise ScenarioError(f"{key}: refines once more and so spends epsilon again; leave it out under a mechanism")


def report_of(scenario: Scenario, plan: Plan | None, clip_norms: list[float]) -> dict[str, Any]:
    """The ``privacy`` field of report.json. clip_norms: bound of updates in every round."""
    privacy = scenario.privacy
    hides = {"rows": privacy.rows, "requests": privacy.requests, "counters": privacy.counters}
    if plan is None:
        return {"mechanism": "none", "epsilon": None, "delta": None, **hides}
    norms = np.array(clip_norms or [privacy.clipping.norm])
    releases: list[dict[str, Any]] = []
    every = scenario.controller.every
    shared = in_masked_sums(scenario, plan.mechanism)
    for part in plan.shares:
        bound = bounds(scenario, float(norms[-1]))[part]
        releases.append(
            {
                "part": part,
                "rounds": scenario.refinement.rounds // every if part == "signals" else scenario.refinement.rounds,
                "share": plan.shares[part],
                "bound": bound,
                "noise_std": plan.std(part, bound),
                "added_by": "devices, in shares" if shared else plan.mechanism.where,
            }
        )
    if plan.group_epsilon:
        releases.append({"part": "user group", "rounds": 1, "epsilon": plan.group_epsilon, "added_by": "device"})
    sampling = (
        f"Poisson, {plan.schedule.sampling:.4g} a round, for whoever does not see which devices take part"
        if plan.schedule.sampling < 1
        else "not amplified: every round a device can be in counts in full"
    )
    return {
        "mechanism": plan.mechanism.name,
        "clipping": privacy.clipping.kind,
        "epsilon": plan.epsilon,
        "delta": plan.cost.delta,
        "accountant": plan.cost.accountant,
        "epsilon_rdp": plan.cost.rdp,
        "epsilon_pld": plan.cost.pld,
        "target_epsilon": privacy.target_epsilon,
        "noise_multiplier": plan.multiplier,
        "clip_norms": [float(norm) for norm in clip_norms],
        "adjacency": "a device's contributions, all rounds together, replaced by "
        + ("zeros" if plan.mechanism.where == "server" else "any others"),
        "sampling": sampling,
        "releases": releases,
        "covers": _covers(scenario, plan),
        "not_covered": _not_covered(scenario),
        **hides,
    }


def _covers(scenario: Scenario, plan: Plan) -> str:
    seen_by = "the server too"
    if in_masked_sums(scenario, plan.mechanism) and scenario.secure_aggregation.masked:
        others = scenario.privacy.colluding_devices
        seen_by += (
            f", which learns noised sums alone, and {others} device(s) of the user group that tell it all they know"
        )
    elif plan.mechanism.where == "server":
        seen_by = "the other devices and whoever sees the tables"
    group = ", and the user group it answers" if plan.group_epsilon else ""
    return f"everything a device sends in refinement{group}, per device, over all rounds, towards {seen_by}"


def _not_covered(scenario: Scenario) -> list[str]:
    collected = scenario.pretraining.collected
    whose = (
        f"the oldest {collected.share:.0%} of every user's train interactions"
        if collected.mode == "oldest" and collected.share < 1
        else "the train interactions of all users"
        if collected.share == 1
        else f"the train interactions of the {collected.share:.0%} of the users who consented"
    )
    rest = [
        f"pretraining data: {whose}, which the server has in clear (pretraining.collected)",
        "memory budgets, device classes and availability, which are not interactions",
        "the test, which the researcher makes on all devices outside the protocol",
    ]
    if scenario.privacy.requests == "own-budget":
        rest.append("how many blocks a device asks for: its budget of the moment (privacy.requests)")
    if scenario.privacy.counters == "measured":
        rest.append(
            "rounds' losses, recalls, times and bytes in this report: measured by the simulation, sent by nobody"
        )
    return rest


__all__ = [
    "PARTS",
    "Part",
    "Plan",
    "bounds",
    "check_keys",
    "in_masked_sums",
    "make_plan",
    "noise_devices_of",
    "released",
    "report_of",
    "schedule_of",
    "shares_of",
    "wants_signals",
]
