"""Steps of stage 1 under secure aggregation: the server learns what all devices of a step add up to, no more.

A step is one group of all devices that are there in one of its windows. It takes the exchanges of a round of refinement
(:mod:`strategies.rounds.masked`): keys, sealed shares, masked vectors, opened shares. Unlike a round, no step can be
left out. One whose sum somebody spoiled is asked again without those that may have, until it is right; one that too few
devices last out ends the run, unless a node that failed may be back or be left out.

All sums of a step that are opened are over sets of devices that differ by ``secure_aggregation.min_devices`` at least.
Under a mechanism, a step is not asked again once its sum was opened: no more is accounted for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, MessageContext
from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.unmask import added
from fl_peel.secure.vector import Values
from fl_peel.steps.base import Arrays, Bools, PartSums, Step
from fl_peel.steps.step_vector import StepVector
from strategies.nodes import nodes
from strategies.nodes.nodes import NodeRequest
from strategies.rounds.masked_exchange import MaskedExchange, MaskedPart, VoidSumError
from strategies.rounds.suspects import Suspects
from strategies.steps.clear_steps import ClearSteps, SumsRecord

logger = logging.getLogger("fl_peel")
PART_BYTES = 4 << 20
"""Bytes of a vector's part in one message: what a node holds of one device at a time."""

Replies = dict[int, list[wire.SecureSumsReply]]
"""Replies of each partition, part by part."""


