"""View that a server has of single devices in stage 1 by devices: recorded beside the run, answered again afterwards.

User groups, and so who is watched, are known when stage 1 is over. The contribution of a device in a step follows from
the request and its data alone, so requests are kept, with the devices whose answers came, and each watched device is
asked them by the same code when its view is made: in the clear alone, as on a node of its own; under secure aggregation
all devices that are in the opened sum answer as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort, open_cohort
from clients.round.noised_stage1 import noise_of
from clients.round.stage1 import choice_participants, chosen, contribute, sums_participants
from fl_peel import wire
from fl_peel.attacks.decoder import PassView, Reconstruction, reconstruct
from fl_peel.attacks.views import IntArray, StepView
from fl_peel.pretraining.spectral_steps import UNIT_SCALE, Units

COLUMNS = 16
"""Columns of a pass that are looked at: a device adds the same numbers to each of its rows, so a few columns tell which
rows those are.
"""

LARGEST_PASS = 1 << 22
"""Numbers in the table of a pass up to which the decoder is tried."""

Arrays = Mapping[str, NDArray[Any]]
StepRequest = wire.SumsRequest | wire.ChoiceRequest


@dataclass(frozen=True)
class _SeenRequest:
    """A request, and the devices (N,) whose answer to it came."""

    request: StepRequest
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

    def see(self, request: StepRequest, devices: IntArray | None = None) -> None:
        """Keep a request. devices: whose answers came, where the messages say so; else those that the step reaches.

        Of a pass the first columns are enough; a second stage 1 is not looked at.
        """
        if self._seen and self._seen[0].request.setting != request.setting:
            return
        if request.counts_contributors:
            return
        if self.sums_alone and isinstance(request, wire.SumsRequest) and request.step == "pass":
            assert devices is not None, "masked replies say whose they are"
            self._keep_pass(request, np.sort(devices))
        if isinstance(request, wire.SumsRequest):
            if request.step == "maps" or (request.step == "pass" and request.first > 0):
                return
            if request.step == "pass" and not len(request.weights):  # a bounded answer takes all columns
                request = dataclasses.replace(request, table=request.table[:, :COLUMNS])
        if devices is None:
            devices = _reached(self._everybody(request.setting), request)
        self._seen.append(_SeenRequest(request, np.sort(devices)))

    def _keep_pass(self, request: wire.SumsRequest, devices: IntArray) -> None:
        """Keep all columns of a pass for the decoder, where it is neither bounded nor hashed, nor too large."""
        size = request.table.shape[0] * request.columns
        if not len(request.weights) and not request.buckets and size <= LARGEST_PASS:
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
            requests = [one.request for one in parts if isinstance(one.request, wire.SumsRequest)]
            answers = [contribute(cohort, parts[0].devices, request)[wire.EVERYBODY].first for request in requests]
            table = np.concatenate([request.table for request in requests], axis=1)
            passes.append(PassView(table, np.concatenate(answers, axis=1)))
        units = Units.from_config(
            cohort.scenario.pretraining.spectral(), cohort.population, cohort.splits.num_items
        ).passes
        return reconstruct(
            passes, cohort.splits.contributed_items, cohort.scenario.pretraining.user_exponent, scale=units
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
            again = isinstance(one.request, wire.SumsRequest) and one.request.first > 0
            if again:
                parts[-1].append(one)
            else:
                parts.append([one])
        return parts

    def _view(self, part: Sequence[_SeenRequest], devices: IntArray) -> StepView:
        first = part[0].request
        cohort = self._everybody(first.setting)
        if isinstance(first, wire.ChoiceRequest):
            exponent = np.array([cohort.scenario.pretraining.item_exponent])
            won, answered = chosen(cohort, devices, first, noise_of(cohort, first))
            reply: Arrays = {"won": won / UNIT_SCALE, "answered": np.array([answered])}
            names = ("directions", "values", "counts", "count_exponents", "value_exponents", "drawn")
            sent: dict[str, NDArray[Any]] = {name: getattr(first, name) for name in names}
            sent |= {"place": np.array([first.place]), "item_exponent": exponent}
            return StepView("choice", sent, reply if len(devices) else {}, len(devices))
        requests = [one.request for one in part if isinstance(one.request, wire.SumsRequest)]
        if first.step == "vectors":
            own = self._own(requests)
            return StepView("vectors", {"own": own}, {}, len(devices))
        arrays: dict[str, Arrays] = {"pass": {"place": first.place}, "groups": {"centroids": first.centroids}}
        sent_arrays = arrays.get(first.step, {})
        if not len(devices):
            return StepView(first.step, sent_arrays, {}, 0)
        self._make_vectors()
        answers = [contribute(cohort, devices, request) for request in requests]
        return StepView(first.step, sent_arrays, _arrays(first.step, answers), len(devices))

    def _own(self, requests: Sequence[wire.SumsRequest]) -> NDArray[np.float32]:
        """Rows that vectors are made of (I, K): one array for all devices."""
        if self._table is None:
            self._table = np.concatenate([request.table for request in requests], axis=1)
        return self._table

    def _make_vectors(self) -> None:
        """Let all devices make their vectors, as they do when they are sent the rows."""
        if self._vectors:
            return
        for one in self._seen:
            if isinstance(one.request, wire.SumsRequest) and one.request.step == "vectors":
                contribute(self._everybody(one.request.setting), one.devices, one.request)
        self._vectors = True

    def _everybody(self, setting: wire.RunSetting) -> Cohort:
        if self._cohort is None:
            whole = open_cohort(setting.scenario, self.data_dir, self.run_dir, 0, 1, fleet=setting.fleet)
            self._cohort = dataclasses.replace(whole, folder=Path(self.run_dir) / "observer" / "stage1")
        return self._cohort


def _reached(cohort: Cohort, request: StepRequest) -> IntArray:
    """Numbers of the devices that take part; all devices are hosted, so places are numbers."""
    if isinstance(request, wire.ChoiceRequest):
        return choice_participants(cohort, request).places
    return sums_participants(cohort, request).places


def _arrays(step: str, answers: Sequence[Mapping[int, wire.GroupSum]]) -> Arrays:
    """Return the arrays in the messages of a step, by name."""
    if step == "moments":
        groups = [group for answer in answers for _, group in sorted(answer.items())]
        return {
            "sizes": np.concatenate([group.sizes for group in groups]),
            "first": np.stack([group.first for group in groups]),
            "items": np.stack([group.items for group in groups]),
        }
    one = answers[0][wire.EVERYBODY]
    if step == "counts":
        return {"items": one.items}
    if step == "pass":
        return {"norms": np.linalg.norm(one.first.astype(np.float64), axis=1)}
    return {"sizes": one.sizes, "sums": one.first}


__all__ = ["StepObserver"]
