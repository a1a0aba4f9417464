"""A budget that follows what the device is doing: a Markov chain over foreground, background, low memory, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator, ValidationInfo, WithJsonSchema, field_validator, model_validator

from clients.keys.distributions import FloatArray
from clients.keys.specs import in_bounds, number
from clients.processes.base import BudgetProcess, Devices, Moment, State
from fl_peel.errors import FieldError, PathPart
from fl_peel.randomness import device_uniforms
from fl_peel.safe_yaml import kind_of


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
        """State numbers, (N,) int8."""
        if self.first is not None:
            return np.full(len(devices), list(self.states).index(self.first), dtype=np.int8)
        running = np.cumsum(self.long_run())
        drawn = device_uniforms(seed, "markov", 0, devices=devices)
        return np.searchsorted(running / running[-1], drawn, side="right").astype(np.int8)

    def advance(self, state: State, seed: int, devices: Devices, step: int) -> State:
        """State numbers, (N,) int8."""
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
        """(N,) bytes."""
        assert state is not None
        factors = np.asarray(list(self.states.values()), dtype=np.float64)
        return base_bytes * factors[state]

    def ceiling(self, seed: int, devices: Devices, base_bytes: FloatArray) -> FloatArray:
        """(N,) bytes."""
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
