"""A run's plan: how much noise on what, in rounds and in stage 1, from the scenario's keys, and what it costs.

A device is in every step that it comes to, for certain: nothing is amplified by sampling. Steps compose, as do the
parts of a step, and the periods of a timeline. How often each is taken is known from the scenario's keys alone, before
anything is asked.

What a round releases, part by part, is in :mod:`fl_peel.exchange.release`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fl_peel.errors import ScenarioError
from fl_peel.exchange.release import Part, bounds, shares_of
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.mechanisms import Mechanism, PrivacyCost, Schedule, calibrated, cost_of, find_mechanism
from fl_peel.privacy.sources import NoiseSource, source_of, whole_scale
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.device_protocol import answers_needed
from fl_peel.steps import STEPS, find_stage, steps_of
from fl_peel.steps.base import ContributionBounds, Draw, Ints, NoisedPart, Step
from fl_peel.steps.choice import ChoiceStep
from fl_peel.steps.passes import CountsStep

NOISED_PARTS = MappingProxyType({part.name: part for step in STEPS.values() for part in step.noised})
"""Parts of sums of stage 1 that a mechanism noises. Their shares of its budget are for all times of a part together;
shares of unused parts go to the others. Chosen on ML-100K's validation items at epsilon 8: the pass alone finds what
popularity does not show.
"""


@dataclass(frozen=True)
class Stage1Release:
    """Release of a part of stage 1, or of a stage that shares its budget. times: how often; share: of a round's
    release, each time; bound: of a device; unit: units in one.
    """

    part: str
    times: int
    share: float
    bound: float
    unit: float


def contribution_bounds(scenario: Scenario) -> ContributionBounds | None:
    """Return the bounds that devices keep to in stage 1; None without a mechanism, or where they take no part."""
    mechanism = find_mechanism(scenario.privacy.mechanism) if scenario.pretraining.by_devices else None
    return None if mechanism is None else ContributionBounds(scenario.privacy.counts_norm, mechanism.norm == "l1")


def times_of(step: type[Step], scenario: Scenario) -> int:
    """Return how often a run takes a step under a mechanism, at most. A timeline has two stages 1 before its first
    period, of which one is for devices to choose the filter, and one in each period after it; and a choice of freshness
    in all of them, for which uses of late are counted once more than there are periods.
    """
    config, num_groups, timeline = scenario.pretraining.spectral(), scenario.user_groups.count, scenario.data.timeline
    times = step.times(config, num_groups)
    if timeline is None:
        return times
    if step is ChoiceStep:
        return times + timeline.periods * int(timeline.chooses)
    later = step.times(replace(config, passes=timeline.passes), num_groups)
    recent = int(step is CountsStep and timeline.counts_recent) * (timeline.periods + 1)
    return 2 * times + (timeline.periods - 1) * later + recent


def stage1_releases(scenario: Scenario) -> tuple[Stage1Release, ...]:
    """Return the releases of stage 1; none where no mechanism adds noise, or devices have no part in it."""
    pretraining, privacy = scenario.pretraining, scenario.privacy
    if not (privacy.noised and pretraining.by_devices):
        return ()
    times = {part: times_of(step, scenario) for step in steps_of(scenario) for part in step.noised}
    whole = sum(part.share for part in times if times[part])

    def release(part: NoisedPart) -> Stage1Release:
        share = privacy.shares.stage1 * part.share / whole / times[part]
        bound = privacy.counts_norm if part.bound is None else part.bound
        return Stage1Release(part.name, times[part], share, bound, part.unit)

    return tuple(release(part) for part in times if times[part])


@dataclass(frozen=True)
class Stage1Scales:
    """Scales of the noise of a scenario's mechanism. multiplier: noise multiplier of a full round's release."""

    mechanism: Mechanism
    multiplier: float
    releases: dict[str, Stage1Release]
    source: NoiseSource

    @staticmethod
    def from_scenario(scenario: Scenario, multiplier: float) -> Stage1Scales:
        """Return the scales for a scenario that has a mechanism."""
        mechanism = find_mechanism(scenario.privacy.mechanism)
        assert mechanism is not None
        releases = {release.part: release for release in stage1_releases(scenario)}
        return Stage1Scales(mechanism, multiplier, releases, source_of(scenario))

    def scale(self, part: str) -> float:
        """Return the scale of the noise on each number of a part."""
        release = self.releases[part]
        return self.mechanism.scale(self.multiplier, release.share, release.bound)

    def std(self, part: str) -> float:
        """Return the standard deviation of one draw of a part's noise."""
        return self.mechanism.std(self.scale(part))

    def whole(self, *identity: str | int) -> Draw:
        """Return what draws all of the noise: on a sum by the server, on its own part by a device."""

        def draw(part: str, shape: tuple[int, ...], piece: int) -> Ints:
            what = ("stage-1-noise", *identity, part, piece)
            return self.source.noise(self.mechanism, shape, self.scale(part), self.releases[part].unit, what)

        return draw

    def shared(self, num_devices: int, *identity: str | int) -> Draw:
        """Return what draws a device's share of the noise, one of ``num_devices``."""

        def draw(part: str, shape: tuple[int, ...], piece: int) -> Ints:
            what = ("stage-1-noise-share", *identity, part, piece)
            return self.source.share(shape, self.std(part), num_devices, self.releases[part].unit, what)

        return draw


