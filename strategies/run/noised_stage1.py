"""Stage 1 by federation under a mechanism: noise on every sum, by whoever adds it, and no sum more than accounted for.

The server adds the noise once, to each sum, where the mechanism says so and it sees the sum without it; elsewhere noise
is in the sums when they come (:mod:`clients.round.noised_stage1`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fl_peel.pretraining.sketch import RowSketch
from fl_peel.pretraining.spectral_steps import FilterRequest, Floats, GroupSums, Ints, Moments, Units
from fl_peel.privacy.noise_plan import Plan, in_masked_sums, noise_devices_of
from fl_peel.privacy.stage1_noise import Stage1Noise, Stage1Scales
from fl_peel.scenario.scenario import Scenario
from strategies.run.stage1 import FederatedSums


@dataclass
class NoisedSums:
    """:class:`fl_peel.pretraining.stage1.Stage1Sums` under noise. taken: how often each part was asked for.

    Raises:
        AssertionError: something is asked once more than the plan accounts for.
    """

    sums: FederatedSums
    scenario: Scenario
    plan: Plan
    bounded: bool = True
    taken: Counter[str] = field(default_factory=Counter)

    @property
    def units(self) -> Units:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self.sums.units

    def std(self, part: str) -> float:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`. Shares of noise are made for the fewest devices that a
        sum may be of: of more, there is more.
        """
        one = self._scales.std(part)
        if self._by_server:
            return one
        record = self.sums.records[-1]
        devices = float(record.counts.classes.devices.sum())
        if self.plan.mechanism.where == "server":
            devices /= noise_devices_of(self.scenario, record.announced)
        return one * math.sqrt(devices)

    def counts(self) -> Ints:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        noise, counts = self._noise("counts"), self.sums.counts()
        return counts if noise is None else counts + noise.counts(len(counts))

    def passed(self, table: Floats, weights: Floats, sketch: RowSketch | None = None) -> Ints:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        assert sketch is None, "a bucket's rows have no bound together"
        noise, columns = self._noise("pass"), self.sums.passed(table, weights)
        return columns if noise is None else columns + noise.passed(len(columns), range(columns.shape[1]))

    def choice(self, request: FilterRequest) -> tuple[Ints, int]:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        noise, (won, answered) = self._noise("choice"), self.sums.choice(request)
        return won if noise is None else won + noise.choice(len(won)), answered

    def vectors(self, own: Floats) -> None:
        """Let devices make vectors, see :class:`fl_peel.pretraining.stage1.Stage1Sums`; nothing is released."""
        self.sums.vectors(own)

    def groups(self, centroids: Floats) -> GroupSums:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        noise, sums = self._noise("group sizes", "group vectors"), self.sums.groups(centroids)
        return sums if noise is None else sums + noise.groups(*centroids.shape)

    def moments(self, centroids: Floats, groups: Sequence[int]) -> Iterator[Moments]:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        noise = self._noise("moment sizes", "moment vectors", "moment products", "moment items")
        for group, moments in zip(groups, self.sums.moments(centroids, groups), strict=True):
            if noise is not None:
                moments = moments + noise.moments(group, len(moments.first), len(moments.items))
            yield moments

    @property
    def _scales(self) -> Stage1Scales:
        return Stage1Scales.from_scenario(self.scenario, self.plan.multiplier)

    @property
    def _by_server(self) -> bool:
        mechanism = self.plan.mechanism
        return mechanism.where == "server" and not in_masked_sums(self.scenario, mechanism)

    def _noise(self, *parts: str) -> Stage1Noise | None:
        """Return the noise that the server adds to the next sum with these parts, drawn by its number; None where it
        adds none.
        """
        accounted = {release.part: release.times for release in self.plan.stage1}
        for part in parts:
            self.taken[part] += 1
            assert self.taken[part] <= accounted.get(part, 0), f"{part}: asked more often than is accounted for"
        return self._scales.whole("server", self.taken[parts[0]]) if self._by_server else None


__all__ = ["NoisedSums"]
