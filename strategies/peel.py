"""PeelStrategy: the server's side of stage 2, on Flower's Message API.

PEEL (arXiv 2306.10532), section III-C. In each round every user group's ranked blocks go to the nodes that host
sampled devices of that group; what comes back are sums, which become a new group table (block-wise aggregation) and a
step of the controller (outer level). Flower's own loop, ``Strategy.start``, drives the rounds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks import BlockLayout
from fl_peel.config import Scenario
from fl_peel.controller import Controller
from fl_peel.events import Event, OnEvent, silent
from fl_peel.precision import Precision
from fl_peel.privacy.plan import Part, Plan, released, shares_of
from fl_peel.privacy.releases import Sums
from fl_peel.ranking import SUM_SCALE
from fl_peel.selection import RowOrder, pack_ranking
from fl_peel.selectors import block_weights
from strategies.aggregation import BlockSums
from strategies.groups import UserGroupState
from strategies.nodes import Nodes, failure
from strategies.private_sums import (
    GroupRelease,
    PrivateRounds,
    empty_sums,
    public_bytes,
    take_release,
    take_signals,
    tilt,
)
from strategies.robust import add_statistics, by_bucket
from strategies.sampling import sample_cohort
from strategies.secure_rounds import SecureRounds, raise_or_log

logger = logging.getLogger("fl_peel")
Result = TypeVar("Result")
MESSAGE_BYTES = 16 << 20
"""Of blocks, in one message to a node. A node gets at most about ten messages a second, so not too few."""


@dataclass(frozen=True)
class Members:
    """Who is where: devices (N,) ascending, their user groups (N,), and each group's largest budget (G,)."""

    devices: NDArray[np.int64]
    groups: NDArray[np.int32]
    ceilings: NDArray[np.int64]
    class_names: tuple[str, ...]


@dataclass
class RoundRecord:
    """What one round did; bytes are summed over its devices."""

    server_round: int
    devices: int
    failures: int
    seconds: float
    download_bytes: int
    upload_bytes: int
    message_bytes: int
    loss: float | None
    recall: float | None
    ndcg: float | None
    controller_loss: float | None
    classes: NDArray[np.int64]
    """(C, len(ClassColumn)) sums per device class."""
    clock: NDArray[np.int64]
    """(C, len(ClockColumn)) likewise."""
    virtual_seconds: float
    traces: NDArray[np.int64] = field(repr=False)


