"""How a step is asked of nodes: in the clear, masked, noised, with contributors counted first.

The server adds the noise once, to each sum, where the mechanism says so and it sees the sum without it; elsewhere noise
is in the sums when they come (:mod:`clients.node.step_round`).

A step is one group of all devices that are there in one of its windows. It takes the exchanges of a round of refinement
(:mod:`strategies.rounds.masked`): keys, sealed shares, masked vectors, opened shares. A step whose sum somebody spoiled
is asked again without those that may have, until it is right; one that too few devices last out ends the run, unless a
node that failed may be back or be left out. All sums of a step that are opened are over sets of devices that differ by
``secure_aggregation.min_devices`` at least.

Under a mechanism one opened sum a step is accounted for, of each device. While somebody is searched for, a step is
therefore the total of several sums over other devices each, of which those that are spoiled are void. A step without
any sum that is right is as one to which nobody contributed, and the run ends where most steps are.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, MessageContext
from fl_peel.errors import EngineError, SecureAggregationError
from fl_peel.exchange.counters import ClassCounts, ClockCounts, RoundCounts
from fl_peel.privacy.noise_plan import Plan, Stage1Scales, contribution_bounds, in_masked_sums, noise_devices_of
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.vector import MaskWords, Values, added
from fl_peel.steps import steps_of
from fl_peel.steps.base import (
    Arrays,
    Bools,
    ChannelWrapper,
    ContributorsStep,
    Part,
    PartSums,
    Step,
    StepTerms,
    StepVector,
    answer_to,
    opened_rows,
    packed_rows,
)
from strategies import nodes
from strategies.nodes import NodeRequest, Nodes, bounds_of
from strategies.rounds.masked_exchange import MaskedExchange, MaskedPart, Suspects, VoidSumError


@dataclass(frozen=True)
class SumsRecord:
    """The cost of one sum of a step for devices, and which devices it reached. classes, clock: see
    :class:`RoundCounts`; announced: devices that began it under secure aggregation; time: the round in which the step
    opened, on the fleet's clock; void: whether nothing was taken of the sum, since it was spoiled.
    """

    step: str
    counts: RoundCounts
    virtual_seconds: float
    announced: int = 0
    time: int = 0
    void: bool = False


@dataclass
class ClearSteps:
    """The :class:`fl_peel.steps.base.StepChannel` of a federation whose devices answer in the clear.

    multiplier: of noise that devices add; begin: round of the fleet's clock in which the first step opens; records: of
    the steps so far, one after the other on the virtual clock.
    """

    nodes: Nodes
    scenario: Scenario
    setting: wire.RunSetting
    num_items: int
    multiplier: float = 0.0
    begin: int = 1
    records: list[SumsRecord] = field(default_factory=list)
    _time: int = field(init=False)

    def __post_init__(self) -> None:
        self._time = self.begin - self.windows

    @property
    def windows(self) -> int:
        return self.scenario.pretraining.open_rounds

    @property
    def num_devices(self) -> int:
        """Return the number of devices on all nodes together."""
        return self.setting.num_devices

    @cached_property
    def terms(self) -> StepTerms:
        """Return what the devices and the server know alike."""
        bounds = contribution_bounds(self.scenario)
        return StepTerms.from_scenario(self.scenario, self.num_items, self.num_devices, bounds)

    @property
    def position(self) -> tuple[Any, ...]:
        """Return the position of the steps: what :meth:`resume` takes."""
        return (self._time,)

    def resume(self, position: Sequence[Any], records: Sequence[SumsRecord]) -> None:
        """Go on from a position, after steps with these records."""
        (self._time,) = position
        self.records[:] = records

    @property
    def now(self) -> int:
        """Return the round after the last step, on the fleet's clock."""
        return self._time + self.windows

    def std(self, part: str) -> float:
        """Nothing is noised on the way; see :class:`strategies.rounds.step_channels.NoisedSteps`."""
        return 0.0

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`."""
        self._begin(opened)
        for part in step.parts(self.terms, step.part_bytes):
            request = wire.StepRequest(**self._fields(step, sent, part, opened))
            known = partial(self._known, step, part)
            replies = self.nodes.ask(wire.STEP, lambda place: NodeRequest(request, known(place)))  # noqa: B023
            if part[0] == 0 and step is step.question:
                self._record(step, replies)
            names = [one.name for one in step.sums_of_part(self.terms, part)]
            yield part, {name: sum_of([reply.sums[name] for reply in replies]) for name in names}

    def _known(self, step: Step, part: Part, partition: int) -> MessageContext:
        """Return what the right answer of a node looks like."""
        devices = len(self.nodes.hosted(partition, self.num_devices))
        return MessageContext(
            {"W": self.windows, **bounds_of(devices)},
            arrays=step.reply_arrays(self.terms, part, devices),
            agreed=("C",),
            together=lambda reply: step.check_together(reply.sums),
        )

    def _begin(self, opened: Bools | None) -> None:
        """Move the clock on, unless this is the second part of a step, whose contributors were counted."""
        if opened is None:
            self._time += self.windows

    def _fields(self, step: Step, sent: Arrays, part: Part, opened: Bools | None) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "step": step,
            "time": self._time,
            "first": part[0],
            "stop": part[1],
            "sent": step.cut(sent, part, self.terms),
            "opened": np.zeros(0, np.uint8) if opened is None else packed_rows(opened),
            "noise_multiplier": self.multiplier,
        }

    def _record(self, step: Step, replies: Sequence[wire.StepReply]) -> None:
        """Remember what a step took.

        Raises:
            EngineError: it reached nobody, and does not go on without anybody.
        """
        counts = reduce(add, (reply.counts for reply in replies))
        waits = np.max([reply.waits_us for reply in replies], axis=0)
        if not step.may_reach_nobody and not counts.classes.devices.any():
            clock = counts.clock.total()
            raise EngineError(
                f"stage 1, {step.name}: of {int(clock.sampled)} devices {int(clock.unavailable)} were offline, "
                f"{int(clock.excluded)} had insufficient memory, {int(clock.stragglers)} missed the deadline, none was "
                "left; raise pretraining.deadline_s, or take another fleet"
            )
        self.records.append(SumsRecord(step.name, counts, int(waits.sum()) / 1e6, time=self._time))


def sum_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of at least one array, of 64 bits."""
    total = np.array(arrays[0], np.int64)
    for one in arrays[1:]:
        total += one
    return total


@dataclass
class CountedSteps(ChannelWrapper):
    """A :class:`fl_peel.steps.base.StepChannel` that counts contributors first. min_owners: devices that a sum needs to
    be opened.
    """

    min_owners: int

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`; a step of which nothing may be opened is not asked."""
        if not self.terms.counts_contributors:
            yield from self.channel.ask(step, sent)
        elif step.counts_alone:
            for part, sums in self.channel.ask(step, sent):
                counts = sums[step.counts_alone]
                yield part, sums | {step.counts_alone: np.where(opened_rows(counts, self.min_owners), counts, 0)}
        elif not step.num_rows(self.terms):
            yield from self.channel.ask(step, sent)
        else:
            counting = ContributorsStep(step)
            counted = answer_to(self.channel, counting, counting.cut(sent, (0, 1), self.terms))
            opened = opened_rows(counted["contributors"], self.min_owners)
            if opened.any():
                yield from self.channel.ask(step, sent, opened)
                return
            for part in step.parts(self.terms, step.part_bytes):
                yield part, {one.name: np.zeros(one.shape, np.int64) for one in step.fields(self.terms, part)}


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
        be of: of more, there is more. A void step has none.
        """
        one = self._scales.std(part)
        if self._by_server:
            return one
        shares, last = 0.0, self.channel.records[-1].time
        for record in self.channel.records:
            if record.time == last and not record.void:
                devices = float(record.counts.classes.devices.sum())
                in_shares = self.plan.mechanism.where == "server"
                shares += devices / noise_devices_of(self.scenario, record.announced) if in_shares else devices
        return one * math.sqrt(shares)

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