@dataclass(frozen=True)
class Plan:
    """Plan of a run's noise: the mechanism, its strength and how the budget is divided.

    multiplier: noise of a full release relative to the distance of two contributions; shares: of a full round's
    release, they sum to 1; schedule: rounds of one device.
    """

    mechanism: Mechanism
    multiplier: float
    shares: Mapping[Part, float]
    schedule: Schedule
    cost: PrivacyCost
    group_epsilon: float
    """Epsilon of the reply that names a device's user group, spent in addition; 0 where no device is asked for it."""
    stage1: tuple[Stage1Release, ...] = ()
    """Releases of stage 1; none where devices have no part in it. They are counted in ``schedule`` and ``cost``."""

    def scale(self, part: Part, bound: float) -> float:
        """Return the scale of the noise on a part."""
        return self.mechanism.scale(self.multiplier, self.shares[part], bound)

    def std(self, part: Part, bound: float) -> float:
        """Return the standard deviation of the noise on a part, of one draw."""
        return self.mechanism.std(self.scale(part, bound))

    @property
    def epsilon(self) -> float:
        """Epsilon at user level, of everything that devices release."""
        return self.cost.epsilon + self.group_epsilon

    @property
    def stage1_epsilon(self) -> float | None:
        """Epsilon of the contributions to stage 1 alone, at the plan's delta; None where there are none."""
        if not self.stage1:
            return None
        alone = Schedule((), certain=self.schedule.certain)
        return cost_of(self.mechanism, self.multiplier, alone, self.cost.delta).epsilon


def in_masked_sums(scenario: Scenario, mechanism: Mechanism | None) -> bool:
    """Whether devices add the noise of a sum, each its share, before they mask it: the server sees no sum without it.

    Where secure aggregation is on, for mechanisms whose noise can be divided; the server then adds none.
    """
    secure = scenario.secure_aggregation.enabled
    return mechanism is not None and secure and mechanism.where == "server" and mechanism.divides


def noise_devices_of(scenario: Scenario, num_devices: int) -> int:
    """Return how many devices, at least, are in a sum that is opened and keep their noise to themselves, when
    ``num_devices`` of a user group begin a round.

    Each device's share of the noise is one of so many: whatever sum is opened has all of the noise, or more.

    Raises:
        ScenarioError: none are left.
    """
    quorum = answers_needed(num_devices, scenario.secure_aggregation.threshold)
    colluding = scenario.privacy.colluding_devices
    if quorum <= colluding:
        raise ScenarioError(
            f"privacy.colluding_devices: of {num_devices} devices {quorum} must stay until the end, and {colluding} "
            "may reveal their noise, which leaves none; lower it, or raise secure_aggregation.min_devices or threshold"
        )
    return quorum - colluding