class PeelStrategy(Strategy):
    """Per-group rounds: send ranked blocks, add up block updates, aggregate block by block, step the controller."""

    def __init__(
        self,
        scenario: Scenario,
        setting: wire.Setting,
        layout: BlockLayout,
        states: list[UserGroupState],
        members: Members,
        nodes: Nodes,
        *,
        temperature: float,
        traced: NDArray[np.int64],
        on_event: OnEvent = silent,
        plan: Plan | None = None,
    ) -> None:
        self.scenario = scenario
        self.setting = setting
        self.layout = layout
        self.states = states
        self.members = members
        self.nodes = nodes
        self.controller = Controller.for_statistics(
            [state.statistics for state in states], scenario.controller.config(), seed=scenario.seed
        )
        self.rounds: list[RoundRecord] = []
        self.secure: SecureRounds | None = None
        if scenario.secure_aggregation.enabled:
            self.secure = SecureRounds(scenario, setting, layout, len(members.class_names), nodes)
        self.private = PrivateRounds.start(scenario, plan)
        self._temperature = temperature
        self._traced = traced
        self._on_event = on_event
        self._sent: dict[int, NDArray[np.int64]] = {}
        self._asked = 0
        self._group_sizes = np.zeros(len(states), np.int64)
        self._signal_variances = [np.zeros(layout.num_blocks) for _ in states]
        self._started = 0.0
        self._message_bytes = 0

    def summary(self) -> None:
        """Log what will run."""
        logger.info(
            "PEEL: %d devices in %d user groups, %d blocks, %d rounds",
            len(self.members.devices),
            len(self.states),
            self.layout.num_blocks,
            self.scenario.refinement.rounds,
        )

    def weights(self, selector: str) -> list[NDArray[np.float64]]:
        """Block weights (B,) of every user group under a selector."""
        return self._for_groups(lambda group: self._weights(group, selector), range(len(self.states)))

    def _weights(self, group: int, selector: str) -> NDArray[np.float64]:
        statistics = self.states[group].statistics
        return block_weights(selector, statistics, self.controller, seed=self.scenario.seed, user_group=group)

    def _for_groups(self, work: Callable[[int], Result], groups: Iterable[int]) -> list[Result]:
        """Do work for each user group, two at a time: nodes wait meanwhile, and compiled loops run side by side."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            return list(pool.map(work, groups))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """To each node its sampled devices and the ranked blocks of their user groups; large ones in several messages.

        Nodes train the first groups while the server packs the next, and neither side holds all of a round at once.
        """
        self._started = time.perf_counter()
        scenario, members = self.scenario, self.members
        cohort = self.cohort(server_round)
        groups = members.groups[np.searchsorted(members.devices, cohort)]
        if self.secure is not None:
            cohort = self.secure.drawn(server_round, cohort, groups)
            groups = members.groups[np.searchsorted(members.devices, cohort)]
        self._group_sizes = np.bincount(groups, minlength=len(self.states))
        self._sent, self._asked, self._message_bytes = {}, len(cohort), 0
        if self.secure is not None:
            cohort = self.secure.begin(server_round, cohort)
            groups = members.groups[np.searchsorted(members.devices, cohort)]
        hosts = cohort % len(self.nodes.ids)

        def pack(group: int) -> wire.Arrays:
            table, ceiling = self.states[group].table, int(members.ceilings[group])
            weights = self._weights(group, scenario.selector)
            packed = pack_ranking(self.layout, scenario.blocks.precision, weights, table, ceiling)
            self._sent[group] = packed["blocks"].astype(np.int64)
            return wire.packed_once(packed)

        # under privacy noise hides whether a user group was in the round: every one of them is
        for batch in self._batches(np.unique(members.groups if scenario.privacy.sums_only else groups).tolist()):
            payloads = dict(zip(batch, self._for_groups(pack, batch), strict=True))

            def request(partition: int, payloads: dict[int, wire.Arrays] = payloads) -> wire.RoundRequest | None:
                mine = (hosts == partition) & np.isin(groups, list(payloads))
                if not mine.any():
                    return None
                here = {group: payloads[group] for group in np.unique(groups[mine]).tolist()}
                base = wire.RoundRequest(
                    self.setting.scenario,
                    self.setting.data_dir,
                    self.setting.run_dir,
                    server_round,
                    self._signals(server_round),
                    self._temperature,
                    cohort[mine],
                    self._traced,
                    here,
                    clip_norm=self.private.clip_norm,
                    noise_multiplier=self.private.noise_multiplier,
                )
                return base if self.secure is None else self.secure.request(base)

            kind = wire.ROUND if self.secure is None else wire.SECURE_ROUND
            for message in self.nodes.messages(kind, request):
                self._message_bytes += _size(message)
                yield message

    def cohort(self, server_round: int) -> NDArray[np.int64]:
        """Devices that are asked to take part in a round, ascending."""
        refinement = self.scenario.refinement
        share = refinement.cohort_share * (1 + refinement.over_selection)
        poisson = refinement.sampling == "poisson"
        return sample_cohort(self.scenario.seed, server_round, self.members.devices, share, poisson=poisson)

    def _signals(self, server_round: int) -> bool:
        return server_round % self.scenario.controller.every == 0

    def _batches(self, groups: list[int]) -> list[list[int]]:
        """User groups whose blocks go into one message: about ``MESSAGE_BYTES`` of them, one group at least."""
        whole = int(self.layout.block_bytes(self.scenario.blocks.precision).sum())
        batches: list[list[int]] = []
        size = 0
        for group in groups:
            mine = min(whole, int(self.members.ceilings[group]))
            if not batches or size + mine > MESSAGE_BYTES:
                batches.append([])
                size = 0
            batches[-1].append(group)
            size += mine
        return batches

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the nodes' sums, update every group's table, take the controller's outer step."""
        contents: dict[int, list[wire.Arrays]] = {}
        sums = np.zeros(5, np.int64)  # trained, loss, recall, ndcg, evaluated
        classes = np.zeros((len(self.members.class_names), len(wire.ClassColumn)), np.int64)
        clock = np.zeros((len(self.members.class_names), len(wire.ClockColumn)), np.int64)
        slowest_us = 0
        traces = []
        # sums are integers: the order in which replies come does not matter
        for reply in self._received(server_round, replies):
            sums += [reply.trained, reply.loss, reply.recall, reply.ndcg, reply.evaluated]
            classes += reply.classes
            clock += reply.clock
            slowest_us = max(slowest_us, reply.slowest_us)
            traces.append(reply.traces)
            for group, content in reply.groups.items():
                contents.setdefault(group, []).append(content)
        if self.scenario.privacy.sums_only:
            self._take_private(server_round, contents)
        else:
            self._for_groups(lambda group: self._take(group, contents[group]), contents)
        controller_loss = self._outer_step(server_round)
        trained, loss, recall, ndcg, evaluated = sums.tolist()
        failures = self._asked - int(clock[:, wire.ClockColumn.SAMPLED].sum())  # devices of nodes that did not answer
        record = RoundRecord(
            server_round,
            int(classes[:, wire.ClassColumn.DEVICES].sum()),
            failures,
            time.perf_counter() - self._started,
            int(classes[:, wire.ClassColumn.DOWNLOAD].sum()),
            int(classes[:, wire.ClassColumn.UPLOAD].sum()),
            self._message_bytes,
            loss / SUM_SCALE / max(trained, 1) if trained or not self.scenario.privacy.sums_only else None,
            recall / SUM_SCALE / evaluated if evaluated else None,
            ndcg / SUM_SCALE / evaluated if evaluated else None,
            controller_loss,
            classes,
            clock,
            self._virtual_seconds(clock, slowest_us),
            np.concatenate(traces) if traces else np.zeros((0, 5), np.int64),
        )
        self._count_public_bytes(record)
        self.rounds.append(record)
        speed = (record.devices or self._asked) / record.seconds
        left_s = record.seconds * (self.scenario.refinement.rounds - server_round)
        text = f"{speed:,.0f} devices/s, {left_s:.0f} s left" + (
            f", validation recall@20 {record.recall:.4f}" if record.recall else ""
        )
        self._on_event(Event("refinement", server_round, self.scenario.refinement.rounds, text))
        return None, None

    def _received(self, server_round: int, replies: Iterable[Message]) -> Iterable[wire.RoundReply]:
        """The nodes' sums; with secure aggregation the one sum over all of them."""
        if self.secure is None:
            return self._unpacked(server_round, replies, wire.RoundReply)
        return self.secure.end(server_round, self._unpacked(server_round, replies, wire.SecureRoundReply), self._sent)

    def _unpacked(self, server_round: int, replies: Iterable[Message], kind: type[Result]) -> Iterable[Result]:
        for message in replies:
            if message.has_error():
                # a mistake that every node would make in every round ends the run
                raise_or_log(failure(message, f"node {self.nodes.partition(message)}, round {server_round}"))
                continue
            self._message_bytes += _size(message)
            yield wire.unpack(kind, message.content)

    def _virtual_seconds(self, clock: NDArray[np.int64], slowest_us: int) -> float:
        """The server waits for the slowest device that is in time, or until the deadline when some are not."""
        deadline_s = self.scenario.refinement.deadline_s
        late = clock[:, wire.ClockColumn.STRAGGLERS].any()
        return deadline_s if deadline_s is not None and late else slowest_us / 1e6

    def _take(self, group: int, contents: list[wire.Arrays]) -> None:
        """Add up what nodes returned for a user group and change its table and statistics."""
        blocks, layout = self._sent[group], self.layout
        num_rows = len(RowOrder.of(layout, blocks).items)
        total = BlockSums.zeros(num_rows, layout.num_slices, layout.embedding_dim, len(blocks))
        robust, buckets = self.scenario.refinement.aggregation.robust, None
        if robust.in_buckets:
            buckets = by_bucket(contents, robust.buckets, total)
            add_statistics(total, contents, buckets)
        else:
            for content in contents:
                total.add(content)
        self.states[group].take(layout, blocks, total, self.scenario, buckets)

    def _take_private(self, server_round: int, contents: dict[int, list[wire.Arrays]]) -> None:
        """Noise every user group's sums, whether anybody answered or not, and change its table and statistics.

        Where noise is in the sums already, user groups without a sum stay as they are.
        """
        parts = self._parts(server_round)
        totals: dict[int, Sums] = {}
        opened = self.secure.opened if self.secure is not None else {}
        sent = {group: blocks for group, blocks in self._sent.items() if not self.private.in_sums or group in opened}
        for group, blocks in sent.items():
            total = empty_sums(self.layout, blocks, parts)
            for content in contents.get(group, []):
                for part in parts:
                    total[part] += content[part]
            totals[group] = total
        num_devices = self._expected_devices()

        def take(group: int) -> GroupRelease:
            total: Sums = {part: values for part, values in totals[group].items() if part != "quantile"}
            count = float(num_devices[group])
            release = self.private.released(total, server_round, group, count, opened.get(group))
            take_release(self.states[group], self.layout, self._sent[group], release, count, self.scenario)
            return release

        releases = dict(zip(sent, self._for_groups(take, sent), strict=True))
        if "signals" in parts:
            for group, blocks in sent.items():
                count, known = float(num_devices[group]), self._signal_variances[group]
                self._signal_variances[group] = take_signals(
                    self.states[group], self.layout, blocks, releases[group], count, known, self.scenario
                )
        quantiles = [total["quantile"] for total in totals.values() if "quantile" in total]
        quantile = np.sum(quantiles, axis=0) if quantiles else None
        self.private.end_round(quantile, server_round, float(num_devices.sum()))

    def _parts(self, server_round: int) -> tuple[Part, ...]:
        """What devices send in a round under privacy."""
        signals = self._signals(server_round)
        if self.scenario.privacy.noised:
            return released(shares_of(self.scenario), signals=signals)
        return ("updates", "signals") if signals else ("updates",)

    def _expected_devices(self) -> NDArray[np.float64]:
        """Devices of each user group that sums are divided by, (G,): those asked; under Poisson sampling, whose
        outcome is secret, those that are asked on average.
        """
        refinement = self.scenario.refinement
        if refinement.sampling == "fixed":
            return self._group_sizes.astype(np.float64)
        share = min(1.0, refinement.cohort_share * (1 + refinement.over_selection))
        sizes = np.bincount(self.members.groups, minlength=len(self.states))
        return (share * sizes).astype(np.float64)

    def _count_public_bytes(self, record: RoundRecord) -> None:
        """Where devices withhold their counters but what they move is the same for all, the server knows it anyway."""
        privacy = self.scenario.privacy
        if not privacy.sums_only or privacy.counters == "measured":
            return
        record.devices = self._asked - record.failures
        parts = self._parts(record.server_round)
        for group, blocks in self._sent.items():
            down, up = public_bytes(self.scenario, self.layout, blocks, parts)
            record.download_bytes += down * int(self._group_sizes[group])
            record.upload_bytes += up * int(self._group_sizes[group])

    def _outer_step(self, server_round: int) -> float | None:
        if self.scenario.selector != "controller" and "controller" not in self.scenario.evaluation.selectors:
            return None
        if server_round % self.scenario.controller.every:
            return None
        privacy = self.scenario.privacy
        if privacy.noised and privacy.shrinkage:
            tilt(self.controller, self.states, self._signal_variances)
            return None
        loss = self.controller.outer_step([state.statistics for state in self.states])
        return loss if np.isfinite(loss) else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing each round: validation figures come back with training, the test is looked at once."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing to add up."""
        return None

    def evaluate(
        self,
        budgets: list[int],
        *,
        precision: Precision,
        selector: str,
        split: str = "test",
        everybody: NDArray[np.float32] | None = None,
        label: str = "",
        artifacts: NDArray[np.int64] | None = None,
        message_bytes: int = 128 << 20,
        factors: Sequence[float] | None = None,
        rooms: Sequence[float] | None = None,
    ) -> wire.EvaluateReply:
        """Every device ranks all items under each budget (bytes, UNLIMITED or OWN_BUDGET).

        factors, rooms: one a budget, see :class:`fl_peel.wire.EvaluateRequest`; without them 1 and -1.

        everybody: a table (I, d) that serves all devices, whole, instead of their user groups' own.
        Groups are sent in batches of about ``message_bytes``.
        """
        layout = self.layout
        whole = wire.UNLIMITED in budgets
        limits = [budget for budget in budgets if budget >= 0]
        if wire.OWN_BUDGET in budgets:
            limits.append(int(self.members.ceilings.max()))
        # devices skip blocks they never need, so they reach further down the list than their budget alone would
        reach = None if whole else int(1.25 * max(limits))
        total: wire.EvaluateReply | None = None
        batch: dict[int, wire.Arrays] = {}
        size = 0
        tables = {group: state.table for group, state in enumerate(self.states)}
        weights = self.weights(selector) if everybody is None else [np.arange(layout.num_blocks, 0, -1.0)]
        if everybody is not None:
            tables = {wire.EVERYBODY: everybody}
        for i, (group, table) in enumerate(tables.items()):
            packed = pack_ranking(layout, precision, weights[i], table, reach)
            size += sum(array.nbytes for array in packed.values())
            batch[group] = wire.packed_once(packed)
            if size >= message_bytes or i == len(tables) - 1:
                request = self._evaluation(batch, budgets, precision, split, label, artifacts, factors, rooms)
                total = self._evaluated(request, total)
                batch, size = {}, 0
        assert total is not None
        return total

    def _evaluated(self, request: wire.EvaluateRequest, total: wire.EvaluateReply | None) -> wire.EvaluateReply:
        """Ask all nodes, and add their answers to ``total``."""
        for reply in self.nodes.ask(wire.EVALUATE, wire.EvaluateReply, lambda partition: request):
            total = _merged(total, reply)
        assert total is not None
        return total

    def _evaluation(
        self,
        groups: dict[int, wire.Arrays],
        budgets: list[int],
        precision: Precision,
        split: str,
        label: str,
        artifacts: NDArray[np.int64] | None,
        factors: Sequence[float] | None,
        rooms: Sequence[float] | None,
    ) -> wire.EvaluateRequest:
        return wire.EvaluateRequest(
            self.setting.scenario,
            self.setting.data_dir,
            self.setting.run_dir,
            self.scenario.refinement.rounds,
            precision,
            split,
            label,
            np.array(budgets, np.int64),
            np.array(factors if factors is not None else [1.0] * len(budgets), np.float64),
            np.array(rooms if rooms is not None else [-1.0] * len(budgets), np.float64),
            np.zeros(0, np.int64) if artifacts is None else artifacts,
            groups,
        )


def _merged(a: wire.EvaluateReply | None, b: wire.EvaluateReply) -> wire.EvaluateReply:
    if a is None:
        return b
    groups = max(a.recall.shape[2], b.recall.shape[2])

    def wide(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.pad(values, ((0, 0), (0, 0), (0, groups - values.shape[2])))

    return wire.EvaluateReply(
        wide(a.recall) + wide(b.recall),
        wide(a.ndcg) + wide(b.ndcg),
        wide(a.devices) + wide(b.devices),
        np.maximum(a.stored_max, b.stored_max),
        *(a.owned + b.owned, a.histogram + b.histogram, a.histogram_sums + b.histogram_sums),
    )


def _size(message: Message) -> int:
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())


__all__ = ["Members", "PeelStrategy", "RoundRecord"]
