"""A fleet: devices of several classes, and their budgets over time.

A device is known by its integer id. Everything about it is a function of (seed, device id, profile): which other
devices are asked about, in which order, on which node, cannot matter. All functions take arrays of ids, (N,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from clients.fleet.budgets import BudgetProcess, Clock, Devices, ShockBudget, State
from clients.fleet.distributions import FloatArray, cumulative
from clients.fleet.files import (
    PROFILES,
    FleetDocument,
    is_name,
    population_shares,
    read_document,
    read_named,
    read_sent,
    read_source,
    shipped_names,
)
from clients.fleet.profile import DeviceProfile
from fl_peel.errors import ProfileError
from fl_peel.files import file_kind
from fl_peel.plugins import did_you_mean
from fl_peel.problems import explain
from fl_peel.randomness import device_uniforms, seed_for
from fl_peel.scenario.fleet_files import FleetFile, sent_files

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
        """Return the budgets at ``server_round + fraction`` for each fraction, (F, N); looking ahead costs little."""
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


@dataclass(frozen=True)
class Fleet:
    """Fleet: device classes, the share of the population of each, and the budget clock."""

    profiles: tuple[DeviceProfile, ...]
    clock: Clock = field(default_factory=Clock)
    source: str = "fleet"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the device classes, by class index."""
        return tuple(profile.name for profile in self.profiles)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of the population of each class; they sum to 1."""
        return population_shares(self.profiles)

    @property
    def precisions(self) -> tuple[str | None, ...]:
        """Block precision of each class; None where the scenario's applies."""
        return tuple(profile.precision for profile in self.profiles)

    def classes(self, seed: int, devices: NDArray[np.integer]) -> NDArray[np.int16]:
        """Return the class index of each device, (N,), drawn by population share."""
        drawn = device_uniforms(seed, "fleet", "class", devices=device_ids(devices))
        return np.searchsorted(cumulative(self.shares), drawn, side="right").astype(np.int16)

    def budget_bytes(
        self, seed: int, devices: NDArray[np.integer], server_round: float, *, full_table_bytes: int
    ) -> NDArray[np.int64]:
        """Return the memory budget of each device at a time in rounds, (N,) bytes, from scratch. To follow the same
        devices over time use :class:`FleetBudgets`.

        Raises:
            ProfileError: a plugged-in process gave a budget below 0 or above its own ceiling.
        """
        return FleetBudgets(self, seed, devices, full_table_bytes).at(server_round)

    def rates(self, seed: int, devices: NDArray[np.integer]) -> dict[str, FloatArray]:
        """``samples_per_s``, ``uplink_mbps``, ``downlink_mbps``, ``latency_ms``, ``train_watts``,
        ``radio_joules_per_mb``: (N,) each.
        """
        ids = device_ids(devices)
        result = {key: np.zeros(len(ids)) for key in self.profiles[0].rates(seed, ids[:0])}
        for index, profile in self.members(seed, ids):
            for key, values in profile.rates(seed, ids[index]).items():
                result[key][index] = values
        return result

    def available(self, seed: int, devices: NDArray[np.integer], server_round: float) -> NDArray[np.bool_]:
        """Return whether each device can be sampled at a time in rounds, (N,) bool."""
        ids = device_ids(devices)
        now = self.clock.moment(self.clock.step_of(server_round))
        result = np.zeros(len(ids), dtype=np.bool_)
        for index, profile in self.members(seed, ids):
            result[index] = profile.available(seed_for(seed, "available", profile.name), ids[index], now)
        return result

    def sample(
        self, seed: int, devices: NDArray[np.integer], *, full_table_bytes: int = 10_000_000
    ) -> dict[str, NDArray[np.generic]]:
        """Sample what devices are like at the start: (N,) arrays by key. ``device``, ``class`` (index), ``class_name``,
        ``total_bytes`` (infinite where unknown), ``base_bytes``, ``ceiling_bytes``, ``working_bytes``, ``budget_bytes``
        and ``available`` at round 0, and the keys of :meth:`rates`.
        """
        ids = device_ids(devices)
        classes = self.classes(seed, ids)
        budgets = FleetBudgets(self, seed, ids, full_table_bytes)
        total, base = np.full(len(ids), np.inf), np.zeros(len(ids))
        for index, profile in self.members(seed, ids):
            total[index] = profile.limit_bytes(seed, ids[index])
            base[index] = profile.base_bytes(seed, ids[index], full_table_bytes=full_table_bytes)
        return {
            "device": ids,
            "class": classes,
            "class_name": np.asarray(self.names)[classes],
            "total_bytes": total,
            "base_bytes": base,
            "ceiling_bytes": budgets.ceiling(),
            "working_bytes": budgets.working(),
            "budget_bytes": budgets.at(0),
            "available": self.available(seed, ids, 0),
            **self.rates(seed, ids),
        }

    def only(self, name: str) -> Fleet:
        """Return the fleet of this class alone, as a real device of that class sees it.

        Raises:
            ProfileError: there is no such class.
        """
        if name not in self.names:
            raise ProfileError(f"{self.source}: has no profile {name!r}; {did_you_mean(name, self.names)}")
        profile = self.profiles[self.names.index(name)]
        alone = profile.model_copy(update={"population_share": None, "population_count": None})
        return Fleet((alone,), self.clock, self.source)

    def with_shock(self, *, at_round: int, factor: float, until_round: int | None = None) -> Fleet:
        """Return the fleet with all budgets times ``factor`` from ``at_round`` on (until ``until_round``).

        Raises:
            ProfileError: a negative number, or an end before the start.
        """
        keys = {"at_round": at_round, "factor": factor, "until_round": until_round}
        try:
            changed = tuple(
                profile.model_copy(update={"budget": ShockBudget.model_validate({**keys, "of": profile.budget})})
                for profile in self.profiles
            )
        except ValidationError as error:
            raise ProfileError(f"shock: {explain(error)}") from None
        return replace(self, profiles=changed)

    def members(self, seed: int, ids: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], DeviceProfile]]:
        """Return the positions of the devices of each class that has any."""
        classes = self.classes(seed, ids)
        by_class = [(np.flatnonzero(classes == number), profile) for number, profile in enumerate(self.profiles)]
        return [(index, profile) for index, profile in by_class if len(index)]


