"""A stage 1 by devices that goes on after the last step that was kept.

The server computes the same from the same sums, so what devices added up to in each step is all that is kept, an entry
a step, and where the step left the clock and the accounts. A run that goes on computes from the first step on and asks
devices from the first that is not there. The entries are gone when the stage is kept as a whole. Moments, the last
sums, are as many as the tables that are made of them: they are asked for again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fl_peel.events import Event
from fl_peel.steps.base import Arrays, Bools, ChannelWrapper, PartSums, Step
from fl_peel.steps.device_vectors import VectorsStep
from fl_peel.steps.maps import MapsStep
from fl_peel.steps.moments import MomentsStep
from strategies.run.checkpoints import STEPS, RunCheckpoints
from strategies.steps.clear_steps import ClearSteps
from strategies.steps.noised_steps import NoisedSteps


@dataclass
class CheckpointedSteps(ChannelWrapper):
    """A :class:`fl_peel.steps.base.StepChannel`, of which each sum is kept. channel: with the noise that is added;
    devices: who are asked; both may be one.
    """

    devices: ClearSteps
    checkpoints: RunCheckpoints
    _completed: int = field(default=0, init=False)

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`; the sum as a whole, but for steps that are not kept."""
        if isinstance(step, MomentsStep | MapsStep):
            yield from self.channel.ask(step, sent, opened)
            return
        self._completed += 1
        name, key = f"{STEPS}{self._completed}", self._key
        entry = self.checkpoints.read(name, key)
        if entry is not None:
            if self._completed == 1:
                self.checkpoints.on_event(Event("pretraining", 0, 1, "steps are resumed from a checkpoint"))
            self.devices.resume(entry.value["position"], entry.value["records"])
            if isinstance(self.channel, NoisedSteps):
                self.channel.taken = Counter(entry.value["taken"])
            yield (0, step.num_pieces), entry.value["sums"]
            return
        sums = step.whole(self.terms, self.channel.ask(step, sent, opened))
        content = {"sums": sums, "position": self.devices.position, "records": list(self.devices.records)}
        if isinstance(self.channel, NoisedSteps):
            content["taken"] = dict(self.channel.taken)
        # devices have their vectors on their disks
        self.checkpoints.write(name, content, key=key, disks=isinstance(step, VectorsStep))
        yield (0, step.num_pieces), sums

    @property
    def _key(self) -> dict[str, Any]:
        return {"begin": self.devices.begin, "scenario": json.loads(self.devices.setting.scenario)}
