"""Stage 1 by devices under a mechanism: what is released how often, at which share of the budget, and the noise on it.

A device is in every step that it comes to, for certain: nothing is amplified by sampling. Steps compose, as do the
parts of a step. How often each is taken is known from the scenario's keys alone, before anything is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from fl_peel.privacy.mechanisms import Mechanism, find_mechanism
from fl_peel.privacy.sources import NoiseSource, source_of
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import ContributionBounds, Draw, NoisedPart
from fl_peel.steps.registry import STEPS
from fl_peel.steps.units import Ints

NOISED_PARTS = MappingProxyType({part.name: part for step in STEPS.values() for part in step.noised})
"""Parts of sums that a mechanism noises, of all steps. Their shares of the budget of stage 1 are for all times of a
part together; shares of unused parts go to the others. Chosen on ML-100K's validation items at epsilon 8: the pass
alone finds what popularity does not show.
"""


@dataclass(frozen=True)
class Stage1Release:
    """Release of a part of stage 1's contributions. times: how often; share: of a full round's release, each time;
    bound: of a device.
    """

    part: str
    times: int
    share: float
    bound: float


def contribution_bounds(scenario: Scenario) -> ContributionBounds | None:
    """Return the bounds that devices keep to in stage 1; None without a mechanism, or where they take no part."""
    mechanism = find_mechanism(scenario.privacy.mechanism) if scenario.pretraining.by_devices else None
    return None if mechanism is None else ContributionBounds(scenario.privacy.counts_norm, mechanism.norm == "l1")


def stage1_releases(scenario: Scenario) -> tuple[Stage1Release, ...]:
    """Return the releases of stage 1; none where no mechanism adds noise, or devices have no part in it."""
    pretraining, privacy = scenario.pretraining, scenario.privacy
    if not (privacy.noised and pretraining.by_devices):
        return ()
    config, num_groups = pretraining.spectral(), scenario.user_groups.count
    times = {part: step.times(config, num_groups) for step in STEPS.values() for part in step.noised}
    whole = sum(part.share for part in times if times[part])

    def release(part: NoisedPart) -> Stage1Release:
        share = privacy.shares.stage1 * part.share / whole / times[part]
        return Stage1Release(part.name, times[part], share, privacy.counts_norm if part.bound is None else part.bound)

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
            return self.source.noise(self.mechanism, shape, self.scale(part), NOISED_PARTS[part].unit, what)

        return draw

    def shared(self, num_devices: int, *identity: str | int) -> Draw:
        """Return what draws a device's share of the noise, one of ``num_devices``."""

        def draw(part: str, shape: tuple[int, ...], piece: int) -> Ints:
            what = ("stage-1-noise-share", *identity, part, piece)
            return self.source.share(shape, self.std(part), num_devices, NOISED_PARTS[part].unit, what)

        return draw
