"""Bounded contents: each device's contribution bounded part by part, perhaps noised, dense over all that was sent."""

from __future__ import annotations

import numpy as np

from clients.round.contents import DeviceContents
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.exchange.bounded_sums import bounded_sums
from fl_peel.exchange.named_sums import NamedSums
from fl_peel.exchange.release import SIGNALS, bounds, shares_of
from fl_peel.exchange.traffic import TrafficPadding
from fl_peel.exchange.trained_devices import TrainedDevices
from fl_peel.privacy.device_noise import with_device_noise, with_noise_shares
from fl_peel.privacy.mechanisms import Mechanism, find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums
from fl_peel.privacy.sources import source_of
from fl_peel.wire import Arrays


class BoundedDeviceContents(DeviceContents):
    """Contribution of devices under privacy: the parts of the round's release; counters are withheld where the scenario
    says so."""

    def hiding(self) -> TrafficPadding | None:
        """Return the padding that hides what a device changed: unchanged rows, blocks that were not needed, dense
        parts."""
        return TrafficPadding.from_scenario(self.scenario, self.release.parts)

    def contribution(self, ranked: RankedBlocks, trained: TrainedDevices, noise_devices: int | None = None) -> Arrays:
        """Return sums of the parts by name, each device's contribution bounded and noised."""
        mechanism = find_mechanism(self.scenario.privacy.mechanism)
        if mechanism is None:
            return dict(bounded_sums(ranked, trained, self.release.parts, {SIGNALS: np.inf}, l1=False))
        limits = bounds(self.scenario, self.request.clip_norm)
        sums = bounded_sums(ranked, trained, self.release.parts, limits, l1=mechanism.norm == "l1")
        return dict(self._noised(mechanism, sums, limits, trained, noise_devices))

    def _noised(
        self,
        mechanism: Mechanism,
        sums: NamedSums,
        limits: dict[str, float],
        trained: TrainedDevices,
        noise_devices: int | None,
    ) -> NamedSums:
        """Return the sums with the noise that the devices themselves add."""
        source, server_round = source_of(self.scenario), self.request.server_round
        shares = shares_of(self.scenario)
        scales = {
            part: mechanism.scale(self.request.noise_multiplier, shares[part], limits[part])
            for part in self.release.parts
        }
        if mechanism.where == "device":
            return with_device_noise(sums, scales, mechanism, source, server_round, trained.devices)
        if in_masked_sums(self.scenario, mechanism) and noise_devices is not None:
            stds = {part: mechanism.std(scale) for part, scale in scales.items()}
            return with_noise_shares(sums, stds, noise_devices, source, server_round, trained.devices)
        return sums
