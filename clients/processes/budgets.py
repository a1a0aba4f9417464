"""Movement of a device's memory budget over time: the processes that ship, and the registry that more plug into.

The interface and the clock are in :mod:`clients.processes.base`, the Markov process in :mod:`clients.processes.markov`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from clients.keys.distributions import FloatArray, Share
from clients.keys.specs import NonNegativeFloat, NonNegativeInt, PositiveFloat, ShareFloat, Spec, as_schema, folder_of
from clients.keys.tabular import AtEnd, RecordedTraces, checked_file, load_traces
from clients.processes.base import BudgetProcess, Devices, Moment, State
from clients.processes.markov import MarkovBudget
from fl_peel.errors import FieldError
from fl_peel.plugins import Registry
from fl_peel.randomness import device_uniforms
from fl_peel.safe_yaml import kind_of
from fl_peel.scenario.base import unit


class ConstantBudget(BudgetProcess):
    """Constant budget: the base budget at all times."""

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        """(N,) bytes."""
        return base_bytes

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """(N,) bytes."""
        return base_bytes


class PeriodicBudget(BudgetProcess):
    """Periodic budget: base * (1 + amplitude * sin(2 pi (time / period + phase))), where each device has its own phase.

    ``phase`` is a share of the period; by default the phases of the devices are spread evenly over it.
    """

    period_hours: PositiveFloat = Field(json_schema_extra=unit("h"))
    """Length of the period."""
    amplitude: Share = Field(json_schema_extra=unit("share"))
    """Amplitude up and down, as a share of the base budget."""
    phase: Share | None = Field(None, json_schema_extra=unit("share"))
    """Phase at the start, as a share of the period; null: spread evenly over the devices."""

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        """(N,) bytes."""
        phase = device_uniforms(seed, "periodic", "phase", devices=devices)
        if self.phase is not None:
            phase = self.phase.draw(phase)
        turns = math.fmod(now.time_s / (3600.0 * self.period_hours), 1.0) + phase
        return base_bytes * (1.0 + self._amplitudes(seed, devices) * np.sin(2.0 * np.pi * turns))

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """(N,) bytes."""
        return base_bytes * (1.0 + self._amplitudes(seed, devices))

    def _amplitudes(self, seed: int, devices: Devices) -> FloatArray:
        return self.amplitude.draw(device_uniforms(seed, "periodic", "amplitude", devices=devices))


class RandomWalkBudget(BudgetProcess):
    """Random walk: base * x, where x starts at ``first`` and moves by a uniform step of at most ``largest_step``,
    reflected at the bounds."""

    largest_step: PositiveFloat = Field(json_schema_extra=unit("factor"))
    """Largest step of the factor, up or down, at every step of the clock."""
    min_factor: NonNegativeFloat = Field(0.1, json_schema_extra=unit("factor"))
    """Smallest factor of the base budget."""
    max_factor: PositiveFloat = Field(1.0, json_schema_extra=unit("factor"))
    """Largest factor of the base budget."""
    first: NonNegativeFloat | None = Field(None, json_schema_extra=unit("factor"))
    """Factor at step 0; null: drawn uniformly between the bounds."""

    @model_validator(mode="after")
    def _check_bounds(self) -> RandomWalkBudget:
        if self.min_factor >= self.max_factor:
            raise FieldError(f"must be below max_factor {self.max_factor:g} (got {self.min_factor:g})", "min_factor")
        if self.first is not None and not self.min_factor <= self.first <= self.max_factor:
            raise FieldError(
                f"must lie within {self.min_factor:g} and {self.max_factor:g} (got {self.first:g})", "first"
            )
        return self

    def start(self, seed: int, devices: Devices) -> State:
        """Factors, (N,) float64: ``first``, or drawn evenly between the bounds (its long-run distribution)."""
        if self.first is not None:
            return np.full(len(devices), self.first)
        drawn = device_uniforms(seed, "random-walk", 0, devices=devices)
        return np.minimum(self.min_factor + (self.max_factor - self.min_factor) * drawn, self.max_factor)

    def advance(self, state: State, seed: int, devices: Devices, step: int) -> State:
        """Factors, (N,) float64."""
        assert state is not None
        width = self.max_factor - self.min_factor
        drawn = device_uniforms(seed, "random-walk", step, devices=devices)
        place = np.mod(state - self.min_factor + self.largest_step * (2.0 * drawn - 1.0), 2.0 * width)
        place = np.minimum(place, 2.0 * width - place)
        return np.clip(self.min_factor + place, self.min_factor, self.max_factor)

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        """(N,) bytes."""
        assert state is not None
        return base_bytes * state

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """(N,) bytes."""
        return base_bytes * self.max_factor


class TraceBudget(BudgetProcess):
    """Recorded memory from a CSV, TSV or Parquet file with ``device, time_s, memory_bytes``.

    ``scale`` "relative": base * memory / (largest memory of that recording). "absolute": memory * ``recommender_share``
    bytes, independent of the profile's ``memory`` (which may then be left out). Which recorded device a simulated one
    replays: see :mod:`clients.keys.tabular`.
    """

    file: Annotated[RecordedTraces, PlainValidator(lambda value, info: _read_trace(value, info)), as_schema("string")]
    """Recording as a CSV, TSV or Parquet file; a relative path starts at the folder of the fleet file."""
    scale: Literal["relative", "absolute"] = "relative"
    """Scale of the recording; relative: base budget times memory over the largest memory of the recording; absolute:
    bytes as recorded."""
    recommender_share: ShareFloat = Field(1.0, json_schema_extra=unit("share"))
    """Budget as a share of the recorded bytes, with scale absolute."""
    at_end: AtEnd = "loop"
    """Behaviour at the end of a recording; loop: it starts again; hold: its last value remains."""
    random_start: bool = True
    """Whether each device starts at a random time of its recording."""

    def needs_memory(self) -> bool:
        """Only a relative trace does."""
        return self.scale == "relative"

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        """(N,) bytes."""
        memory = self.file.at(seed, devices, now.time_s, at_end=self.at_end, random_start=self.random_start)
        if self.scale == "absolute":
            return memory * self.recommender_share
        peak = self.file.peak[self.file.assigned(seed, devices)]
        return base_bytes * (memory / np.where(peak > 0, peak, 1.0))

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """(N,) bytes."""
        if self.scale == "relative":
            return base_bytes
        return self.file.peak[self.file.assigned(seed, devices)] * self.recommender_share


def _read_trace(value: object, info: ValidationInfo) -> RecordedTraces:
    if isinstance(value, RecordedTraces):
        return value
    return load_traces(checked_file(folder_of(info), value), "memory_bytes", largest=2.0**53)


class Shock(Spec):
    """A change of budgets: they are multiplied by ``factor`` from the start of ``at_round`` on, until ``until_round``
    if it is given."""

    at_round: NonNegativeInt = Field(json_schema_extra=unit("round"))
    """First round of the shock."""
    factor: NonNegativeFloat = Field(json_schema_extra=unit("factor"))
    """Factor by which budgets are multiplied."""
    until_round: NonNegativeInt | None = Field(None, json_schema_extra=unit("round"))
    """Round at whose start the shock ends; null: it lasts to the end."""

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if self.until_round is not None and self.until_round <= self.at_round:
            raise FieldError(f"must be after at_round {self.at_round} (got {self.until_round})", "until_round")
        return self


class ShockBudget(Shock, BudgetProcess):
    """Shock to another process: its budget times ``factor`` while the shock lasts."""

    of: Annotated[BudgetProcess, PlainValidator(lambda value, info: read_budget(value, info)), WithJsonSchema({})] = (
        ConstantBudget()
    )
    """The other budget process."""

    def needs_memory(self) -> bool:
        """Return whether the process below needs memory."""
        return self.of.needs_memory()

    def start(self, seed: int, devices: Devices) -> State:
        """State of the process below."""
        return self.of.start(seed, devices)

    def advance(self, state: State, seed: int, devices: Devices, step: int) -> State:
        """State of the process below."""
        return self.of.advance(state, seed, devices, step)

    def state_at(self, seed: int, devices: Devices, step: int) -> State:
        """State of the process below."""
        return self.of.state_at(seed, devices, step)

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        """(N,) bytes."""
        below = self.of.budget(state, seed, devices, base_bytes, now)
        ended = self.until_round is not None and now.server_round >= self.until_round
        return below * self.factor if now.server_round >= self.at_round and not ended else below

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """(N,) bytes."""
        forever = self.at_round == 0 and self.until_round is None
        return self.of.ceiling(seed, devices, base_bytes) * (self.factor if forever else max(self.factor, 1.0))


BUDGETS: Registry[type[BudgetProcess]] = Registry(
    "budget process",
    "fl_peel.budgets",
    MappingProxyType(
        {
            "constant": ConstantBudget,
            "periodic": PeriodicBudget,
            "markov": MarkovBudget,
            "random-walk": RandomWalkBudget,
            "trace": TraceBudget,
            "shock": ShockBudget,
        }
    ),
)


def read_budget(value: object, info: ValidationInfo) -> BudgetProcess:
    """Read ``{process: name, key: value, ...}`` or the name of a process without keys.

    Raises:
        FieldError: no such process.
        pydantic.ValidationError: its keys make no sense.
    """
    if isinstance(value, BudgetProcess):
        return value
    if isinstance(value, str):
        value = {"process": value}
    if not isinstance(value, Mapping):
        raise FieldError(f"must be a mapping with process (got {kind_of(value)})")
    if not isinstance(value.get("process"), str):
        raise FieldError(f"must name a budget process: {', '.join(BUDGETS.names())}", "process")
    try:
        process = BUDGETS.get(value["process"])
    except FieldError as error:
        raise FieldError(str(error), "process") from None
    if not (isinstance(process, type) and issubclass(process, BudgetProcess)):
        raise FieldError(f"{value['process']!r} is no subclass of clients.processes.budgets.BudgetProcess", "process")
    keys = {key: entry for key, entry in value.items() if key != "process"}
    return process.model_validate(keys, context=info.context)