logger = logging.getLogger("fl_peel")
NOBODY = np.zeros(0, np.int64)
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
    def position(self) -> tuple[Any, ...]:
        """Return the position as in the clear, how many times keys were made, and who is searched for or left out."""
        return (*super().position, self._keyed, self._suspects)

    def resume(self, position: Sequence[Any], records: Sequence[SumsRecord]) -> None:
        time, self._keyed, self._suspects = position
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
        if self.terms.bounded:
            yield from self._total(step, sent)
            return
        while True:
            exchange, clock = self._settled(step)
            try:
                sums = self._sums(exchange, step, sent, opened, clock)
            except VoidSumError as error:
                self._ask_again(step, error, clock)
                continue
            if not self._suspects.searching:
                yield from sums
                return

    def _total(self, step: Step, sent: Arrays) -> list[PartSums]:
        """Return the total of a step's sums in which no device is twice: one of everybody, unless somebody is searched
        for; zeros where all are void.

        Raises:
            SecureAggregationError: as of :meth:`ask`, or most steps of stage 1 are void.
        """
        total = [
            (part, {one.name: np.zeros(one.shape, np.int64) for one in step.fields(self.terms, part)})
            for part in step.parts(self.terms, PART_BYTES)
        ]
        least, spent = self.scenario.secure_aggregation.min_devices, NOBODY
        more, right, why = True, False, ""
        while more and (not len(spent) or self.num_devices - len(self._suspects.devices) - len(spent) >= least):
            more = self._suspects.searching
            try:
                exchange, clock = self._settled(step, spent)
            except SecureAggregationError:
                if not len(spent):
                    raise
                break  # too few are left for one more
            try:
                sums = self._sums(exchange, step, sent, None, clock)
            except VoidSumError as error:
                if not error.opened:
                    if len(spent) and not error.may_come:
                        break
                    self._ask_again(step, error, clock)
                    more = True
                    continue
                why = str(error)
                logger.warning("stage 1, %s: %s; the sum of %d devices is void", step.name, why, exchange.announced)
            else:
                right = True
                for (_, whole), (_, values) in zip(total, sums, strict=True):
                    whole.update({name: whole[name] + values[name] for name in whole})
            spent = np.concatenate([spent, exchange.groups[wire.EVERYBODY].devices])
        if not right:
            self._check_void(step, why)
        return total

    def _check_void(self, step: Step, why: str) -> None:
        """Let the run go on without a step, unless most of them are void.

        Raises:
            SecureAggregationError: they are.
        """
        void = {record.time for record in self.records} - {record.time for record in self.records if not record.void}
        config, groups = self.scenario.pretraining.spectral(), self.scenario.user_groups.count
        steps = sum(one.times(config, groups) for one in steps_of(self.scenario) if one.noised)
        if 2 * len(void) > steps:
            raise SecureAggregationError(
                f"secure aggregation, stage 1, {step.question.name}: {why}; {len(void)} of {steps} steps are void, and "
                "a mechanism accounts for one sum a step; start the run again without nodes that you do not trust"
            )
        logger.warning("stage 1, %s: the run goes on without this step", step.question.name)

    def _ask_again(self, step: Step, error: VoidSumError, clock: ClockCounts) -> None:
        """Prepare to ask a step again of which there is no sum.

        Raises:
            SecureAggregationError: none may come.
        """
        if not error.may_come:
            raise self._too_few(step, str(error), clock) from None
        logger.warning("stage 1, %s: %s; it is asked again", step.question.name, error)
        time.sleep(nodes.PAUSES_S[0])

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

        firsts = [each[0] for each in replies.values()]
        try:
            sums = exchange.opened(wire.EVERYBODY, survived, shares.get(wire.EVERYBODY, []), masked_parts, finish)
        except VoidSumError as error:
            if error.opened and self.terms.bounded:
                self._remember(step, clock, {}, firsts, len(one.devices), void=True)
            raise
        # what both parts of a step take is counted once
        if step is step.question and (self.terms.bounded or not self._suspects.searching):
            self._remember(step, clock, counters, firsts, len(one.devices))
        return sums

    def _settled(self, step: Step, spent: NDArray[np.int64] = NOBODY) -> tuple[MaskedExchange, ClockCounts]:
        """Return the next exchange, among devices that have announced keys and shared their secrets, but for those that
        are ``spent`` (N,), and what is known of all that were asked.

        Raises:
            SecureAggregationError: too few devices take part.
        """
        self._keyed += 1
        exchange = MaskedExchange(self.scenario, self.setting, self.nodes, -self._keyed, self._suspects, spent)
        start = wire.SecureStepRequest(self.setting, exchange.server_round, self._time, step)
        everybody = {"first group": wire.EVERYBODY, "last group": wire.EVERYBODY}

        def hosted(partition: int) -> NodeRequest:
            here = self.nodes.hosted(partition, self.num_devices)
            return NodeRequest(start, MessageContext(everybody, {"devices": here}, agreed=("C",)))

        replies = list(self.nodes.ask_some(wire.SECURE_STEP, hosted).values())
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
        return exchange, clock

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

        return self.nodes.ask_some(wire.SECURE_SUMS, content)

    def _remember(
        self,
        step: Step,
        clock: ClockCounts,
        counters: Values,
        replies: list[wire.SecureSumsReply],
        announced: int,
        *,
        void: bool = False,
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
        self.records.append(SumsRecord(step.name, counts, int(waits.sum()) / 1e6, announced, self._time, void))

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
