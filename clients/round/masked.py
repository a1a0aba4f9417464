"""A round of secure aggregation on a node: each of its devices goes through every stage by itself.

A device's vector is what a node that hosted it alone would reply in a round without secure aggregation
(:func:`clients.round.members.train_members`), with an entry for every row it might have touched. Bytes are counted per
device.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from clients.node.cohort import Cohort
from clients.round.channel import DeviceChannel, run_round
from clients.round.contents import StateUpdate
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
from fl_peel.wire import MaskedSum, SecureKeysReply, SecureKeysRequest, SecureRoundReply, SecureRoundRequest


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
