"""The server's side of a round under privacy: noise on each user group's sums, once, and what becomes of them.

Under secure aggregation the noise is in the sums when they are opened
(:func:`fl_peel.privacy.noise_plan.in_masked_sums`): devices added it in shares. The server then adds none; of user
groups whose sum was not opened nothing is released.

Each device's contribution is bounded; the mean divides by a number that is known beforehand (devices asked, or under
Poisson sampling those expected), as in McMahan et al., "Learning Differentially Private Recurrent Language Models",
ICLR 2018. Noise is on every row and block that was sent, and in every round on every user group, whether any of its
devices took part or not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MessageContext, summed
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, RowOrder
from fl_peel.exchange.release import (
    BUILT_IN,
    SIGNALS,
    GroupShape,
    NamedSums,
    Part,
    Release,
    TrafficPadding,
    bounds,
    find_statistic,
    shapes,
)
from fl_peel.kernels import FIXED_POINT
from fl_peel.privacy.noise_plan import Plan, in_masked_sums, noise_devices_of
from fl_peel.privacy.shrinkage import NoisedSignals, posterior_rate, shrunk, tilted
from fl_peel.privacy.sources import noise, source_of
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.wire import EVERYBODY, Arrays
from strategies.groups.state import UserGroupState, block_energy
from strategies.rounds.contents import ServerContents
from strategies.rounds.federation import Federation, OpenedSum, RoundRecord, SentRound, for_groups

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class GroupRelease:
    """The release of one user group in a round, noise included: sums as floats, and the noise's std."""

    sums: dict[Part, FloatArray]
    std: dict[Part, float]


@dataclass
class PrivateRounds:
    """Noise and clipping over the rounds of one run. plan: None where devices send bounded sums without noise."""

    scenario: Scenario
    plan: Plan | None
    clip_norm: float
    clip_norms: list[float] = field(default_factory=list)

    @staticmethod
    def start(scenario: Scenario, plan: Plan | None) -> PrivateRounds:
        """Return the state before the first round."""
        clipping = scenario.privacy.clipping
        return PrivateRounds(scenario, plan, math.inf if clipping.kind == "none" else clipping.norm)

    @property
    def in_sums(self) -> bool:
        """Whether noise is in the sums when they come."""
        return self.plan is not None and in_masked_sums(self.scenario, self.plan.mechanism)

    def released(
        self, total: NamedSums, server_round: int, group: int, num_devices: float, opened: OpenedSum | None = None
    ) -> GroupRelease:
        """Sums of a user group with noise. num_devices: that add noise of their own, where devices do; opened: whose
        shares of noise are in the sums, where they are.

        The noise is named by round, user group and part alone: not by nodes, nor by who answered.
        """
        plan = self.plan
        sums: dict[Part, FloatArray] = {part: values / FIXED_POINT for part, values in total.items()}
        if plan is None:
            return GroupRelease(sums, dict.fromkeys(total, 0.0))
        limits = bounds(self.scenario, self.clip_norm)
        std = {part: plan.std(part, limits[part]) for part in total}
        if plan.mechanism.where == "device":
            return GroupRelease(sums, {part: value * math.sqrt(num_devices) for part, value in std.items()})
        if self.in_sums:  # shares of the fewest that a sum may be of: of more devices, more noise
            assert opened is not None
            shares = opened.survivors / noise_devices_of(self.scenario, opened.announced)
            return GroupRelease(sums, {part: value * math.sqrt(shares) for part, value in std.items()})
        scales = {part: plan.scale(part, limits[part]) for part in total}
        sizes: dict[Part, tuple[int, ...]] = {part: values.shape for part, values in total.items()}
        identity, source = ("server-noise", server_round, group), source_of(self.scenario)
        drawn = noise(plan.mechanism, scales, sizes, identity, source)
        return GroupRelease({part: (total[part] + drawn[part]) / FIXED_POINT for part in total}, std)

    def end_round(self, quantile: NDArray[np.int64] | None, server_round: int, num_devices: float) -> None:
        """Note this round's bound and move it to the quantile (Andrew et al., NeurIPS 2021, algorithm 1).

        quantile: sum of the indicators over all devices, in units of 1 / FIXED_POINT; one bound for all user groups.
        """
        self.clip_norms.append(self.clip_norm)
        clipping = self.scenario.privacy.clipping
        if clipping.kind != "adaptive" or quantile is None:
            return
        noised = quantile / FIXED_POINT
        if not self.in_sums:  # else every user group's devices have noised theirs
            noised = self.released(NamedSums(quantile=quantile), server_round, EVERYBODY, num_devices).sums["quantile"]
        within = float(noised[0]) / max(num_devices, 1.0) + 0.5
        within = min(max(within, 0.0), 1.0)
        self.clip_norm *= math.exp(-clipping.learning_rate * (within - clipping.quantile))


