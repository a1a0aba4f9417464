"""Steps of stage 1 under a mechanism: noise on every sum, by whoever adds it, and no sum more than accounted for.

The server adds the noise once, to each sum, where the mechanism says so and it sees the sum without it; elsewhere noise
is in the sums when they come (:mod:`clients.steps.step_round`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fl_peel.privacy.noise_plan import Plan, in_masked_sums, noise_devices_of
from fl_peel.privacy.stage1_noise import Stage1Scales
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import Arrays, Bools, ChannelWrapper, PartSums, Step
from strategies.steps.clear_steps import ClearSteps


@dataclass
class NoisedSteps(ChannelWrapper):
    """A :class:`fl_peel.steps.base.StepChannel` under noise. channel: the devices, whose sums have no noise of the
    server; taken: how often each part was asked for.

    Raises:
        AssertionError: something is asked once more than the plan accounts for.
    """

    channel: ClearSteps
    scenario: Scenario
    plan: Plan
    taken: Counter[str] = field(default_factory=Counter)

    def std(self, part: str) -> float:
        """See :class:`fl_peel.steps.base.StepChannel`. Shares of noise are made for the fewest devices that a sum may
        be of: of more, there is more.
        """
        one = self._scales.std(part)
        if self._by_server:
            return one
        record = self.channel.records[-1]
        devices = float(record.counts.classes.devices.sum())
        if self.plan.mechanism.where == "server":
            devices /= noise_devices_of(self.scenario, record.announced)
        return one * math.sqrt(devices)

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`; noise is drawn by the number of the sum."""
        accounted = {release.part: release.times for release in self.plan.stage1}
        for one in step.noised:
            self.taken[one.name] += 1
            taken, most = self.taken[one.name], accounted.get(one.name, 0)
            assert taken <= most, f"{one.name}: asked more often than is accounted for"
        sums = self.channel.ask(step, sent, opened)
        if not step.noised or not self._by_server:
            yield from sums
            return
        draw = self._scales.whole("server", self.taken[step.noised[0].name])
        for part, each in sums:
            noise = step.noise(draw, self.terms, part)
            yield part, each | {name: each[name] + noise[name] for name in noise}

    @property
    def _scales(self) -> Stage1Scales:
        return Stage1Scales.from_scenario(self.scenario, self.plan.multiplier)

    @property
    def _by_server(self) -> bool:
        mechanism = self.plan.mechanism
        return mechanism.where == "server" and not in_masked_sums(self.scenario, mechanism)
