"""The memory budgets of given devices over time: what a cohort asks every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clients.fleet.profile import DeviceProfile
from clients.keys.distributions import FloatArray
from clients.processes.base import BudgetProcess, Clock, Devices, State
from fl_peel.errors import ProfileError
from fl_peel.randomness import seed_for

_LARGEST_BUDGET = 2.0**62


@dataclass(frozen=True)
class _ClassBudgets:
    """The devices of one class: their place in the answer, ids, and what their budgets derive from."""

    name: str
    index: NDArray[np.int64]
    devices: Devices
    process: BudgetProcess
    seed: int
    base_bytes: FloatArray
    ceiling_bytes: FloatArray
    working_bytes: FloatArray


class Classes(Protocol):
    """The interface of a fleet (:class:`clients.fleet.fleet.Fleet`): its budget clock, and the class of each device."""

    @property
    def clock(self) -> Clock:
        """The budget clock."""

    def members(self, seed: int, ids: Devices) -> list[tuple[NDArray[np.int64], DeviceProfile]]:
        """Positions of the devices of each class that has any."""


class FleetBudgets:
    """Memory budgets of given devices over time, (N,) int64 bytes in the order of the devices.

    Times are in rounds and may be fractions: budgets are constant within a step of the fleet's clock
    (``steps_per_round`` steps per round). Calls with increasing times are fast; going back starts over. Results do not
    depend on earlier calls.
    """

    def __init__(self, fleet: Classes, seed: int, devices: NDArray[np.integer], full_table_bytes: int) -> None:
        ids = device_ids(devices)
        self.fleet = fleet
        self.num_devices = len(ids)
        self._parts = tuple(
            self._part(profile, index, ids if len(index) == len(ids) else ids[index], seed, full_table_bytes)
            for index, profile in fleet.members(seed, ids)
        )
        self._step = -1
        self._states: tuple[State, ...] = ()
        self._round: tuple[int, NDArray[np.int64]] | None = None

    @staticmethod
    def _part(
        profile: DeviceProfile, index: NDArray[np.int64], devices: Devices, seed: int, full_table_bytes: int
    ) -> _ClassBudgets:
        budget_seed = seed_for(seed, "budget", profile.name)
        base = profile.base_bytes(seed, devices, full_table_bytes=full_table_bytes)
        limit = profile.limit_bytes(seed, devices)
        ceiling = profile.budget.ceiling(budget_seed, devices, base)
        _refuse(profile.name, "ceiling", ~(ceiling >= 0), devices)
        ceiling = np.minimum(ceiling, np.minimum(limit, _LARGEST_BUDGET))
        working = profile.working_bytes(seed, devices, ceiling_bytes=ceiling)
        _refuse(profile.name, "working memory", ~(working >= 0), devices)
        working = np.minimum(working, _LARGEST_BUDGET)
        sizes = held_once(base), held_once(ceiling), held_once(working)
        return _ClassBudgets(profile.name, index, devices, profile.budget, budget_seed, *sizes)

    def ceiling(self) -> NDArray[np.int64]:
        """Return the bytes that each device's budget never exceeds."""
        return self._whole(lambda part: part.ceiling_bytes)

    def working(self) -> NDArray[np.int64]:
        """Return the bytes that each device may use during training beyond what it stores; not to be changed."""
        return self._working

    @cached_property
    def _working(self) -> NDArray[np.int64]:
        return held_once(self._whole(lambda part: part.working_bytes))

    def _whole(self, num_bytes: Callable[[_ClassBudgets], FloatArray]) -> NDArray[np.int64]:
        """Whole bytes of each device."""
        result = np.zeros(self.num_devices, dtype=np.int64)
        for part in self._parts:
            result[part.index] = np.floor(num_bytes(part)).astype(np.int64)
        return result

    def at(self, server_round: float) -> NDArray[np.int64]:
        """Return the budgets at a time in rounds.

        Raises:
            ProfileError: a plugged-in process gave a budget below 0 or above its own ceiling.
        """
        step = self.fleet.clock.step_of(server_round)
        states = self._states_at(step)
        self._step, self._states = step, states
        return self._budgets(step, states)

    def within(self, server_round: float, fractions: Sequence[float]) -> NDArray[np.int64]:
        """Return the budgets at ``server_round + fraction`` for each fraction (any order), (F, N). Looking ahead keeps
        ``at(server_round)`` fast afterwards."""
        result = np.zeros((len(fractions), self.num_devices), dtype=np.int64)
        steps = [self.fleet.clock.step_of(server_round + fraction) for fraction in fractions]
        step, states = self._step, self._states
        for row in np.argsort(steps, kind="stable"):
            states = self._states_at(steps[row], from_step=step, from_states=states)
            step = steps[row]
            result[row] = self._budgets(step, states)
        return result

    def during(self, server_round: int) -> NDArray[np.int64]:
        """Return the budgets at every step of a round, (steps_per_round, N); the first row is ``at(server_round)``.
        Those of the last requested round are cached, since every message of a round needs them; they are not to be
        changed.
        """
        if self._round is None or self._round[0] != server_round:
            steps = self.fleet.clock.steps_per_round
            budgets = held_once(self.within(server_round, [step / steps for step in range(steps)]))
            self._round = server_round, budgets
        return self._round[1]

    def _states_at(
        self, step: int, *, from_step: int | None = None, from_states: tuple[State, ...] | None = None
    ) -> tuple[State, ...]:
        reached = self._step if from_step is None else from_step
        states = self._states if from_states is None else from_states
        if reached < 0 or step < reached:
            return tuple(part.process.state_at(part.seed, part.devices, step) for part in self._parts)
        for later in range(reached + 1, step + 1):
            states = tuple(
                part.process.advance(state, part.seed, part.devices, later)
                for part, state in zip(self._parts, states, strict=True)
            )
        return states

    def _budgets(self, step: int, states: tuple[State, ...]) -> NDArray[np.int64]:
        now = self.fleet.clock.moment(step)
        result = np.zeros(self.num_devices, dtype=np.int64)
        for part, state in zip(self._parts, states, strict=True):
            budget = part.process.budget(state, part.seed, part.devices, part.base_bytes, now)
            highest = part.process.ceiling(part.seed, part.devices, part.base_bytes)
            _refuse(part.name, f"budget at step {step}", ~((budget >= 0) & (budget <= highest)), part.devices)
            result[part.index] = np.floor(np.minimum(budget, part.ceiling_bytes)).astype(np.int64)
        return result


def device_ids(devices: NDArray[np.integer]) -> Devices:
    """Device ids as (N,) int64.

    Raises:
        TypeError: not a one-dimensional array of integers.
    """
    ids = np.asarray(devices)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise TypeError(f"device ids must be a one-dimensional array of integers (got {ids.dtype}, {ids.shape})")
    return ids.astype(np.int64, copy=False)


def held_once(values: NDArray[Any]) -> NDArray[Any]:
    """Values as they are; where all are the same, memory holds one of them, and they cannot be changed."""
    first = values[(slice(0, 1),) * values.ndim]
    return np.broadcast_to(first.copy(), values.shape) if values.size and (values == first).all() else values


def _refuse(name: str, what: str, wrong: NDArray[np.bool_], devices: Devices) -> None:
    if wrong.any():
        first = int(devices[np.argmax(wrong)])
        raise ProfileError(
            f"{name}: its budget process gave a {what} out of range for device {first}; "
            "test the process with clients.fleet.contracts.BudgetContract"
        )
