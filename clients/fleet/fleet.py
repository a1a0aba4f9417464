"""A fleet: device classes with their shares of the population, and what each of its devices is like.

A device is known by its integer id. Everything about it is a function of (seed, device id, profile): which other
devices are asked about, in which order, on which node, cannot matter. All functions take arrays of ids, (N,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

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
from clients.fleet.fleet_budgets import FleetBudgets, device_ids
from clients.fleet.profile import DeviceProfile
from clients.keys.distributions import FloatArray, cumulative
from clients.processes.base import Clock
from clients.processes.budgets import ShockBudget
from fl_peel.errors import ProfileError
from fl_peel.file_kind import file_kind
from fl_peel.plugins import did_you_mean
from fl_peel.problems import explain
from fl_peel.randomness import device_uniforms, seed_for
from fl_peel.scenario.fleet_files import FleetFile, sent_files


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

        ``device``, ``class`` (index), ``class_name``, ``total_bytes`` (infinite where unknown), ``base_bytes``,
        ``ceiling_bytes``, ``working_bytes``, ``budget_bytes`` and ``available`` at round 0, and the keys of
        :meth:`rates`.
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
