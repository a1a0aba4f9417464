"""How budgets move: processes by name, each with its keys.

The budget clock ticks in steps: ``step_s`` seconds each, ``steps_per_round`` to a round. Within a step a budget
stands still. A process turns a device's *base* budget (from its profile's ``memory``) into its budget at a step.
Everything random in it is a function of (seed, device id, step), so a state may be reached step by step or from
scratch, for any devices in any order, and is the same.

A new process is a subclass of :class:`BudgetProcess` whose fields are its keys in the fleet file, registered as an
entry point of the group ``fl_peel.budgets`` and tested with :class:`clients.fleet.contracts.BudgetContract`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from clients.fleet.distributions import FloatArray, Share
from clients.fleet.specs import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ShareFloat,
    Spec,
    as_schema,
    folder_of,
    in_bounds,
    number,
    whole,
)
from clients.fleet.tabular import AtEnd, RecordedTraces, checked_file, load_traces
from fl_peel.errors import FieldError, PathPart
from fl_peel.plugins import Registry
from fl_peel.problems import kind_of
from fl_peel.randomness import device_uniforms
from fl_peel.scenario.base import unit

Devices = NDArray[np.int64]
State = NDArray[Any] | None


MAX_STEPS_PER_ROUND = 1000
"""Processes with a history walk through every step, and a node holds the budgets of all steps of a round at once."""


def _steps(value: object) -> int:
    return int(in_bounds(whole(value, 1), le=MAX_STEPS_PER_ROUND))


_STEPS = as_schema("integer", minimum=1, maximum=MAX_STEPS_PER_ROUND)


class Clock(Spec):
    """Budget clock: ``step_s`` seconds per step, ``steps_per_round`` steps per round."""

    step_s: PositiveFloat = Field(900.0, json_schema_extra=unit("s"))
    """Length of a step, within which budgets are constant."""
    steps_per_round: Annotated[int, BeforeValidator(_steps), _STEPS] = Field(4, json_schema_extra=unit("steps"))
    """Steps per federated round."""

    def step_of(self, server_round: float) -> int:
        """Step at a time in rounds: round 3 begins at step 3 * steps_per_round; 3.5 is half a round later.

        Raises:
            ValueError: the time is negative or not finite.
        """
        if not (math.isfinite(server_round) and server_round >= 0):
            raise ValueError(f"a time in rounds must be finite and >= 0 (got {server_round})")
        return math.floor(server_round * self.steps_per_round + 1e-9)

    def moment(self, step: int) -> Moment:
        return Moment(step, step * self.step_s, step / self.steps_per_round)


@dataclass(frozen=True)
class Moment:
    """A step, its time in seconds since the start of the run, and its time in rounds."""

    step: int
    time_s: float
    server_round: float


class BudgetProcess(Spec):
    """Base class of all budget processes. Devices are (N,) int64 ids; the first axis of a state is the device."""

    def needs_memory(self) -> bool:
        """Return whether the profile must have ``memory``; False where the process gives bytes itself."""
        return True

    def start(self, seed: int, devices: Devices) -> State:
        """Return the state at step 0; None where no history matters."""
        return None

    def advance(self, state: State, seed: int, devices: Devices, step: int) -> State:
        """Return the state at ``step`` from that at ``step - 1``; ``state`` is not changed."""
        return state

    def state_at(self, seed: int, devices: Devices, step: int) -> State:
        """Return the state at a step from scratch, as ``advance`` reaches it; override it for a faster computation."""
        state = self.start(seed, devices)
        if state is not None:
            for earlier in range(1, step + 1):
                state = self.advance(state, seed, devices, earlier)
        return state

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        """Return the budget in bytes, (N,) float64 >= 0."""
        raise NotImplementedError

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """Return the bytes that the budget never exceeds, (N,)."""
        raise NotImplementedError


def _read_states(value: object) -> dict[str, float]:
    if not isinstance(value, Mapping) or not value:
        raise FieldError(f"must be a mapping from state to its factor (got {kind_of(value)})")
    if len(value) > 100:
        raise FieldError(f"has {len(value)} states; at most 100")
    states: dict[str, float] = {}
    for name, factor in value.items():
        try:
            states[str(name)] = in_bounds(number(factor), ge=0, le=1000)
        except FieldError as error:
            raise FieldError(str(error), str(name)) from None
    return states


_STATES: dict[str, Any] = {"type": "object", "title": "factors by state", "minProperties": 1}
_ROWS: dict[str, Any] = {"anyOf": [{"type": "array"}, {"type": "object", "title": "rows by state"}]}


class MarkovBudget(BudgetProcess):
    """Markov chain over states of the device (foreground, background, ...), each with its factor of the base budget.

    ``states``: state -> factor. ``transitions_per_step``: a row per state, in that order, with the probability of each
    next state. ``first``: the state at step 0; by default it is drawn from the chain's long-run distribution.

    The next state is looked up by one uniform number in [the part that all rows have in common | the row's own rest]. A
    number in the common part forgets the past (Murdoch and Green 1998, the multigamma coupler), so that a state can be
    computed from scratch by looking back only to where that last happened.
    """

    states: Annotated[dict[str, float], PlainValidator(_read_states), WithJsonSchema(_STATES)]
    """Factor of the base budget in each state."""
    transitions_per_step: Annotated[Any, WithJsonSchema(_ROWS)]
    """Transition probabilities per step of the clock: a row per state with the probability of each next state."""
    first: str | None = None
    """State at step 0; null: drawn from the stationary distribution."""

    @field_validator("transitions_per_step", mode="plain")
    @classmethod
    def _check_transitions(cls, value: object, info: ValidationInfo) -> tuple[tuple[float, ...], ...]:
        states = list(info.data.get("states", {}))
        if not states:
            return ()
        places: list[PathPart] = list(range(len(states)))
        if isinstance(value, Mapping):
            places = list(states)
            if set(value) != set(states):
                raise FieldError(f"must have one row per state: {', '.join(states)} (got {', '.join(map(str, value))})")
            value = [value[state] for state in states]
        if not isinstance(value, (list, tuple)) or len(value) != len(states):
            raise FieldError(f"must have {len(states)} rows, one per state (got {_length(value)})")
        rows = []
        for place, row in zip(places, value, strict=True):
            if isinstance(row, Mapping):
                row = [row.get(state, 0.0) for state in states] if set(row) <= set(states) else row
            if not isinstance(row, (list, tuple)) or len(row) != len(states):
                raise FieldError(f"must have {len(states)} numbers, one per state (got {_length(row)})", place)
            try:
                numbers = [in_bounds(number(entry), ge=0, le=1) for entry in row]
            except FieldError as error:
                raise FieldError(str(error), place) from None
            if abs(sum(numbers) - 1.0) > 1e-6:
                raise FieldError(f"must sum to 1 over the next states (got {sum(numbers):g})", place)
            rows.append(tuple(entry / sum(numbers) for entry in numbers))
        return tuple(rows)

    @model_validator(mode="after")
    def _check_first(self) -> MarkovBudget:
        if self.first is not None and self.first not in self.states:
            raise FieldError(f"must be one of {', '.join(self.states)} (got {self.first!r})", "first")
        return self

    def start(self, seed: int, devices: Devices) -> State:
        if self.first is not None:
            return np.full(len(devices), list(self.states).index(self.first), dtype=np.int8)
        running = np.cumsum(self.long_run())
        drawn = device_uniforms(seed, "markov", 0, devices=devices)
        return np.searchsorted(running / running[-1], drawn, side="right").astype(np.int8)

    def advance(self, state: State, seed: int, devices: Devices, step: int) -> State:
        assert state is not None
        table, _ = self._lookup()
        drawn = device_uniforms(seed, "markov", step, devices=devices)
        place = np.zeros(len(devices), dtype=np.int16)
        for column in table.T[:-1]:  # how many bins end at or before the number
            place += drawn >= column[state]
        return (place % len(self.states)).astype(np.int8)

    def state_at(self, seed: int, devices: Devices, step: int) -> State:
        """State numbers, (N,) int8, after looking back only as far as needed."""
        _, common = self._lookup()
        back, remembering = step, devices
        while back > 0 and len(remembering):
            drawn = device_uniforms(seed, "markov", back, devices=remembering)
            remembering = remembering[drawn >= common]
            back -= 1
        state = np.zeros(len(devices), dtype=np.int8) if not len(remembering) else self.start(seed, devices)
        result: State = state
        for earlier in range(back + 1, step + 1):
            result = self.advance(result, seed, devices, earlier)
        return result

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        assert state is not None
        factors = np.asarray(list(self.states.values()), dtype=np.float64)
        return base_bytes * factors[state]

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        return base_bytes * max(self.states.values())

    def long_run(self) -> FloatArray:
        """Share of time in each state in the long run, (J,), from an evenly drawn first state."""
        lazy = np.asarray(self.transitions_per_step) + np.eye(len(self.states))  # no cycles, same shares
        for _ in range(60):
            lazy = lazy @ lazy
            lazy /= lazy.sum(axis=1, keepdims=True)
        result: FloatArray = lazy.mean(axis=0)
        return result

    def _lookup(self) -> tuple[FloatArray, float]:
        """Bin ends per state, (J, 2J): J bins common to all rows, J of the row's own; and the common part's end."""
        rows = np.asarray(self.transitions_per_step, dtype=np.float64)
        least = rows.min(axis=0)
        common = float(least.sum())
        if common > 1.0 - 1e-12:
            common = 1.0
            least = rows[0]
        ends = np.cumsum(least)
        shared = np.where(ends >= ends[-1], common, np.minimum(ends, common))
        rest = np.cumsum(np.maximum(rows - least, 0.0), axis=1)
        total = np.where(rest[:, -1:] > 0, rest[:, -1:], 1.0)
        own = common + (1.0 - common) * rest / total
        own = np.where(rest >= rest[:, -1:], 1.0, own)  # as above: nothing falls behind the last bin that has any width
        return np.concatenate([np.broadcast_to(shared, rows.shape), own], axis=1), common


def _length(value: object) -> str:
    return str(len(value)) if isinstance(value, (list, tuple)) else kind_of(value)


class ConstantBudget(BudgetProcess):
    """Constant budget: the base budget at all times."""

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        return base_bytes

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
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
        phase = device_uniforms(seed, "periodic", "phase", devices=devices)
        if self.phase is not None:
            phase = self.phase.draw(phase)
        turns = math.fmod(now.time_s / (3600.0 * self.period_hours), 1.0) + phase
        return base_bytes * (1.0 + self._amplitudes(seed, devices) * np.sin(2.0 * np.pi * turns))

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
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
        assert state is not None
        width = self.max_factor - self.min_factor
        drawn = device_uniforms(seed, "random-walk", step, devices=devices)
        place = np.mod(state - self.min_factor + self.largest_step * (2.0 * drawn - 1.0), 2.0 * width)
        place = np.minimum(place, 2.0 * width - place)
        return np.clip(self.min_factor + place, self.min_factor, self.max_factor)

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        assert state is not None
        return base_bytes * state

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        return base_bytes * self.max_factor


class TraceBudget(BudgetProcess):
    """Recorded memory from a CSV, TSV or Parquet file with ``device, time_s, memory_bytes``.

    ``scale`` "relative": base * memory / (largest memory of that recording). "absolute": memory * ``recommender_share``
    bytes, independent of the profile's ``memory`` (which may then be left out). Which recorded device a simulated one
    replays: see :mod:`clients.fleet.tabular`.
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
        return self.scale == "relative"

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        memory = self.file.at(seed, devices, now.time_s, at_end=self.at_end, random_start=self.random_start)
        if self.scale == "absolute":
            return memory * self.recommender_share
        peak = self.file.peak[self.file.assigned(seed, devices)]
        return base_bytes * (memory / np.where(peak > 0, peak, 1.0))

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        if self.scale == "relative":
            return base_bytes
        return self.file.peak[self.file.assigned(seed, devices)] * self.recommender_share


def _read_trace(value: object, info: ValidationInfo) -> RecordedTraces:
    if isinstance(value, RecordedTraces):
        return value
    return load_traces(checked_file(folder_of(info), value), "memory_bytes", largest=2.0**53)


class Shock(Spec):
    """A change of budgets: times ``factor`` from the start of ``at_round`` until ``until_round``, if given."""

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
        return self.of.needs_memory()

    def start(self, seed: int, devices: Devices) -> State:
        return self.of.start(seed, devices)

    def advance(self, state: State, seed: int, devices: Devices, step: int) -> State:
        return self.of.advance(state, seed, devices, step)

    def state_at(self, seed: int, devices: Devices, step: int) -> State:
        return self.of.state_at(seed, devices, step)

    def budget(self, state: State, seed: int, devices: Devices, base_bytes: FloatArray, now: Moment) -> FloatArray:
        below = self.of.budget(state, seed, devices, base_bytes, now)
        ended = self.until_round is not None and now.server_round >= self.until_round
        return below * self.factor if now.server_round >= self.at_round and not ended else below

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
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
        raise FieldError(f"{value['process']!r} is no subclass of clients.fleet.budgets.BudgetProcess", "process")
    keys = {key: entry for key, entry in value.items() if key != "process"}
    return process.model_validate(keys, context=info.context)
