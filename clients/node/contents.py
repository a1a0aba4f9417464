"""Device half of a round's contents: what is bounded, contributed and paid for.

To add one, subclass :class:`DeviceContents` (or one that ships, :class:`OpenDeviceContents`), register it under the
entry point group ``fl_peel.device_contents`` and name it as ``refinement.contribution``.
:class:`clients.node.contracts.DeviceContentsContract` tests it; docs/contents.md has examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import DeviceState
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.release import (
    SIGNALS,
    NamedSums,
    Release,
    TrafficPadding,
    TrainedDevices,
    bounded_sums,
    bounds,
    shares_of,
)
from fl_peel.mmap_arrays import put_rows
from fl_peel.privacy.mechanisms import Mechanism, find_mechanism
from fl_peel.privacy.noise_plan import in_masked_sums
from fl_peel.privacy.sources import source_of, with_device_noise, with_noise_shares
from fl_peel.randomness import device_seeds
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.group import signals_of_group, train_group
from fl_peel.training.update import GroupUpdate, LocalWork, holders_of
from fl_peel.wire import Arrays, RoundRequest


@dataclass(frozen=True)
class StateUpdate:
    """The state that stays on the devices. places (M,) of those that count, users (M, d) their new user embeddings;
    reached: places (N,) of all that were reached, blocks (N,) how many they hold in the end.
    """

    places: IntArray
    users: NDArray[np.float32]
    reached: IntArray
    blocks: IntArray

    @staticmethod
    def joined(parts: Sequence[StateUpdate]) -> StateUpdate:
        """Join the updates of disjoint sets of devices, one set at least."""
        names = ("places", "users", "reached", "blocks")
        return StateUpdate(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def remember(self, state: DeviceState) -> None:
        put_rows(state.users, self.places, stored_user(self.users))
        state.kept_blocks[self.reached] = self.blocks


@dataclass(frozen=True)
class MembersReply:
    """The reply of some devices. arrays: their contribution; no arrays mean no contribution."""

    arrays: Arrays
    counts: RoundCounts
    state_update: StateUpdate


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
        """Return how devices train: each update is bounded as the scenario asks, by the device and by its node."""
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
        """Return what devices transfer beyond what they need, so that sizes tell nothing; None: nothing is hidden."""
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


class OpenDeviceContents(DeviceContents):
    """Contribution of devices in the clear; arrays as in a :class:`fl_peel.wire.RoundReply`."""

    def contribution(self, ranked: RankedBlocks, trained: TrainedDevices, noise_devices: int | None = None) -> Arrays:
        """Return row updates with their counts and losses; in rounds with signals also hits, shown and exposed."""
        arrays = update_arrays(trained.update)
        if trained.best is None or not self.release.signals:
            return arrays
        hits, shown = signals_of_group(ranked, trained.cutoffs, trained.users, trained.best, trained.validation)
        return arrays | {"hits": hits, "shown": shown, "exposed": holders_of(trained.cutoffs, len(ranked.blocks))}


def update_arrays(update: GroupUpdate) -> Arrays:
    """The arrays of block updates."""
    changed = update.changed()
    rows = changed["rows"]
    return {
        **changed,
        "touched": update.touched[rows].astype(np.int32),
        "row_loss": update.row_loss[rows],
        "row_examples": update.row_examples[rows].astype(np.int32),
        "holders": update.holders.astype(np.int32),
    }


class BoundedDeviceContents(DeviceContents):
    """Contribution of devices under privacy: the release's parts; counters only where the scenario says so."""

    def hiding(self) -> TrafficPadding | None:
        """Return the padding that hides what a device changed: unchanged rows, further blocks, dense parts."""
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


BY_ROW = ("rows", "sums", "touched", "row_loss", "row_examples")
WIDE = ("wide_rows", "wide_sums")
BY_BLOCK = ("holders", "hits", "shown", "exposed")


class BucketedDeviceContents(OpenDeviceContents):
    """The open contribution, bucket by bucket: devices of a user group are hashed by identity into buckets, whose sums
    are sent one by one. A bucket depends on neither the round nor the node. The server sees sums over fewer devices: a
    trade of privacy for robustness.
    """

    def parts(self, devices: IntArray) -> dict[int, NDArray[np.bool_]]:
        buckets = buckets_of(self.scenario, devices)
        return {number: buckets == number for number in np.unique(buckets).tolist()}

    def joined(self, replies: dict[int, MembersReply]) -> MembersReply:
        arrays = {number: reply.arrays for number, reply in replies.items()}
        return MembersReply(
            merged_arrays(arrays, self.scenario.refinement.aggregation.robust.buckets),
            reduce(add, (reply.counts for reply in replies.values())),
            StateUpdate.joined([reply.state_update for reply in replies.values()]),
        )


def buckets_of(scenario: Scenario, devices: IntArray) -> IntArray:
    """Bucket of each device, (N,)."""
    count = scenario.refinement.aggregation.robust.buckets
    seeds = device_seeds(scenario.seed, "buckets", devices=devices)
    return np.asarray(seeds % np.uint64(count)).astype(np.int64)


def merged_arrays(parts: dict[int, Arrays], num_buckets: int) -> Arrays:
    """Merge the arrays of buckets: row arrays one bucket after the other, with buckets (T,) and wide_buckets (W,) for
    the bucket of each row; sums over the buckets of per-block arrays (K,); bucket_holders (num_buckets, K).
    """
    replies = list(parts.values())
    merged: Arrays = {name: np.concatenate([reply[name] for reply in replies]) for name in (*BY_ROW, *WIDE)}
    merged["buckets"] = _numbers(parts, "rows")
    merged["wide_buckets"] = _numbers(parts, "wide_rows")
    for name in BY_BLOCK:
        if name in replies[0]:
            merged[name] = np.sum([reply[name] for reply in replies], axis=0, dtype=replies[0][name].dtype)
    merged["bucket_holders"] = np.zeros((num_buckets, len(replies[0]["holders"])), np.int32)
    for number, reply in parts.items():
        merged["bucket_holders"][number] = reply["holders"]
    return merged


def _numbers(parts: dict[int, Arrays], name: str) -> NDArray[np.int32]:
    return np.repeat(list(parts), [len(reply[name]) for reply in parts.values()]).astype(np.int32)
