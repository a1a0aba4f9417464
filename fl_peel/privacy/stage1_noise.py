"""Stage 1 by devices under a mechanism: what is released how often, at which share of the budget, and the noise on it.

A device is in every step that it comes to, for certain: nothing is amplified by sampling. Steps compose, as do the
parts of a step. How often each is taken is known from the scenario's keys alone, before anything is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fl_peel.pretraining.contribution import CHOICE_BOUND, BoundedContribution, OpenContribution, Stage1Contribution
from fl_peel.pretraining.spectral_steps import PASS_SCALE, UNIT_SCALE, GroupSums, Ints, Moments, Units
from fl_peel.privacy.mechanisms import Mechanism, find_mechanism
from fl_peel.privacy.sources import NoiseSource, source_of
from fl_peel.scenario.scenario import Scenario

SHARES = MappingProxyType(
    {
        "counts": 0.05,
        "pass": 0.69,
        "choice": 0.05,
        "group sizes": 0.02,
        "group vectors": 0.08,
        "moment sizes": 0.01,
        "moment vectors": 0.02,
        "moment products": 0.05,
        "moment items": 0.03,
    }
)
"""Shares of the budget of stage 1, for all times of a part together; shares of unused parts go to the others. Chosen on
ML-100K's validation items at epsilon 8: the pass alone finds what popularity does not show.
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


def stage1_releases(scenario: Scenario) -> tuple[Stage1Release, ...]:
    """Return the releases of stage 1; none where no mechanism adds noise, or devices have no part in it."""
    pretraining, privacy = scenario.pretraining, scenario.privacy
    if not (privacy.noised and pretraining.by_devices):
        return ()
    rounds = pretraining.group_rounds if scenario.user_groups.count > 1 else 0
    several = {
        "pass": pretraining.passes,
        "choice": int(pretraining.spectral().chooses),
        "group sizes": rounds,
        "group vectors": rounds,
    }
    bounds = {"choice": CHOICE_BOUND, "counts": privacy.counts_norm, "moment items": privacy.counts_norm}
    times = {part: several.get(part, 1) for part in SHARES}
    whole = sum(share for part, share in SHARES.items() if times[part])
    return tuple(
        Stage1Release(part, times[part], privacy.shares.stage1 * share / whole / times[part], bounds.get(part, 1.0))
        for part, share in SHARES.items()
        if times[part]
    )


def unit_of(part: str) -> float:
    """Return how many units of a part make one."""
    return {"pass": PASS_SCALE, "moment products": UNIT_SCALE**2}.get(part, UNIT_SCALE)


def make_contribution(scenario: Scenario, num_items: int, units: Units) -> Stage1Contribution:
    """Return how devices contribute to stage 1. units: of contributions without bounds."""
    pretraining = scenario.pretraining
    mechanism = find_mechanism(scenario.privacy.mechanism)
    if mechanism is None or not pretraining.by_devices:
        return OpenContribution(num_items, pretraining.user_exponent, pretraining.item_exponent, units)
    return BoundedContribution(
        num_items, pretraining.item_exponent, scenario.privacy.counts_norm, mechanism.norm == "l1"
    )


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

    def whole(self, *identity: str | int) -> Stage1Noise:
        """Return all of the noise: on a sum by the server, on its own part by a device."""

        def draw(part: str, shape: tuple[int, ...], piece: int) -> Ints:
            what = ("stage-1-noise", *identity, part, piece)
            return self.source.noise(self.mechanism, shape, self.scale(part), unit_of(part), what)

        return Stage1Noise(draw)

    def shared(self, num_devices: int, *identity: str | int) -> Stage1Noise:
        """Return a device's share of the noise, one of ``num_devices``."""

        def draw(part: str, shape: tuple[int, ...], piece: int) -> Ints:
            what = ("stage-1-noise-share", *identity, part, piece)
            return self.source.share(shape, self.std(part), num_devices, unit_of(part), what)

        return Stage1Noise(draw)


@dataclass(frozen=True)
class Stage1Noise:
    """Noise on the contributions to a step, in their units. draw: of a part, a shape; piece: a column of a pass or a
    user group of moments, each drawn by itself, so that a step may go in several messages.
    """

    draw: Callable[[str, tuple[int, ...], int], Ints]

    def counts(self, items: int) -> Ints:
        """Return noise on item counts (I,)."""
        return self.draw("counts", (items,), 0)

    def passed(self, items: int, columns: range) -> Ints:
        """Return noise on these columns of a pass, (I, k)."""
        noise = np.empty((items, len(columns)), np.int64)
        for place, column in enumerate(columns):
            noise[:, place] = self.draw("pass", (items,), column)
        return noise

    def choice(self, shapes: int) -> Ints:
        """Return noise on shares under each filter, (C,)."""
        return self.draw("choice", (shapes,), 0)

    def groups(self, groups: int, columns: int) -> GroupSums:
        """Return noise on a round of Lloyd's algorithm."""
        sizes = self.draw("group sizes", (groups,), 0)
        return GroupSums(sizes, self.draw("group vectors", (groups, columns), 0))

    def moments(self, group: int, columns: int, items: int) -> Moments:
        """Return noise on the moments of a user group; on products as on a matrix that is then made symmetric."""
        products = self.draw("moment products", (columns, columns), group)
        return Moments(
            self.draw("moment sizes", (1,), group).item(),
            self.draw("moment vectors", (columns,), group),
            (products + products.T) // 2,
            self.draw("moment items", (items,), group),
        )


__all__ = ["SHARES", "Stage1Noise", "Stage1Release", "Stage1Scales", "make_contribution", "stage1_releases", "unit_of"]