def load_fleet(source: str | Path | Sequence[str | Path]) -> Fleet:
    """Load a fleet: a shipped or registered name, a YAML file, ``name:class`` for one class, or several of them.

    Several sources become one fleet. All sources have equal weight, unless all give ``population_count``, which then
    add up.

    Raises:
        ProfileError: no such fleet, or its file makes no sense.
    """
    if isinstance(source, (str, Path)):
        return _load_one(source)
    fleets = [_load_one(entry) for entry in source]
    if not fleets:
        raise ProfileError("no fleet given; name one of " + ", ".join(shipped_names()))
    return fleets[0] if len(fleets) == 1 else _merged(fleets)


def load_sent_fleet(source: str | Sequence[str], files: str) -> Fleet:
    """Load the fleet of a scenario that came in a message: by name, or from the files that came with it
    (:func:`fl_peel.scenario.fleet_files.fleet_files`). No path in it is opened.

    Raises:
        ProfileError: an entry is neither, or makes no sense.
        MessageError: ``files`` holds no files.
    """
    sent = sent_files(files)
    fleets = [_load_sent(entry, sent) for entry in ([source] if isinstance(source, str) else source)]
    return fleets[0] if len(fleets) == 1 else _merged(fleets)


def _load_sent(entry: str, sent: Mapping[str, FleetFile]) -> Fleet:
    if entry in sent:
        fleet, only = _fleet(*read_sent(sent[entry])), sent[entry].only
    else:
        name, _, only = (entry, "", "") if is_name(entry) else entry.rpartition(":")
        if not is_name(name):
            raise ProfileError("fleet: names no fleet of this node, and its file did not come with it", public=True)
        fleet = _fleet(*read_named(name))
    return fleet.only(only) if only else fleet


def fleet_from_mapping(data: Mapping[str, object], *, where: str = "fleet", folder: Path | None = None) -> Fleet:
    """Make a fleet from the content of a fleet file; relative file names start at ``folder``.

    Raises:
        ProfileError: it makes no sense.
    """
    return _fleet(read_document(data, where=where, folder=folder or Path()), where)


def _load_one(source: str | Path) -> Fleet:
    text = str(source)
    if isinstance(source, str) and ":" in text and file_kind(Path(text)) == "nothing":
        name, _, only = text.rpartition(":")
        if name in shipped_names() or name in PROFILES.names() or file_kind(Path(name)) == "file":
            return _load_one(name).only(only)
    return _fleet(*read_source(source))


def _fleet(document: FleetDocument, where: str) -> Fleet:
    fleet = Fleet(document.profiles, document.clock, where)
    for shock in document.shocks:
        fleet = fleet.with_shock(at_round=shock.at_round, factor=shock.factor, until_round=shock.until_round)
    return fleet


def _merged(fleets: list[Fleet]) -> Fleet:
    source = "+".join(fleet.source for fleet in fleets)
    if len({fleet.clock for fleet in fleets}) > 1:
        raise ProfileError(f"{source}: their clocks differ; give all the same step_s and steps_per_round")
    by_count = all(profile.population_count is not None for fleet in fleets for profile in fleet.profiles)
    profiles = [
        profile
        if by_count
        else profile.model_copy(update={"population_share": share / len(fleets), "population_count": None})
        for fleet in fleets
        for profile, share in zip(fleet.profiles, fleet.shares, strict=True)
    ]
    names = [profile.name for profile in profiles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProfileError(f"{source}: several have a profile {twice[0]!r}; rename one")
    return Fleet(tuple(profiles), fleets[0].clock, source)
