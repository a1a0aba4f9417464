"""View that a server has of single devices in stage 1 by devices: recorded beside the run, answered again afterwards.

User groups, and so who is watched, are known when stage 1 is over. The contribution of a device in a step follows from
the request and its data alone, so requests are kept, with the devices whose answers came, and each watched device is
asked them by the same code when its view is made: in the clear alone, as on a node of its own; under secure aggregation
all devices that are in the opened sum answer as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort, open_cohort
from clients.steps.attendance import StepParticipants
from clients.steps.step_round import contribute
from fl_peel import wire
from fl_peel.attacks.decoder import PassView, Reconstruction, reconstruct
from fl_peel.attacks.views import IntArray, StepView
from fl_peel.steps.choice import ChoiceStep
from fl_peel.steps.contributors import ContributorsStep
from fl_peel.steps.device_vectors import VectorsStep
from fl_peel.steps.maps import MapsStep
from fl_peel.steps.passes import PassStep
from fl_peel.steps.units import UNIT_SCALE

COLUMNS = 16
"""Columns of a pass that are looked at: a device adds the same numbers to each of its rows, so a few columns tell which
rows those are.
"""

LARGEST_PASS = 1 << 22
"""Numbers in the table of a pass up to which the decoder is tried."""


@dataclass(frozen=True)
class _SeenRequest:
    """A request, and the devices (N,) whose answer to it came."""

    request: wire.StepRequest
    devices: IntArray


@dataclass
class StepObserver:
    """Records stage 1 of a run; sums_alone: the server sees the sum over all devices of a step."""

    data_dir: str
    run_dir: str
    sums_alone: bool
    _seen: list[_SeenRequest] = field(default_factory=list)
    _passes: list[list[_SeenRequest]] = field(default_factory=list)
    _sums: list[StepView] | None = None
    _cohort: Cohort | None = None
    _vectors: bool = False
    _table: NDArray[np.float32] | None = None

    def see(self, request: wire.StepRequest, devices: IntArray | None = None) -> None:
        """Keep a request. devices: whose answers came, where the messages say so; else those that the step reaches.

        Of a pass the first columns are enough; a second stage 1 is not looked at.
        """
        step, first = request.step, request.first
        if self._seen and self._seen[0].request.setting != request.setting:
            return
        if isinstance(step, ContributorsStep | MapsStep):
            return
        if self.sums_alone and isinstance(step, PassStep):
            assert devices is not None, "masked replies say whose they are"
            self._keep_pass(request, step, np.sort(devices))
        if isinstance(step, PassStep):
            if first > 0:
                return
            stop = min(request.stop, COLUMNS)
            terms = self._everybody(request.setting).terms
            request = dataclasses.replace(request, stop=stop, sent=step.cut(request.sent, (0, stop), terms))
        if devices is None:
            # all devices are hosted, so places are numbers
            devices = StepParticipants.from_cohort(self._everybody(request.setting), step, request.time).places
        self._seen.append(_SeenRequest(request, np.sort(devices)))

    def _keep_pass(self, request: wire.StepRequest, step: PassStep, devices: IntArray) -> None:
        """Keep all columns of a pass for the decoder, where it is neither bounded nor hashed, nor too large."""
        size = request.sent["table"].shape[0] * step.columns
        if "weights" not in request.sent and not step.buckets and size <= LARGEST_PASS:
            if request.first == 0:
                self._passes.append([])
            self._passes[-1].append(_SeenRequest(request, devices))

    def reconstruction(self) -> Reconstruction | None:
        """Return what the decoder finds in the sums of the passes; None where it can be tried on none."""
        if not self._passes:
            return None
        cohort = self._everybody(self._passes[0][0].request.setting)
        passes = []
        for parts in self._passes:
            requests = [one.request for one in parts]
            answers = [contribute(cohort, parts[0].devices, request)["columns"] for request in requests]
            table = np.concatenate([request.sent["table"] for request in requests], axis=1)
            passes.append(PassView(table, np.concatenate(answers, axis=1)))
        return reconstruct(
            passes,
            cohort.splits.contributed_items,
            cohort.scenario.pretraining.user_exponent,
            scale=cohort.terms.units.passes,
        )

    @property
    def any(self) -> bool:
        """Return whether there was a stage 1 by devices."""
        return bool(self._seen)

    def steps(self, device: int) -> tuple[StepView, ...]:
        """Return what was seen of a device, oldest first."""
        if self.sums_alone:
            if self._sums is None:
                self._sums = [self._view(part, part[0].devices) for part in self._parts()]
            views = []
            for part, view in zip(self._parts(), self._sums, strict=True):
                views.append(view if device in part[0].devices else dataclasses.replace(view, reply={}))
            return tuple(views)
        alone = np.array([device], np.int64)
        return tuple(self._view(part, alone[np.isin(alone, part[0].devices)]) for part in self._parts())

    def _parts(self) -> list[list[_SeenRequest]]:
        """Requests by step: vectors and moments go in several messages."""
        parts: list[list[_SeenRequest]] = []
        for one in self._seen:
            if one.request.first > 0:
                parts[-1].append(one)
            else:
                parts.append([one])
        return parts

    def _view(self, part: Sequence[_SeenRequest], devices: IntArray) -> StepView:
        requests = [one.request for one in part]
        step, sent = requests[0].step, requests[0].sent
        cohort = self._everybody(requests[0].setting)
        if isinstance(step, VectorsStep):
            return StepView(step.name, {"own": self._own(requests)}, {}, len(devices))
        if isinstance(step, PassStep):
            sent = {"place": sent.get("place", np.zeros(0, np.int32))}
        if isinstance(step, ChoiceStep):
            exponent = np.array([cohort.scenario.pretraining.item_exponent])
            sent = sent | {"place": np.array([step.place]), "item_exponent": exponent}
        if not len(devices):
            return StepView(step.name, sent, {}, 0)
        if not isinstance(step, ChoiceStep):
            self._make_vectors()
        answers = (((one.first, one.stop), contribute(cohort, devices, one)) for one in requests)
        seen = dataclasses.replace(step, columns=requests[0].stop) if isinstance(step, PassStep) else step
        reply = seen.whole(cohort.terms, answers)
        if isinstance(step, PassStep):
            reply = {"norms": np.linalg.norm(reply["columns"].astype(np.float64), axis=1)}
        if isinstance(step, ChoiceStep):
            reply["won"] = reply["won"] / UNIT_SCALE
        return StepView(step.name, sent, reply, len(devices))

    def _own(self, requests: Sequence[wire.StepRequest]) -> NDArray[np.float32]:
        """Rows that vectors are made of (I, K): one array for all devices."""
        if self._table is None:
            self._table = np.concatenate([request.sent["table"] for request in requests], axis=1)
        return self._table

    def _make_vectors(self) -> None:
        """Let all devices make their vectors, as they do when they are sent the rows."""
        if self._vectors:
            return
        for one in self._seen:
            if isinstance(one.request.step, VectorsStep):
                contribute(self._everybody(one.request.setting), one.devices, one.request)
        self._vectors = True

    def _everybody(self, setting: wire.RunSetting) -> Cohort:
        if self._cohort is None:
            whole = open_cohort(replace(setting, data_dir=self.data_dir, run_dir=self.run_dir), 0, 1)
            self._cohort = dataclasses.replace(whole, folder=Path(self.run_dir) / "observer" / "stage1")
        return self._cohort