def schedule_of(scenario: Scenario, mechanism: Mechanism, shares: Mapping[Part, float], rounds: int) -> Schedule:
    """Rounds that a device pays for: those with signals in full, the others without the signals' share; and stage 1.

    rounds: it can be in; under fixed sampling, those that the most sampled device is in, here counted as if all of
    them had signals as far as there are any.
    """
    refinement, every = scenario.refinement, scenario.controller.every
    with_signals = min(rounds, refinement.rounds // every)
    without = sum(share for part, share in shares.items() if part != "signals")
    # the server sees who takes part: where it is one of those whom the noise is against, nothing is amplified
    hidden = mechanism.where == "server" and not in_masked_sums(scenario, mechanism)
    poisson = refinement.sampling == "poisson" and hidden
    sampling = refinement.sampling_rate if poisson else 1.0
    stage1 = tuple((release.times, release.share) for release in stage1_releases(scenario))
    return Schedule(((with_signals, 1.0), (rounds - with_signals, without)), sampling, stage1)


def make_plan(scenario: Scenario, *, most_rounds: int | None = None, asks_groups: bool = False) -> Plan | None:
    """Return the plan of a scenario; None where no mechanism adds noise.

    most_rounds: most rounds that any device is in (None: all of them); asks_groups: whether some devices are asked for
    their user group, because their data was not collected.

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
            "privacy.group_epsilon: devices whose data is not collected report their user group; give the "
            "part of target_epsilon that this report may cost, or pretraining.collected.share 100%"
        )
    group_epsilon = (privacy.group_epsilon or 0.0) if asks_groups else 0.0
    shares = shares_of(scenario)
    rounds = scenario.refinement.rounds if most_rounds is None else most_rounds
    schedule = schedule_of(scenario, mechanism, shares, rounds)
    multiplier = privacy.noise_multiplier
    if multiplier is None:
        assert privacy.target_epsilon is not None
        multiplier = calibrated(mechanism, schedule, privacy.target_epsilon - group_epsilon, privacy.delta)
    cost = cost_of(mechanism, multiplier, schedule, privacy.delta)
    if not math.isfinite(cost.epsilon):
        raise ScenarioError(
            f"privacy.noise_multiplier: {multiplier:g} at privacy.delta {privacy.delta:g} spends more than "
            "the accountant can compute; raise one of them"
        )
    plan = Plan(mechanism, multiplier, shares, schedule, cost, group_epsilon, stage1_releases(scenario))
    if privacy.target_epsilon is not None and plan.epsilon > privacy.target_epsilon * (1 + 1e-6):
        raise ScenarioError(
            f"privacy.noise_multiplier: {multiplier:g} spends epsilon {plan.epsilon:.3g} over the rounds of this run, "
            f"above privacy.target_epsilon {privacy.target_epsilon:g}; leave noise_multiplier out, or raise it"
        )
    check_scales(scenario, plan)
    return plan


def check_delta(scenario: Scenario, num_devices: int) -> None:
    """Refuse a delta that allows a run to tell all about one of its devices: above 1 / N.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    delta = scenario.privacy.delta
    if scenario.privacy.noised and delta * num_devices > 1:
        raise ScenarioError(
            f"privacy.delta: {delta:g} is above one of {num_devices:,} devices, and so allows everything about one of "
            f"them to be revealed; give at most {1 / num_devices:.2g}, better a tenth of that"
        )


def check_scales(scenario: Scenario, plan: Plan) -> None:
    """Refuse more noise than the operating system's source draws exactly.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    if scenario.privacy.noise_source != "system":
        return
    for part, bound in bounds(scenario, scenario.privacy.clipping.norm).items():
        if part in plan.shares:
            whole_scale(plan.scale(part, bound), FIXED_POINT)
    scales = Stage1Scales.from_scenario(scenario, plan.multiplier)
    for release in plan.stage1:
        whole_scale(scales.scale(release.part), release.unit)


def check_keys(scenario: Scenario, mechanism: Mechanism) -> None:
    """Refuse keys under which the epsilon would not be true.

    Raises:
        ScenarioError: naming the key and the remedy.
    """
    privacy = scenario.privacy
    if mechanism.where == "device" and privacy.rows == "touched":
        raise ScenarioError(
            f"privacy.rows: touched reveals which rows a device changed, which {mechanism.name} must hide; set all-sent"
        )
    if privacy.noise_source == "system" and not mechanism.draws_whole:
        raise ScenarioError(
            f"privacy.noise_source: mechanism {mechanism.name} draws no integer noise, which system requires; give it "
            "a draw_whole, or set seed"
        )
    if in_masked_sums(scenario, mechanism):
        noise_devices_of(scenario, scenario.secure_aggregation.min_devices)
    names = [part.name for step in steps_of(scenario) for part in step.noised]
    for stage in map(find_stage, scenario.stages):
        if not stage.noised or any(names.count(part.name) > 1 for part in stage.noised):
            raise ScenarioError(
                f"stages: {stage.name} has no noised parts with names of their own, to which {mechanism.name} could "
                "add noise; leave it out, or the mechanism"
            )
    for key, again in (
        ("fairness.exclude_below", scenario.fairness.exclude_below is not None),
        ("elasticity.trained_for", bool(scenario.elasticity.trained_for)),
    ):
        if again:
            raise ScenarioError(f"{key}: refines once more and so spends epsilon again; leave it out under a mechanism")
