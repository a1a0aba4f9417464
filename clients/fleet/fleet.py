"""A fleet: devices of several classes, and their budgets over time.

A device is known by its integer id. Everything about it is a function of (seed, device id, profile): which other
devices are asked about, in which order, on which node, cannot matter. All functions take arrays of ids, (N,).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError, field_validator

from clients.fleet.budgets import BUDGETS, BudgetProcess, Clock, Devices, Shock, ShockBudget, State
from clients.fleet.distributions import FloatArray, cumulative, distribution_schema
from clients.fleet.profile import DeviceProfile, DiurnalAvailability, TraceAvailability
from clients.fleet.specs import Folder, Spec
from clients.fleet.tabular import DATA_ENDINGS
from fl_peel.errors import FieldError, ProfileError, shortened
from fl_peel.files import file_kind
from fl_peel.plugins import Registry, did_you_mean
from fl_peel.problems import StrictLoader, YamlFault, explain, kind_of, read_yaml_file
from fl_peel.randomness import device_uniforms, seed_for
from fl_peel.scenario.fleet_files import FleetFile, sent_files
from fl_peel.scenario.reference import DRAFT, Part, parts_of

# ---- Loading of a fleet, from its name, file, mapping or Python object to its checked profiles; and the JSON
# Schema of its file, made from the classes that read it: lists of its keys are made from the schema


SHIPPED_FOLDER = Path(__file__).parent / "shipped"
_SUFFIXES = (".yaml", ".yml")
PROFILES: Registry[object] = Registry("profile", "fl_peel.profiles")


class FleetDocument(Spec):
    """A fleet file: device classes and the budget clock."""

    profiles: tuple[DeviceProfile, ...]
    """Device classes, one profile each; `{use: NAME}` takes a profile that an installed package registered, and other
    keys beside it replace the profile's."""
    clock: Clock = Clock()
    """Budget clock."""
    shocks: tuple[Shock, ...] = ()
    """Shocks that change the budgets of all devices at once."""
    description: str = ""
    """Description that `fl-peel profiles list` prints."""

    @field_validator("profiles", mode="before")
    @classmethod
    def _use_named(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)) or not value:
            raise FieldError(f"must be a list with at least one profile (got {kind_of(value)})")
        if len(value) > 1000:
            raise FieldError(f"has {len(value)} profiles; at most 1000: use distributions within a profile")
        return [_named(entry, i) for i, entry in enumerate(value)]

    @field_validator("profiles")
    @classmethod
    def _check_population(cls, value: tuple[DeviceProfile, ...]) -> tuple[DeviceProfile, ...]:
        names = [profile.name for profile in value]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise FieldError(f"{name!r} is already the name of profiles[{names.index(name)}]", i, "name")
        population_shares(value)
        return value


def _named(entry: object, place: int) -> object:
    """Fill in ``{use: name, ...}``: a profile that an installed package registered, with some keys replaced."""
    if not isinstance(entry, Mapping) or "use" not in entry:
        return entry
    try:
        profile = call_registered(str(entry["use"]))
    except FieldError as error:
        raise FieldError(str(error), place, "use") from None
    if not isinstance(profile, DeviceProfile):
        raise FieldError(f"{entry['use']!r} is {kind_of(profile)}, not one DeviceProfile", place, "use")
    replaced = {key: value for key, value in entry.items() if key != "use"}
    kept = {key: getattr(profile, key) for key in profile.model_fields_set if key not in replaced}
    if {"population_share", "population_count"} & set(replaced):
        kept = {key: value for key, value in kept.items() if key not in ("population_share", "population_count")}
    return type(profile).model_validate({**kept, **replaced})