class NoisedServerContents(ServerContents):
    """Contribution on the server side under privacy: bounded sums are noised once, whether or not any device answered,
    and shrunk towards earlier estimates.

    Where devices add the noise, user groups without a sum stay unchanged. Without a plan there is no noise.
    """

    def __init__(self, federation: Federation, plan: Plan | None) -> None:
        super().__init__(federation, plan)
        self.private = PrivateRounds.start(federation.scenario, plan)
        self._variances = [np.zeros(federation.layout.num_blocks) for _ in federation.states]

    @property
    def clip_norm(self) -> float:
        """Clipping bound of the next round."""
        return self.private.clip_norm

    @property
    def clip_norms(self) -> list[float]:
        """Clipping bounds, one per round."""
        return self.private.clip_norms

    def groups(self, asked: NDArray[np.int32]) -> list[int]:
        """Return all user groups that have devices: noise hides whether a group took part in the round."""
        return super().groups(self.federation.members.groups)

    def expects(self, sent: SentRound, group: int, devices: int) -> MessageContext | None:
        """Return the expected parts: all of them, dense."""
        sizes = GroupShape.from_blocks(self.federation.layout, sent.blocks[group])
        parts = Release.from_scenario(self.federation.scenario, signals=sent.signals).parts
        return MessageContext(arrays={part: summed(*shape) for part, shape in shapes(sizes, parts).items()})

    def take(self, sent: SentRound, sums: Mapping[int, Sequence[Arrays]], opened: Mapping[int, OpenedSum]) -> None:
        """Noise every user group's sums and update its table and statistics; then the bound of the next round."""
        states, layout, scenario = self.federation.states, self.federation.layout, self.federation.scenario
        parts = Release.from_scenario(scenario, signals=sent.signals).parts
        blocks = {group: b for group, b in sent.blocks.items() if not self.private.in_sums or group in opened}
        totals = {
            group: reduce(add, sums.get(group, []), empty_sums(layout, mine, parts)) for group, mine in blocks.items()
        }
        num_devices = self._expected_devices(sent)

        def take(group: int) -> GroupRelease:
            total = NamedSums({part: values for part, values in totals[group].items() if part != "quantile"})
            count = float(num_devices[group])
            release = self.private.released(total, sent.server_round, group, count, opened.get(group))
            take_release(states[group], layout, blocks[group], release, count, scenario)
            take_statistics(states[group], blocks[group], release, count)
            states[group].drop_pages()
            return release

        releases = dict(zip(blocks, for_groups(take, blocks), strict=True))
        if SIGNALS in parts:
            for group, mine in blocks.items():
                momentum = scenario.controller.signal_momentum
                take_signals(states[group], layout, mine, releases[group], float(num_devices[group]), momentum)
                self._variances[group] = momentum**2 * self._variances[group]
                self._variances[group][mine] += releases[group].std["signals"] ** 2
        quantiles = [total["quantile"] for total in totals.values() if "quantile" in total]
        quantile = np.sum(quantiles, axis=0) if quantiles else None
        self.private.end_round(quantile, sent.server_round, float(num_devices.sum()))

    def _expected_devices(self, sent: SentRound) -> NDArray[np.float64]:
        """Return the devices that sums are divided by, (G,): those asked; under Poisson sampling, on average."""
        refinement = self.federation.scenario.refinement
        if refinement.sampling == "fixed":
            return sent.group_sizes.astype(np.float64)
        sizes = np.bincount(self.federation.members.groups, minlength=len(self.federation.states))
        return (refinement.sampling_rate * sizes).astype(np.float64)

    def outer_step(self, controller: Controller) -> float | None:
        """Update the controller on noised signals: only the initial coefficients change, as far as the noise allows."""
        privacy = self.federation.scenario.privacy
        if not (privacy.noised and privacy.shrinkage):
            return super().outer_step(controller)
        tilt(controller, self.federation.all_statistics(), self._variances)
        return None

    def figures(self, sent: SentRound, record: RoundRecord) -> RoundRecord:
        """Return the round's record; where counters are withheld and all transfer the same bytes, these are known."""
        scenario = self.federation.scenario
        release = Release.from_scenario(scenario, signals=sent.signals)
        if not release.withheld:
            return record
        down = up = 0
        for group, blocks in sent.blocks.items():
            each = public_bytes(scenario, self.federation.layout, blocks, release.parts)
            down += each[0] * int(sent.group_sizes[group])
            up += each[1] * int(sent.group_sizes[group])
        return replace(
            record,
            devices=sent.asked - record.failures,
            download_bytes=record.download_bytes + down,
            upload_bytes=record.upload_bytes + up,
        )


def empty_sums(layout: BlockLayout, blocks: NDArray[np.int64], parts: Iterable[Part]) -> NamedSums:
    """Return sums over no devices, for the blocks (K,) that were sent to a user group."""
    return NamedSums.zeros(shapes(GroupShape.from_blocks(layout, blocks), parts))


