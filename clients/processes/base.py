"""Definition of a budget process: the budget clock, and the interface that every process implements.

The budget clock ticks in steps: ``step_s`` seconds each, ``steps_per_round`` to a round. Within a step a budget
stands still. A process turns a device's *base* budget (from its profile's ``memory``) into its budget at a step.
Everything random in it is a function of (seed, device id, step), so a state may be reached step by step or from
scratch, for any devices in any order, and is the same.

A new process is a subclass of :class:`BudgetProcess` whose fields are its keys in the fleet file, registered as an
entry point of the group ``fl_peel.budgets`` and tested with :class:`clients.fleet.contracts.BudgetContract`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from clients.keys.distributions import FloatArray
from clients.keys.specs import PositiveFloat, Spec, as_schema, in_bounds, whole
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
        """Return the moment at which a step begins."""
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
        """Return the state at a step from scratch, equal to the one that ``advance`` reaches. Override it for a faster
        computation."""
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