def call_registered(name: str) -> object:
    """Return what the entry point ``name`` of ``fl_peel.profiles`` makes (a class or function without arguments).

    Raises:
        FieldError: unknown, not importable, or it fails.
    """
    target = PROFILES.get(name)
    try:
        return target() if callable(target) else target
    except Exception as error:
        detail = explain(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise FieldError(f"the profile {name!r} cannot be made: {' '.join(detail.split())}") from None


def population_shares(profiles: tuple[DeviceProfile, ...]) -> tuple[float, ...]:
    """Share of the population per profile: by shares that sum to 1, by counts, or evenly when no profile says.

    Raises:
        FieldError: shares and counts are mixed, some are missing, or the shares do not sum to 1.
    """
    shares = [profile.population_share for profile in profiles if profile.population_share is not None]
    counts = [profile.population_count for profile in profiles if profile.population_count is not None]
    if not shares and not counts:
        return tuple(1.0 / len(profiles) for _ in profiles)
    if len(shares) not in (0, len(profiles)) or len(counts) not in (0, len(profiles)):
        raise FieldError("all need population_share, or all population_count")
    if counts:
        return tuple(count / sum(counts) for count in counts)
    if abs(sum(shares) - 1.0) > 1e-6:
        raise FieldError(f"population_share must sum to 1 over all profiles (got {sum(shares):.6g})")
    return tuple(share / sum(shares) for share in shares)


def shipped_names() -> tuple[str, ...]:
    """Names of the fleets that ship."""
    return tuple(sorted(path.stem for path in SHIPPED_FOLDER.glob("*.yaml")))


def read_document(data: object, *, where: str, folder: Folder) -> FleetDocument:
    """Check a mapping as a fleet file holds it; ``where`` names it in errors, ``folder`` has the files that it names.

    Raises:
        ProfileError: it makes no sense.
    """
    if not isinstance(data, Mapping):
        raise ProfileError(f"{where}: must be a mapping with profiles at its top (got {kind_of(data)})")
    try:
        return FleetDocument.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise ProfileError(f"{where}: {explain(error)}") from None


def read_source(source: str | Path) -> tuple[FleetDocument, str]:
    """Read a fleet by its name (shipped or registered) or its file; also returns how to call it in errors.

    Raises:
        ProfileError: no such fleet, or it makes no sense.
    """
    text = str(source)
    if isinstance(source, str) and is_name(text):
        return read_named(text)
    path = Path(os.path.expanduser(text))
    kind = file_kind(path)
    if kind == "folder":
        raise ProfileError(f"{text}: is a folder; give a fleet file in it")
    if kind == "nothing":
        known = sorted({*shipped_names(), *PROFILES.names()})
        raise ProfileError(f"{shortened(text, 200)}: no such fleet file or name; {did_you_mean(text, known)}")
    return read_document(_load_yaml(path), where=path.name, folder=path.parent.resolve()), path.name


def is_name(text: str) -> bool:
    """Whether a fleet of this name ships or is registered."""
    looks_like_one = not text.endswith(_SUFFIXES) and not re.search(r"[/\\\0]", text)
    return looks_like_one and (text in shipped_names() or text in PROFILES.names())


def read_named(name: str) -> tuple[FleetDocument, str]:
    """Read a fleet of which :func:`is_name` is true; also returns how to call it in errors.

    Raises:
        ProfileError: it makes no sense.
    """
    if name in shipped_names():
        path = SHIPPED_FOLDER / f"{name}.yaml"
        return read_document(_load_yaml(path), where=path.name, folder=path.parent.resolve()), path.name
    return _registered_document(name), name


def read_sent(file: FleetFile) -> tuple[FleetDocument, str]:
    """Read a fleet file that came with a message, and the files that it names: those alone that came with it. Also
    returns how to call it in errors.

    Raises:
        ProfileError: it makes no sense.
    """
    with TemporaryDirectory(prefix="fl-peel-fleet-") as folder:
        path = Path(folder) / "fleet.yaml"
        path.write_bytes(file.content)
        data: dict[str, Path] = {}
        for number, (name, content) in enumerate(file.data.items()):
            ending = Path(name).suffix.lower()
            data[name] = Path(folder) / f"{number}{ending if ending in DATA_ENDINGS else ''}"
            data[name].write_bytes(content)
        return read_document(_load_yaml(path), where=file.name, folder=data), file.name


def _registered_document(name: str) -> FleetDocument:
    try:
        content = call_registered(name)
    except FieldError as error:
        raise ProfileError(str(error)) from None
    if isinstance(content, DeviceProfile):
        content = {"profiles": [content.model_copy(update={"population_share": None, "population_count": None})]}
    elif isinstance(content, (list, tuple)):
        content = {"profiles": list(content)}
    return read_document(content, where=name, folder=Path())


class _Loader(StrictLoader):
    """YAML that reads 1e-3 as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load_yaml(path: Path) -> object:
    try:
        data = read_yaml_file(path, _Loader)
    except YamlFault as fault:
        raise ProfileError(f"{path.name}{fault.line}: {fault}") from None
    if data is None:
        raise ProfileError(f"{path.name}: is empty; it needs profiles")
    return data


_DEFS = "#/$defs/"
_PLACE = "profiles[]"


def fleet_schema() -> dict[str, Any]:
    """Return the JSON schema of fleet files, for editors. It covers budget processes of installed packages; it does not
    cover what only a whole fleet shows, such as that shares sum to 1.
    """
    schema = FleetDocument.model_json_schema()
    parts: dict[str, Any] = schema["$defs"]
    processes = budget_schemas()
    for name, process in processes.items():
        parts |= process.pop("$defs", {})
        parts[_part_name(name)] = process
    plain = [name for name, process in processes.items() if process["required"] == ["process"]]
    parts["Budget"] = {"anyOf": [{"enum": plain}, *({"$ref": _DEFS + _part_name(name)} for name in processes)]}
    parts["Availability"] = _availability(parts)
    budget, availability = {"$ref": f"{_DEFS}Budget"}, {"$ref": f"{_DEFS}Availability"}
    profile = parts["DeviceProfile"]["properties"]
    profile["budget"] |= budget | {"default": "constant"}
    profile["availability"] |= availability | {"default": 1.0}
    parts[_part_name("shock")]["properties"]["of"] |= budget | {"default": "constant"}
    used = {"type": "object", "required": ["use"], "properties": {"use": {"type": "string"}}}
    schema["properties"]["profiles"] |= {
        "items": {"anyOf": [{"$ref": f"{_DEFS}DeviceProfile"}, used]},
        "minItems": 1,
        "maxItems": 1000,
    }
    typed: dict[str, Any] = _as_typed({"$schema": DRAFT, **schema})
    return typed


def fleet_parts() -> list[Part]:
    """Return every key of a fleet file, by the mapping that holds it; processes and availability by name."""
    schema = _as_typed(FleetDocument.model_json_schema())
    profile = schema["$defs"]["DeviceProfile"]["properties"]
    profile["budget"] |= {"type": "object", "title": "process", "default": "constant"}
    profile["availability"] |= {"type": "object", "title": "probability, diurnal or trace", "default": 1.0}
    parts = parts_of(schema)
    for name, process in budget_schemas().items():
        if "of" in process["properties"]:
            process["properties"]["of"] |= {"type": "object", "title": "process", "default": "constant"}
        parts += [replace(part, path=f"{_PLACE}.budget, process: {name}") for part in parts_of(process)]
    for name, kind in availability_schemas().items():
        parts += [replace(part, path=f"{_PLACE}.availability.{name}") for part in parts_of(kind)]
    return parts


def budget_schemas() -> dict[str, dict[str, Any]]:
    """Keys of every budget process, by its name, ``process`` among them."""
    schemas = {}
    for name in BUDGETS.names():
        kind = BUDGETS.get(name)
        if isinstance(kind, type) and issubclass(kind, BudgetProcess):
            schema = kind.model_json_schema()
            keys = {"process": {"const": name, "description": "Name of the process."}, **schema.get("properties", {})}
            schemas[name] = schema | {"properties": keys, "required": ["process", *schema.get("required", ())]}
    return {name: _as_typed(schema) for name, schema in schemas.items()}


def availability_schemas() -> dict[str, dict[str, Any]]:
    """Keys below ``diurnal`` and ``trace``."""
    schemas = {"diurnal": DiurnalAvailability.model_json_schema(), "trace": TraceAvailability.model_json_schema()}
    return {name: _as_typed(schema) for name, schema in schemas.items()}


def _availability(parts: dict[str, Any]) -> dict[str, Any]:
    share = distribution_schema(minimum=0, maximum=1)
    kinds = {"probability": share}
    for name, schema in availability_schemas().items():
        parts[f"availability-{name}"] = schema
        kinds[name] = {"$ref": f"{_DEFS}availability-{name}"}
    choices = [
        {"type": "object", "properties": {name: kind}, "required": [name], "additionalProperties": False}
        for name, kind in kinds.items()
    ]
    return {"anyOf": [*share["anyOf"], *choices]}


def _part_name(process: str) -> str:
    return f"budget-{process}"


def _as_typed(node: Any, *, default: bool = False) -> Any:
    """A schema whose defaults are as one would type them: a constant is its number."""
    if isinstance(node, dict):
        if default and set(node) == {"value"}:
            return node["value"]
        return {key: _as_typed(value, default=default or key == "default") for key, value in node.items()}
    return [_as_typed(value, default=default) for value in node] if isinstance(node, list) else node


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