@dataclass
class MaskedSteps(ClearSteps):
    """The :class:`fl_peel.steps.base.StepChannel` of a federation whose devices mask what they contribute.

    Devices make vectors and fetch maps as in the clear, where they answer nothing.
    """

    _keyed: int = 0
    _suspects: Suspects = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.scenario.secure_aggregation.min_devices
        self._suspects = Suspects(least, step=least)

    @property
    def position(self) -> tuple[int, ...]:
        """Return the position as in the clear, how many times keys were made, how many nodes are left out, these, and
        the devices that are.
        """
        nodes, devices = sorted(self._suspects.nodes), sorted(self._suspects.devices)
        return (*super().position, self._keyed, len(nodes), *nodes, *devices)

    def resume(self, position: Sequence[int], records: Sequence[SumsRecord]) -> None:
        """Go on from a position, as in the clear."""
        time, self._keyed, num_nodes, *left_out = position
        self._suspects.nodes, self._suspects.devices = set(left_out[:num_nodes]), set(left_out[num_nodes:])
        super().resume([time], records)

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`.

        Raises:
            SecureAggregationError: too few devices stayed until the end.
        """
        if not step.sums(self.terms):
            yield from super().ask(step, sent, opened)
            return
        self._begin(opened)
        while True:
            self._keyed += 1
            exchange = MaskedExchange(self.scenario, self.setting, self.nodes, -self._keyed, self._suspects)
            clock = self._settle(exchange, step)
            try:
                sums = self._sums(exchange, step, sent, opened, clock)
            except VoidSumError as error:
                if error.opened and self.terms.bounded:
                    raise SecureAggregationError(
                        f"secure aggregation, stage 1, {step.question.name}: {error}; privacy.mechanism accounts for "
                        "one sum a step; start the run again without those devices"
                    ) from None
                if not error.may_come:
                    raise self._too_few(step, str(error), clock) from None
                logger.warning("stage 1, %s: %s; it is asked again", step.question.name, error)
                time.sleep(nodes.PAUSES_S[0])
                continue
            if not self._suspects.searching:
                yield from sums
                return

    def _sums(
        self, exchange: MaskedExchange, step: Step, sent: Arrays, opened: Bools | None, clock: ClockCounts
    ) -> list[PartSums]:
        """Return the parts of the sum over the devices that shared their secrets, and stay.

        Raises:
            VoidSumError: there is none.
        """
        one, classes = exchange.groups[wire.EVERYBODY], len(clock.sampled)
        vector = StepVector(step, self.terms, 0 if self.terms.bounded else classes, len(one.devices))
        parts = step.parts(self.terms, PART_BYTES)
        replies: Replies = {partition: [] for partition in range(len(self.nodes.ids))}
        for part in parts:
            narrow, wide = vector.part(part).num_words
            sizes = {"C": classes, "W": self.windows, "narrow": narrow, "wide": wide}
            fields = self._fields(step, sent, part, opened) | {"server_round": exchange.server_round}
            answers = self._masked_part(exchange, fields, replies, sizes)
            # a node that fails has dropped out with all of its devices, whatever it sent before
            replies = {partition: [*replies[partition], reply] for partition, reply in answers.items()}
        survived = np.isin(one.devices, [device for each in replies.values() for device in each[0].sum.devices])
        # devices forget the step, whatever comes of it
        shares = exchange.unmask([] if one.why_void(survived) else [wire.EVERYBODY], {wire.EVERYBODY: survived})
        masked_parts = (
            MaskedPart(
                added(MaskWords(each[number].sum.narrow, each[number].sum.wide) for each in replies.values()),
                vector.part(part),
                vector.start(part),
            )
            for number, part in enumerate(parts)
        )
        counters: Values = {}

        def finish(number: int, sums: Values) -> PartSums:
            counters.update({name: sums.pop(name) for name in ("classes", "clock") if name in sums})
            specs = step.reply_arrays(self.terms, parts[number], int(survived.sum()))
            ArrayChecker.from_context(MessageContext({TOTAL: MOST}, arrays=specs)).group(sums, "the devices' vectors")
            step.check_together(sums)
            return parts[number], sums

        sums = exchange.opened(wire.EVERYBODY, survived, shares.get(wire.EVERYBODY, []), masked_parts, finish)
        if step is step.question and not self._suspects.searching:  # what both parts of a step take is counted once
            self._remember(step, clock, counters, [each[0] for each in replies.values()], len(one.devices))
        return sums

    def _settle(self, exchange: MaskedExchange, step: Step) -> ClockCounts:
        """Settle which devices take part: they have announced keys and shared their secrets. Return what is known of
        those that were asked.
        """
        start = wire.SecureStepRequest(self.setting, exchange.server_round, self._time, step)
        everybody = {"first group": wire.EVERYBODY, "last group": wire.EVERYBODY}

        def hosted(partition: int) -> NodeRequest:
            here = self.nodes.hosted(partition, self.num_devices)
            return NodeRequest(start, MessageContext(everybody, {"devices": here}, agreed=("C",)))

        replies = exchange.ask_keys(wire.SECURE_STEP, hosted)
        if not replies:
            raise self._too_few(step, "no node answered, the log says why", None)
        clock = reduce(add, (reply.clock for reply in replies))
        exchange.settle(replies)
        if wire.EVERYBODY not in exchange.groups:
            exchange.forget()
            least = self.scenario.secure_aggregation.min_devices
            why = f"{exchange.announced} devices announced keys, secure_aggregation.min_devices is {least}"
            raise self._too_few(step, why, clock)
        exchange.share()
        return clock

    def _masked_part(
        self, exchange: MaskedExchange, fields: dict[str, Any], nodes: Replies, sizes: dict[str, int]
    ) -> dict[int, wire.SecureSumsReply]:
        """Ask for a part of the vectors, of the nodes that have sent all before it. fields: of the request; sizes: of a
        right answer.
        """
        one = exchange.groups[wire.EVERYBODY]

        def content(partition: int) -> NodeRequest | None:
            here = one.shared & exchange.hosted(one, partition)
            if partition not in nodes or not here.any():
                return None
            first = next(iter(nodes[partition]), None)  # all parts are of the same devices
            secure = {wire.EVERYBODY: one.inbox(here)} if first is None else {}
            mine = one.devices[here] if first is None else first.sum.devices
            known = MessageContext({**sizes, **({} if first is None else {"N": len(mine)})}, {"devices": mine})
            return NodeRequest(wire.SecureSumsRequest(**fields, secure=secure), known)

        return self.nodes.ask_some(wire.SECURE_SUMS, wire.SecureSumsReply, content)

    def _remember(
        self, step: Step, clock: ClockCounts, counters: Values, replies: list[wire.SecureSumsReply], announced: int
    ) -> None:
        """Record what the step took: for devices in the sum as words of it, for the others as the simulation knows; for
        all of them as it knows where devices withhold counters.
        """
        classes = ClassCounts.zeros(len(clock.sampled))
        if counters:
            classes = ClassCounts.unstacked(counters["classes"])
            clock = clock + ClockCounts.unstacked(counters["clock"])
        classes = reduce(add, (reply.classes for reply in replies), classes)
        clock = reduce(add, (reply.clock for reply in replies), clock)
        counts = replace(RoundCounts.nothing(len(clock.sampled)), classes=classes, clock=clock)
        waits = np.max([reply.waits_us for reply in replies], axis=0)
        self.records.append(SumsRecord(step.name, counts, int(waits.sum()) / 1e6, announced))

    def _too_few(self, step: Step, why: str, clock: ClockCounts | None) -> SecureAggregationError:
        asked = ""
        if clock is not None:
            total = clock.total()
            asked = (
                f" (of {int(total.sampled)} requested, {int(total.unavailable)} were offline, "
                f"{int(total.excluded)} had insufficient memory)"
            )
        panel = ", pretraining.filter_devices" if step.question.panel else ""
        return SecureAggregationError(
            f"secure aggregation, stage 1, {step.question.name}: {why}{asked}; raise pretraining.open_rounds or "
            f"deadline_s{panel}, or secure_aggregation.neighbours, lower secure_aggregation.min_devices or threshold, "
            "or take another fleet"
        )
