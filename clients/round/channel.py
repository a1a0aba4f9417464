"""Device half of the channels: contributions of a node's devices on their way to the server, in the clear or masked.

A device's vector is what a node that hosted it alone would reply in a round without secure aggregation
(:func:`clients.round.members.train_members`), with an entry for every row it might have touched. Bytes are counted per
device.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np

from clients.node.cohort import Cohort
from clients.round.contents import MembersReply, StateUpdate
from clients.round.masked_group import MaskedGroup, SecretStore, known_of, make_keys
from clients.round.members import ChannelTerms, Traffic, train_members
from clients.round.round_context import RoundContext, reached_devices
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.release import Release, dense, layout_of
from fl_peel.privacy.mechanisms import find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums, noise_devices_of
from fl_peel.secure.keys import Occasion
from fl_peel.secure.protocol_plan import EXCHANGES, DeviceBytes, DropoutStage, vanishing
from fl_peel.secure.vector import CHECK
from fl_peel.wire import (
    Arrays,
    MaskedSum,
    RoundReply,
    RoundRequest,
    SecureKeysReply,
    SecureKeysRequest,
    SecureRoundReply,
    SecureRoundRequest,
)

Reply = TypeVar("Reply")


class DeviceChannel(ABC, Generic[Reply]):
    """The device half of a channel, on one node and in one round: it takes one user group after the other, then makes
    the reply.
    """

    def __init__(self, context: RoundContext) -> None:
        self.context = context

    def begin(self) -> RoundCounts:
        """Start the round before the first user group; return what is counted already."""
        return RoundCounts.nothing(len(self.context.cohort.fleet.names))

    @abstractmethod
    def members(self, group: int) -> IntArray:
        """Return the places (N,) of a user group's devices that are reached."""

    @abstractmethod
    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """The round of devices (N,), one at least: what is counted in the open, and what they will keep."""

    @abstractmethod
    def reply(self, counts: RoundCounts) -> Reply:
        """Return the reply of the node. counts: counts of the round, as far as they are sent in the open."""


def run_round(channel: DeviceChannel[Reply]) -> Reply:
    """One round of a node's devices."""
    world = channel.context
    counts, keeps = channel.begin(), list[StateUpdate]()
    layout, precision = world.cohort.layout(), world.cohort.scenario.blocks.precision
    for group, payload in world.request.groups.items():
        members = channel.members(group)
        if not len(members):
            continue
        counted, kept = channel.take(RankedBlocks.unpack(layout, precision, payload), group, members)
        counts += counted
        keeps += kept
    state = world.cohort.state()
    for one in keeps:  # last, so that a round that fails half-way leaves devices as they were
        one.remember(state)
    return channel.reply(world.contents.counted(counts))


class ClearDeviceChannel(DeviceChannel[RoundReply]):
    """The clear channel of a node. noise_devices: number of devices of user groups that add central noise in shares,
    which together make its full strength.
    """

    def __init__(self, context: RoundContext, noise_devices: Mapping[int, int] | None = None) -> None:
        super().__init__(context)
        self._noise_devices = noise_devices or {}
        self._groups = np.asarray(context.state.groups)
        self._reached = np.zeros(0, np.int64)
        self._contributions: dict[int, Arrays] = {}

    def begin(self) -> RoundCounts:
        """Determine which of the sampled devices are reached."""
        self._reached, clock = self.context.reached(self.context.cohort.places(self.context.request.devices))
        return replace(super().begin(), clock=clock)

    def members(self, group: int) -> IntArray:
        """Return the reached devices of the user group."""
        return np.asarray(self._reached[self._groups[self._reached] == group])

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """Train all devices of the group together, as the contents have it."""
        terms = ChannelTerms(noise_devices=self._noise_devices.get(group))
        contents, replies = self.context.contents, dict[int, MembersReply]()
        for number, some in contents.parts(self.context.cohort.devices[members]).items():
            replies[number] = train_members(self.context, ranked, members[some], terms)
        done = contents.joined(replies)
        self._contributions[group] = done.arrays
        return done.counts, [done.state_update]

    def reply(self, counts: RoundCounts) -> RoundReply:
        """Sums and counters."""
        return RoundReply(self._contributions, counts)


def clear_round(cohort: Cohort, request: RoundRequest, noise_devices: Mapping[int, int] | None = None) -> RoundReply:
    """One round for the sampled devices of this node, in the clear."""
    return run_round(ClearDeviceChannel(RoundContext.from_request(cohort, request), noise_devices))