def take_release(
    state: UserGroupState,
    layout: BlockLayout,
    blocks: NDArray[np.int64],
    release: GroupRelease,
    num_devices: float,
    scenario: Scenario,
) -> None:
    """Change a user group's table and popularity by what was released; num_devices: that the sums are divided by."""
    order = RowOrder.from_blocks(layout, blocks)
    sums, std, shrinks = release.sums, release.std, scenario.privacy.shrinkage
    if num_devices > 0:
        updates = sums["updates"] / num_devices
        if shrinks:
            updates = shrunk(updates, (std["updates"] / num_devices) ** 2)
        sent = np.repeat(order.position < len(blocks), layout.slice_dim, axis=1)  # (R, d)
        updates = np.where(sent, updates, 0.0)
        changed = sent & (updates != 0.0)
        state.optimizer.apply(state.table, order.items, updates.astype(np.float32), changed)
    statistics = state.statistics
    statistics.energy = block_energy(layout, state.table)
    if "counts" in sums:
        _take_counts(state, layout, order, sums["counts"], std["counts"], num_devices)


def take_statistics(
    state: UserGroupState, blocks: NDArray[np.int64], release: GroupRelease, num_devices: float
) -> None:
    """Give the statistics of installed packages what was released of theirs."""
    for part, total in release.sums.items():
        if part not in BUILT_IN:
            state.statistics = copy.deepcopy(state.statistics)  # theirs to change
            find_statistic(part).take(total, release.std[part], num_devices, blocks, state.statistics)


def take_signals(
    state: UserGroupState,
    layout: BlockLayout,
    blocks: NDArray[np.int64],
    release: GroupRelease,
    num_devices: float,
    momentum: float,
) -> None:
    """Give a user group a round's validation signals.

    All ``num_devices`` that were asked count as exposed to all blocks (K,) that were sent: what each of them holds is
    not sent.
    """
    hits, exposure = np.zeros(layout.num_blocks), np.zeros(layout.num_blocks)
    hits[blocks] = release.sums["signals"]
    exposure[blocks] = num_devices * np.repeat(layout.group_sizes, layout.num_slices)[blocks]
    state.statistics.add_signals(hits, exposure, momentum)


def tilt(controller: Controller, statistics: Sequence[BlockStatistics], variances: Sequence[FloatArray]) -> None:
    """The controller's outer step on noised signals of user groups. variances: (B,) of each; added up over slices where
    statistics are of item groups.
    """
    names, mean, std = controller.config.features, controller.mean.numpy(), controller.std.numpy()
    groups = []
    for known, of_blocks in zip(statistics, variances, strict=True):
        seen = known.exposure > 0
        features = ((known.features(names)[seen] - mean) / std).astype(np.float64)
        variance = of_blocks.reshape(len(seen), -1).sum(axis=1)
        groups.append(NoisedSignals(features, known.exposure[seen], known.hits[seen], variance[seen]))
    start = np.zeros(len(names))
    start[0] = float(std[0])  # as a new controller's
    coefficients = tilted([group for group in groups if len(group.hits)], start)
    import torch  # the controller is made of it

    with torch.no_grad():
        controller.start.copy_(torch.from_numpy(coefficients.astype(np.float32)))


def public_bytes(
    scenario: Scenario, layout: BlockLayout, blocks: NDArray[np.int64], parts: tuple[Part, ...]
) -> tuple[int, int]:
    """Bytes down and up of a device that takes part, as far as they are the same for all of its user group; else 0.

    blocks: (K,) that the group was sent.
    """
    ranked = rank_shape(layout, scenario.blocks.precision, blocks)
    hiding = TrafficPadding.from_scenario(scenario, parts)
    everything = np.array([len(blocks)])
    down = int(hiding.download_bytes(ranked, everything)[0]) if hiding.group_prefix else 0
    if not hiding.is_public():
        return down, 0
    return down, int(hiding.update_bytes(ranked, everything, everything)[0]) + hiding.part_bytes(ranked)


def rank_shape(layout: BlockLayout, precision: Precision, blocks: NDArray[np.int64]) -> RankedBlocks:
    """Ranked blocks without content, to count bytes with."""
    order = RowOrder.from_blocks(layout, blocks)
    nothing = np.zeros((len(order.items), 0), np.float32)
    return RankedBlocks(layout, precision, blocks, order.items, nothing, order.position)


def _take_counts(
    state: UserGroupState,
    layout: BlockLayout,
    order: RowOrder,
    counts: FloatArray,
    std: float,
    num_devices: float,
) -> None:
    """Popularity of the blocks that were sent: devices that have an interaction with an item, over all devices."""
    sent = np.unique(layout.item_group[order.items])
    per_group = np.bincount(layout.item_group[order.items], weights=counts, minlength=layout.num_item_groups)[sent]
    sizes = layout.group_sizes[sent]
    blocks = (sent[:, None] * layout.num_slices + np.arange(layout.num_slices)).reshape(-1)
    prior = state.statistics.popularity[blocks].astype(np.float64)
    known = float(state.counted_devices[blocks].mean())
    observed = np.repeat(per_group / sizes, layout.num_slices)
    noise_std = np.repeat(std / np.sqrt(sizes), layout.num_slices)
    rate = posterior_rate(prior, known, observed, num_devices, noise_std)
    popularity = state.statistics.popularity.copy()
    popularity[blocks] = rate
    state.statistics.popularity = popularity
