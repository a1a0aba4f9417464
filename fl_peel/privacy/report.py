"""The ``privacy`` field of report.json: what was spent, what it covers, and what not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fl_peel.exchange.release import bounds
from fl_peel.json_codec import Inline
from fl_peel.privacy.noise_plan import Plan, Stage1Scales, in_masked_sums
from fl_peel.scenario.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class ReleaseRow:
    """Something that devices let out, as noised as this: how often, its share of the budget and its bound per device
    (of a part of a round; of stage 1, also in rounds), or the epsilon it has of its own.
    """

    part: str
    rounds: int
    share: float | None = None
    bound: float | None = None
    noise_std: float | None = None
    epsilon: float | None = None
    added_by: str


@dataclass(frozen=True, kw_only=True)
class PrivacyAccount:
    """By which accountant an epsilon was found, of what noise, and what it covers; None where an accountant cannot."""

    accountant: str
    epsilon_rdp: float | None
    epsilon_pld: float | None
    target_epsilon: float | None
    noise_multiplier: float
    noise_source: str = "seed"
    clip_norms: tuple[float, ...]
    adjacency: str
    sampling: str
    releases: tuple[ReleaseRow, ...]
    covers: str
    not_covered: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PrivacyReport:
    """The ``privacy`` field of report.json: what was hidden, and what was spent where a mechanism adds noise."""

    mechanism: str
    clipping: str | None = None
    epsilon: float | None
    delta: float | None
    accounted: Annotated[PrivacyAccount | None, Inline()] = None
    rows: str
    requests: str
    counters: str

    @property
    def hides(self) -> bool:
        """Whether anything is noised or hidden."""
        return self.bounded or self.requests == "group-prefix"

    @property
    def bounded(self) -> bool:
        """Whether devices said bounded sums alone, see :class:`fl_peel.exchange.release.Release`."""
        return self.mechanism != "none" or self.rows == "all-sent"

    @property
    def withholds(self) -> bool:
        """Whether devices withheld their counters, so that what they did in rounds reads as zero."""
        return self.bounded and self.counters == "withheld"


def report_of(scenario: Scenario, plan: Plan | None, clip_norms: list[float]) -> PrivacyReport:
    """What a run spent, and what that covers. clip_norms: bound of updates in every round."""
    privacy = scenario.privacy
    if plan is None:
        return PrivacyReport(
            mechanism="none",
            epsilon=None,
            delta=None,
            rows=privacy.rows,
            requests=privacy.requests,
            counters=privacy.counters,
        )
    sampling = (
        f"Poisson, {plan.schedule.sampling:.4g} per round, towards anyone who does not see which devices take part"
        if plan.schedule.sampling < 1
        else "not amplified: every round that a device can take part in counts in full"
    )
    accounted = PrivacyAccount(
        accountant=plan.cost.accountant,
        epsilon_rdp=plan.cost.rdp,
        epsilon_pld=plan.cost.pld,
        target_epsilon=privacy.target_epsilon,
        noise_multiplier=plan.multiplier,
        noise_source=privacy.noise_source,
        clip_norms=tuple(float(norm) for norm in clip_norms),
        adjacency="a device's contributions, all rounds together, replaced by "
        + ("zeros" if plan.mechanism.where == "server" else "any others"),
        sampling=sampling,
        releases=tuple(_releases(scenario, plan, float((clip_norms or [privacy.clipping.norm])[-1]))),
        covers=_covers(scenario, plan),
        not_covered=tuple(_not_covered(scenario)),
    )
    return PrivacyReport(
        mechanism=plan.mechanism.name,
        clipping=privacy.clipping.kind,
        epsilon=plan.epsilon,
        delta=plan.cost.delta,
        accounted=accounted,
        rows=privacy.rows,
        requests=privacy.requests,
        counters=privacy.counters,
    )


def _releases(scenario: Scenario, plan: Plan, clip_norm: float) -> Iterator[ReleaseRow]:
    """Yield a row for every part that is released. clip_norm: bound of updates in the last round."""
    rounds, every = scenario.refinement.rounds, scenario.controller.every
    added_by = "devices, in shares" if in_masked_sums(scenario, plan.mechanism) else plan.mechanism.where
    scales = Stage1Scales.from_scenario(scenario, plan.multiplier)
    for release in plan.stage1:
        yield ReleaseRow(
            part=f"stage 1, {release.part}",
            rounds=release.times,
            share=release.share,
            bound=release.bound,
            noise_std=scales.std(release.part),
            added_by=added_by,
        )
    for part, share in plan.shares.items() if rounds else ():
        bound = bounds(scenario, clip_norm)[part]
        yield ReleaseRow(
            part=part,
            rounds=rounds // every if part == "signals" else rounds,
            share=share,
            bound=bound,
            noise_std=plan.std(part, bound),
            added_by=added_by,
        )
    if plan.group_epsilon:
        yield ReleaseRow(part="user group", rounds=1, epsilon=plan.group_epsilon, added_by="device")


def _covers(scenario: Scenario, plan: Plan) -> str:
    seen_by = "the server too"
    if in_masked_sums(scenario, plan.mechanism) and scenario.secure_aggregation.masked:
        others = scenario.privacy.colluding_devices
        seen_by += f", which learns only noised sums, and {others} device(s) of the user group that collude with it"
    elif plan.mechanism.where == "server":
        seen_by = "the other devices and anyone who sees the tables"
    stages = "stage 1 and in refinement" if plan.stage1 else "refinement"
    timeline = scenario.data.timeline
    over = "rounds" if timeline is None else f"steps of {timeline.periods} periods"
    group = ", and the user group it reports" if plan.group_epsilon else ""
    return f"everything a device sends in {stages}{group}, per device, over all {over}, towards {seen_by}"


def _not_covered(scenario: Scenario) -> list[str]:
    collected = scenario.pretraining.collected
    whose = (
        f"the oldest {collected.share:.0%} of every user's train interactions"
        if collected.mode == "oldest" and collected.share < 1
        else "the train interactions of all users"
        if collected.share == 1
        else f"the train interactions of the {collected.share:.0%} of the users who consented"
    )
    rest = []
    if collected.share:
        rest.append(f"pretraining data: {whose}, which the server has in the clear (pretraining.collected)")
    if scenario.privacy.noise_source == "seed":
        rest += [
            "anyone with the seed, which is in this report: noise, answers and coins follow from it and can be "
            "subtracted (privacy.noise_source: system)",
            "the last bits of the noise, which floating-point samplers draw (privacy.noise_source: system)",
        ]
    if scenario.data.timeline is not None:
        rest.append("who and which items come, and when: users and items of a timeline are numbered as they appear")
        if scenario.privacy.noise_source == "system":
            rest.append("sums of a period that is stopped before its end, which are asked for again with other noise")
    rest += [
        "memory budgets, device classes and availability, which are not interactions",
        "the test evaluation, which the researcher runs on all devices outside the protocol",
    ]
    if scenario.evaluation.artifacts:
        rest.append(
            f"{scenario.evaluation.artifacts} devices whose embeddings are written to the folder of this report "
            "(evaluation.artifacts)"
        )
    if scenario.privacy.requests == "own-budget":
        rest.append("the number of blocks that a device requests, and so its current budget (privacy.requests)")
    if scenario.pretraining.by_devices:
        rest.append("bytes, times and devices of stage 1 in this report: measured by the simulation, sent by no device")
    rest += _without_noise(scenario)
    if scenario.privacy.counters == "measured":
        rest.append(
            "losses, recalls, times and bytes of the rounds in this report: measured by the simulation, sent by no "
            "device"
        )
    return rest


def _without_noise(scenario: Scenario) -> Iterator[str]:
    """What validation items decide, or show in the report, outside all noise. Refinement is accepted by none under a
    mechanism (``Scenario.compares``), and data.refit and a filter chosen in the clear are refused.
    """
    if not scenario.data.validation_share:
        return
    if scenario.fairness.tiers:
        yield "fixed tiers: the table sizes each device class gets, chosen on its validation items (fairness.tiers)"
    if scenario.evaluation.full_tables:
        yield "the validation recall of full tables, in this report (evaluation.full_tables)"
    yield "keys of this scenario, if they were chosen by trying several values on validation items of the same devices"