def announce_keys(cohort: Cohort, request: SecureKeysRequest) -> SecureKeysReply:
    """Stage 1: devices that are reached make their keys. What is left of earlier rounds is removed."""
    store = SecretStore.from_node_folder(cohort.folder)
    store.forget()
    budgets = cohort.budgets.during(request.server_round)[0]
    reached, clock = reached_devices(cohort, cohort.places(request.devices), budgets, request.server_round)
    groups = np.asarray(cohort.state("r").groups)[reached]
    start = time.perf_counter()
    channel, mask = make_keys(cohort, request.server_round, reached, groups)
    spent = time.perf_counter() - start
    if Release.from_scenario(cohort.scenario, signals=False).withheld:
        clock = clock.asked_alone()
    return SecureKeysReply(cohort.devices[reached], groups, channel, mask, clock, spent)


class MaskedDeviceChannel(DeviceChannel[SecureRoundReply]):
    """Stage 3: devices whose secrets are shared train, mask their vectors, and send them; each by itself."""

    def __init__(self, context: RoundContext, request: SecureRoundRequest) -> None:
        super().__init__(context)
        self._request = request
        self._sums: dict[int, MaskedSum] = {}
        self._protocol_s = 0.0

    def members(self, group: int) -> IntArray:
        """Return the devices whose neighbours' shares are in the message."""
        return self.context.cohort.places(self._request.secure[group].devices)

    def take(self, ranked: RankedBlocks, group: int, members: IntArray) -> tuple[RoundCounts, list[StateUpdate]]:
        """Train and mask one device after the other; counted in the open are the devices that are in no sum, and the
        time it took.
        """
        cohort, request, inbox = self.context.cohort, self._request, self._request.secure[group]
        occasion = Occasion(request.server_round, group)
        known = known_of(cohort, occasion, inbox)
        announced = len(known["directory"])
        layout = layout_of(
            cohort.scenario,
            num_devices=announced,
            group=GroupShape.from_ranked(ranked),
            num_classes=len(cohort.fleet.names),
            signals=request.signals,
        )
        masked = MaskedGroup(cohort, occasion, known, layout, inbox=inbox)
        traffic = DeviceBytes.from_sizes(inbox.present.shape[1], layout.num_bytes)
        shared = in_masked_sums(cohort.scenario, find_mechanism(cohort.scenario.privacy.mechanism))
        noise_devices = noise_devices_of(cohort.scenario, announced) if shared else None
        vanishes = vanishing(cohort.scenario, request.server_round, inbox.devices) == DropoutStage.VECTOR
        counts, keeps = self.begin(), list[StateUpdate]()
        for i, lost in enumerate(vanishes.tolist()):
            upload = traffic.upload - traffic.vector if lost else traffic.upload
            terms = ChannelTerms(Traffic(traffic.download, upload, EXCHANGES), noise_devices)
            part = train_members(self.context, ranked, members[i : i + 1], terms)
            sends = not lost and len(part.state_update.places) > 0
            if sends:
                values = dense(part.arrays, len(ranked.items), ranked.layout.embedding_dim)
                if not self.context.contents.release.withheld:
                    values |= {name: getattr(part.counts, name).stacked() for name in ("classes", "clock", "totals")}
                sends = masked.add(i, values | {CHECK: np.ones(1, np.int64)})
            if not sends:  # it does not get as far as to send its vector
                classes, clock = part.counts.classes.without_update(), part.counts.clock.without_update()
                counts += replace(self.begin(), classes=classes, clock=clock)
                continue
            keeps.append(part.state_update)
            counts += replace(self.begin(), slowest_us=part.counts.slowest_us)
        self._sums[group] = masked.finish()
        self._protocol_s += masked.protocol_s
        return counts, keeps

    def reply(self, counts: RoundCounts) -> SecureRoundReply:
        """Masked sums, and what the simulation counts of devices that are in none."""
        return SecureRoundReply(self._sums, counts.classes, counts.clock, counts.slowest_us, self._protocol_s)


def masked_round(cohort: Cohort, request: SecureRoundRequest) -> SecureRoundReply:
    """Stage 3 for the devices of this node."""
    return run_round(MaskedDeviceChannel(RoundContext.from_request(cohort, request), request))
