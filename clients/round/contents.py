"""Device half of a round's contents: what is bounded, contributed and paid for.

To add one, subclass :class:`DeviceContents` (or one that ships, :class:`clients.round.open.OpenDeviceContents`),
register it under the entry point group ``fl_peel.device_contents`` and name it as ``refinement.contribution``.
:class:`clients.round.contracts.DeviceContentsContract` tests it; docs/contents.md has examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clients.round.outcome import MembersReply
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.release import Release
from fl_peel.exchange.traffic import TrafficPadding
from fl_peel.exchange.trained_devices import TrainedDevices
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.group import train_group
from fl_peel.training.settings import LocalTraining
from fl_peel.training.update import GroupUpdate
from fl_peel.training.work import LocalWork
from fl_peel.wire import Arrays, RoundRequest


class DeviceContents(ABC):
    """Base class of a contribution on the device side, for the devices of one node in one round. scenario: scenario of
    the run; request: the server's request.

    release: what the round releases.
    """

    def __init__(self, scenario: Scenario, request: RoundRequest) -> None:
        self.scenario = scenario
        self.request = request
        self.release = Release.from_scenario(scenario, signals=request.signals)

    def local(self, how: LocalTraining) -> LocalTraining:
        """Return how devices train: each device's update is bounded as the scenario asks, by the device and by its
        node."""
        clipping = self.scenario.privacy.clipping
        if clipping.kind != "none":
            mechanism = find_mechanism(self.scenario.privacy.mechanism)
            how = replace(
                how,
                max_norm=self.request.clip_norm,
                clip_blocks=clipping.kind == "per-block",
                clip_l1=mechanism is not None and mechanism.norm == "l1",
            )
        bound = self.scenario.refinement.aggregation.robust.norm_bound
        return how if bound is None else replace(how, max_norm=min(how.max_norm, bound))

    def train(self, work: LocalWork) -> tuple[NDArray[np.float32], GroupUpdate]:
        """Train the devices of one user group locally, see :func:`fl_peel.training.group.train_group`."""
        return train_group(work)

    def hiding(self) -> TrafficPadding | None:
        """Return what devices transfer beyond what they need, so that sizes reveal nothing; None where nothing is
        hidden."""
        return (
            TrafficPadding.from_scenario(self.scenario, ())
            if self.scenario.privacy.requests == "group-prefix"
            else None
        )

    @abstractmethod
    def contribution(self, ranked: RankedBlocks, trained: TrainedDevices, noise_devices: int | None = None) -> Arrays:
        """Return the contribution of devices of one user group: arrays that add up over disjoint sets of devices.
        noise_devices: number of devices whose shares of central noise reach its full strength, where devices add it
        to sums that the server does not see before; None where the server adds it.
        """

    def parts(self, devices: IntArray) -> dict[int, NDArray[np.bool_]]:
        """Return masks (N,) of the devices of one user group that train together, at least one in each, by number."""
        return {0: np.ones(len(devices), np.bool_)}

    def joined(self, replies: dict[int, MembersReply]) -> MembersReply:
        """Return the replies of all parts, by their numbers, as one."""
        (reply,) = replies.values()
        return reply

    def counted(self, counts: RoundCounts) -> RoundCounts:
        """Return the counters that are reported."""
        return counts.withheld() if self.release.withheld else counts
