"""Loading of a fleet, from its name, file, mapping or Python object to its checked profiles; and the JSON Schema of its
file, made from the classes that read it: lists of its keys are made from the schema.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError, field_validator

from clients.fleet.budgets import BUDGETS, BudgetProcess, Clock, Shock
from clients.fleet.distributions import distribution_schema
from clients.fleet.profile import DeviceProfile, DiurnalAvailability, TraceAvailability
from clients.fleet.specs import Folder, Spec
from clients.fleet.tabular import DATA_ENDINGS
from fl_peel.errors import FieldError, ProfileError, shortened
from fl_peel.files import file_kind
from fl_peel.plugins import Registry, did_you_mean
from fl_peel.problems import StrictLoader, YamlFault, explain, kind_of, read_yaml_file
from fl_peel.scenario.fleet_files import FleetFile
from fl_peel.scenario.reference import DRAFT, Part, parts_of

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
