"""A stage 1 by devices that goes on after the last step that was kept.

The server computes the same from the same sums, so what devices added up to in each step is all that is kept, an entry
a step, and where the step left the clock and the accounts. A run that goes on computes from the first step on and asks
devices from the first that is not there. The entries are gone when the stage is kept as a whole. Moments, the last
sums, are as many as the tables that are made of them: they are asked for again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fl_peel.events import Event
from fl_peel.pretraining.sketch import RowSketch
from fl_peel.pretraining.spectral_steps import FilterRequest, Floats, GroupSums, Ints, Moments, Units
from strategies.run.checkpoints import STEPS, RunCheckpoints
from strategies.run.noised_stage1 import NoisedSums
from strategies.run.stage1 import FederatedSums

Contribution = TypeVar("Contribution")


@dataclass
class CheckpointedSums:
    """:class:`fl_peel.pretraining.stage1.Stage1Sums`, of which each is kept. devices: who are asked; sums: what is
    learned of them, with the noise that is added; both may be one.
    """

    sums: FederatedSums | NoisedSums
    devices: FederatedSums
    checkpoints: RunCheckpoints
    _completed: int = field(default=0, init=False)

    @property
    def bounded(self) -> bool:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self.sums.bounded

    @property
    def units(self) -> Units:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self.sums.units

    def std(self, part: str) -> float:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self.sums.std(part)

    def counts(self) -> Ints:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self._step(self.sums.counts)

    def passed(self, table: Floats, weights: Floats, sketch: RowSketch | None = None) -> Ints:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self._step(lambda: self.sums.passed(table, weights, sketch))

    def choice(self, request: FilterRequest) -> tuple[Ints, int]:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self._step(lambda: self.sums.choice(request))

    def vectors(self, own: Floats) -> None:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`; devices have them on their disks."""
        self._step(lambda: self.sums.vectors(own), disks=True)

    def groups(self, centroids: Floats) -> GroupSums:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`."""
        return self._step(lambda: self.sums.groups(centroids))

    def moments(self, centroids: Floats, groups: Sequence[int]) -> Iterable[Moments]:
        """See :class:`fl_peel.pretraining.stage1.Stage1Sums`; not kept."""
        return self.sums.moments(centroids, groups)

    def _step(self, ask: Callable[[], Contribution], *, disks: bool = False) -> Contribution:
        """Return the sums of the next step. disks: whether the step changes something on devices."""
        self._completed += 1
        name, key = f"{STEPS}{self._completed}", self._key
        entry = self.checkpoints.read(name, key)
        if entry is not None:
            if self._completed == 1:
                self.checkpoints.on_event(Event("pretraining", 0, 1, "steps are resumed from a checkpoint"))
            self.devices.resume(entry.value["where"], entry.value["records"])
            if isinstance(self.sums, NoisedSums):
                self.sums.taken = Counter(entry.value["taken"])
            return entry.value["contribution"]  # type: ignore[no-any-return]
        contribution = ask()
        content = {"contribution": contribution, "where": self.devices.position, "records": list(self.devices.records)}
        if isinstance(self.sums, NoisedSums):
            content["taken"] = dict(self.sums.taken)
        self.checkpoints.write(name, content, key=key, disks=disks)
        return contribution

    @property
    def _key(self) -> dict[str, Any]:
        return {"begin": self.devices.begin, "scenario": json.loads(self.devices.setting.scenario)}


__all__ = ["CheckpointedSums"]
