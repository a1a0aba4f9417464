"""PeelStrategy: the server's side of stage 2, on Flower's Message API.

PEEL (arXiv 2306.10532), section III-C. In each round every user group's ranked blocks go to the nodes that host
sampled devices of that group; what comes back are sums, which become a new group table (block-wise aggregation) and a
step of the controller (outer level). Flower's own loop, ``Strategy.start``, drives the rounds.

How sums meet is the channel's (:mod:`strategies.rounds.federation`), what they are and become the contents'
(:mod:`strategies.rounds.contents`); both are chosen once, in :mod:`strategies.run.refinement`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import SUM_SCALE
from fl_peel.events import Event, OnEvent, silent
from fl_peel.exchange.counters import RoundCounts
from fl_peel.exchange.release import wants_signals
from fl_peel.privacy.sources import NoiseSource, SeededNoise, source_of
from fl_peel.randomness import device_uniforms
from fl_peel.weighting.selectors import block_weights, of_slices
from strategies.nodes import NodeReply, NodeRequest, batches, raise_or_log
from strategies.rounds.contents import ServerContents
from strategies.rounds.federation import Federation, Request, RoundRecord, SentRound, ServerChannel, for_groups

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller


def sample_cohort(
    seed: int,
    server_round: int,
    devices: NDArray[np.int64],
    share: float,
    *,
    poisson: bool = False,
    source: NoiseSource | None = None,
) -> NDArray[np.int64]:
    """A share of the devices (at least one), in ascending order; poisson: each by its own coin, maybe none at all.
    source: of these coins, where they are to hide who takes part; by default the seed.

    Every device draws a number that depends on the seed, the round and itself; the smallest are in. So the choice does
    not depend on the order of devices or on the nodes that host them.
    """
    if poisson:
        coins = (source or SeededNoise(seed)).uniforms(("cohort", server_round), devices)
        return np.sort(devices[coins < share])
    size = max(1, round(share * len(devices)))
    if size >= len(devices):
        return np.sort(devices)
    draws = device_uniforms(seed, "cohort", server_round, devices=devices)
    return np.sort(devices[np.lexsort((devices, draws))[:size]])


logger = logging.getLogger("fl_peel")
MESSAGE_BYTES = 16 << 20
"""Bytes of blocks in one message to a node. A node receives at most about ten messages a second, so the messages must
not be too small.
"""


class PeelStrategy(Strategy):
    """Per-group rounds: send ranked blocks, add up contributions, aggregate, step the controller.

    rounds: what each did. traced: devices whose budgets and kept blocks the report shows (simulation only).
    after_round: gets the number of each round that is done; completed_rounds: rounds that were, before this process;
    changed: where somebody wants to know, the rows (G, I) of item tables that rounds may have changed.
    """

    def __init__(
        self,
        federation: Federation,
        channel: ServerChannel,
        contents: ServerContents,
        *,
        traced: NDArray[np.int64],
        on_event: OnEvent = silent,
    ) -> None:
        self.federation = federation
        self.scenario, self.setting, self.layout = federation.scenario, federation.setting, federation.layout
        self.states, self.members, self.nodes = federation.states, federation.members, federation.nodes
        self.channel = channel
        self.contents = contents
        from fl_peel.weighting.controller import Controller  # with torch, of which nodes' first answers need nothing

        self.controller: Controller = Controller.for_statistics(
            federation.all_statistics(), self.scenario.controller.config(), seed=self.scenario.seed
        )
        self.rounds: list[RoundRecord] = []
        self.after_round: Callable[[int], None] = lambda server_round: None
        self.completed_rounds = 0
        self.changed: NDArray[np.bool_] | None = None
        self._traced = traced
        self._on_event = on_event
        self._sent = SentRound(0, False, 0, np.zeros(len(self.states), np.int64))
        self._started = 0.0
        self._message_bytes = 0
        self._unanswered: Counter[int] = Counter()
        """Nodes that were asked about a user group, and whose answer has not come yet."""

    def summary(self) -> None:
        logger.info(
            "PEEL: %d devices in %d user groups, %d blocks, %d rounds",
            len(self.members.devices),
            len(self.states),
            self.layout.num_blocks,
            self.scenario.refinement.rounds,
        )

    def weights(self, selector: str) -> list[NDArray[np.float64]]:
        """Block weights (B,) of every user group under a selector."""
        return for_groups(lambda group: self._weights(group, selector), range(len(self.states)))

    def _weights(self, group: int, selector: str) -> NDArray[np.float64]:
        statistics = self.federation.statistics(group)
        weights = block_weights(selector, statistics, self.controller, seed=self.scenario.seed, user_group=group)
        return of_slices(weights, self.states[group].statistics.shown)

    def cohort(self, server_round: int) -> NDArray[np.int64]:
        refinement = self.scenario.refinement
        poisson = refinement.sampling == "poisson"
        devices, rate = self.members.devices, refinement.sampling_rate
        seed, source = self.scenario.seed, source_of(self.scenario)
        return sample_cohort(seed, server_round, devices, rate, poisson=poisson, source=source)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each node its sampled devices and the ranked blocks of their user groups; large ones in several
        messages.

        Nodes train the first groups while the server packs the next, and neither side holds all of a round at once.
        """
        if server_round <= self.completed_rounds:
            return
        self._started, self._message_bytes = time.perf_counter(), 0
        now = self.federation.begin + server_round
        devices = self.channel.begin(now, self.cohort(now))
        sizes = np.bincount(self.members.groups_of(devices.asked), minlength=len(self.states))
        signals = server_round % self.scenario.controller.every == 0
        self._sent = SentRound(server_round, signals, len(devices.asked), sizes)
        cohort = self.channel.counted(self._sent, devices.ready, self._requests)
        self.nodes.begin()
        groups, hosts = self.members.groups_of(cohort), self.nodes.partitions_of(cohort)
        self._unanswered = Counter((np.unique(groups * len(self.nodes.ids) + hosts) // len(self.nodes.ids)).tolist())
        for request in self._requests(cohort):

            def content(partition: int, request: Request = request) -> NodeRequest | None:
                plain = request(partition)
                if plain is None:
                    return None
                known = self.channel.known(self._sent, plain, self.contents.expects)
                return NodeRequest(self.channel.message(plain), known, plain.groups.keys())

            for message in self.nodes.messages(self.channel.kind, content):
                self._message_bytes += _size(message)
                yield message

    def _requests(self, devices: NDArray[np.int64]) -> Iterator[Request]:
        """Yield, for each batch of user groups, the function from a partition to what its node is asked of these
        devices (N,), None where it hosts none of them.
        """
        groups, hosts = self.members.groups_of(devices), self.nodes.partitions_of(devices)
        for batch in batches(self.contents.groups(groups), self._num_bytes, MESSAGE_BYTES):
            payloads = dict(zip(batch, for_groups(self._packed, batch), strict=True))

            def request(partition: int, payloads: dict[int, wire.Arrays] = payloads) -> wire.RoundRequest | None:
                mine = (hosts == partition) & np.isin(groups, list(payloads))
                if not mine.any():
                    return None
                return wire.RoundRequest(
                    self.setting,
                    self.federation.begin + self._sent.server_round,
                    self._sent.signals,
                    self.federation.temperature,
                    devices[mine],
                    self._traced,
                    {group: payloads[group] for group in np.unique(groups[mine]).tolist()},
                    clip_norm=self.contents.clip_norm,
                    noise_multiplier=self.contents.noise_multiplier,
                )

            yield request

    def _packed(self, group: int) -> wire.Arrays:
        """A user group's ranked blocks, as many as its largest budget holds."""
        ceiling, weights = int(self.members.ceilings[group]), self._weights(group, self.scenario.selector)
        packed = self.states[group].packed(self.layout, self.scenario.blocks.precision, weights, ceiling)
        self._sent.blocks[group] = packed["blocks"].astype(np.int64)
        return wire.packed_once(packed)

    def _num_bytes(self, group: int) -> int:
        """About what a user group's ranked blocks take, before they are packed."""
        whole = int(self.layout.block_bytes(self.scenario.blocks.precision).sum())
        return min(whole, int(self.members.ceilings[group]))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the nodes' sums, let the contents change tables, take the controller's outer step."""
        if server_round <= self.completed_rounds:
            return None, None
        sums: dict[int, list[wire.Arrays]] = {}
        counts = RoundCounts.nothing(self.federation.num_classes)
        # sums are integers: the order in which replies come does not matter
        for reply in self.channel.collect(self._sent, self._received(replies)):
            counts += reply.counts
            for group, content in reply.groups.items():
                sums.setdefault(group, []).append(content)
            if self.contents.aggregates_incrementally:
                whole = {group: sums.pop(group) for group in list(sums) if not self._unanswered[group]}
                self._take(whole, whole)
        self._take(sums, sums if self.contents.aggregates_incrementally else self._sent.blocks)
        learns = wants_signals(self.scenario) and self._sent.signals
        controller_loss = self.contents.outer_step(self.controller) if learns else None
        record = self.contents.figures(self._sent, self._record(server_round, counts, controller_loss))
        self.rounds.append(record)
        figures = record.figures(self._sent.asked)
        left_s = record.seconds * (self.scenario.refinement.rounds - server_round)
        text = f"{figures['refinement/devices_per_second']:,.0f} devices/s, {left_s:.0f} s left" + (
            f", validation recall@20 {record.recall:.4f}" if record.recall else ""
        )
        self._on_event(Event("refinement", server_round, self.scenario.refinement.rounds, text, figures))
        self.after_round(server_round)
        return None, None

    def _take(self, sums: dict[int, list[wire.Arrays]], groups: Iterable[int]) -> None:
        """Let the contents change tables. groups: of which some rows may change."""
        self.contents.take(self._sent, sums, self.channel.opened)
        if self.changed is not None:
            for group in groups:
                rows = self.contents.may_change(group, self._sent.blocks[group], sums.get(group, ()))
                self.changed[group, rows] = True

    def _received(self, replies: Iterable[Message]) -> Iterable[Any]:
        """Yield the replies of nodes; a node that failed, or sent what it cannot have to contribute, is left out."""

        def counted() -> Iterator[Message]:
            for message in replies:
                if not message.has_error():
                    self._message_bytes += _size(message)
                yield message

        failed = []
        answers = 0
        node_replies: Iterator[NodeReply[Any]] = self.nodes.answers(self.channel.kind, counted())
        for answer in node_replies:
            self._unanswered.subtract(answer.about)
            if answer.error is None:
                answers += 1
                yield answer.reply
            else:
                failed.append(answer.error)
        # a mistake that every node would make in every round ends the run
        raise_or_log(failed, nobody=not answers)

    def _record(self, server_round: int, counts: RoundCounts, controller_loss: float | None) -> RoundRecord:
        totals, classes = counts.totals, counts.classes.total()
        trained, evaluated = int(totals.trained), int(totals.evaluated)
        return RoundRecord(
            server_round,
            int(classes.devices),
            self._sent.asked - int(counts.clock.sampled.sum()),  # devices of nodes that did not answer
            time.perf_counter() - self._started,
            int(classes.download_bytes),
            int(classes.upload_bytes),
            self._message_bytes,
            int(totals.loss) / SUM_SCALE / trained if trained else None,
            int(totals.recall) / SUM_SCALE / evaluated if evaluated else None,
            int(totals.ndcg) / SUM_SCALE / evaluated if evaluated else None,
            controller_loss,
            counts.classes,
            counts.clock,
            self._virtual_seconds(counts),
            counts.traces,
        )

    def _virtual_seconds(self, counts: RoundCounts) -> float:
        """The server waits for the slowest device that is in time, or until the deadline when some are not."""
        deadline_s = self.scenario.refinement.deadline_s
        late = counts.clock.stragglers.any()
        return deadline_s if deadline_s is not None and late else counts.slowest_us / 1e6

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing each round: validation figures come back with training, the test is looked at once."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None


def _size(message: Message) -> int:
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())
