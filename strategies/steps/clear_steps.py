"""Steps of stage 1 in the clear: sums over the devices of all nodes, part by part, and what each step took of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from operator import add
from typing import Any

import numpy as np

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.errors import EngineError
from fl_peel.exchange.counters import RoundCounts
from fl_peel.privacy.stage1_noise import contribution_bounds
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps.base import Arrays, Bools, Part, PartSums, Step, StepTerms
from fl_peel.steps.contributors import packed_rows
from strategies.nodes.members import bounds_of
from strategies.nodes.nodes import NodeRequest, Nodes


@dataclass(frozen=True)
class SumsRecord:
    """The cost of one step for devices, and which devices it reached. classes, clock: see :class:`RoundCounts`;
    announced: devices that began it under secure aggregation.
    """

    step: str
    counts: RoundCounts
    virtual_seconds: float
    announced: int = 0


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
        """Return how many rounds each step lasts."""
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
    def position(self) -> tuple[int, ...]:
        """Return the position of the steps: what :meth:`resume` takes."""
        return (self._time,)

    def resume(self, position: Sequence[int], records: Sequence[SumsRecord]) -> None:
        """Go on from a position, after steps with these records."""
        (self._time,) = position
        self.records[:] = records

    @property
    def now(self) -> int:
        """Return the round after the last step, on the fleet's clock."""
        return self._time + self.windows

    def std(self, part: str) -> float:
        """Nothing is noised on the way; see :class:`strategies.steps.noised_steps.NoisedSteps`."""
        return 0.0

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`."""
        self._begin(opened)
        for part in step.parts(self.terms, step.part_bytes):
            request = wire.StepRequest(**self._fields(step, sent, part, opened))
            known = partial(self._known, step, part)
            replies = self.nodes.ask(wire.STEP, wire.StepReply, lambda place: NodeRequest(request, known(place)))  # noqa: B023
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
        """Return the fields of a request, by name."""
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
        self.records.append(SumsRecord(step.name, counts, int(waits.sum()) / 1e6))


def sum_of(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of at least one array, of 64 bits."""
    total = np.array(arrays[0], np.int64)
    for one in arrays[1:]:
        total += one
    return total
