"""From a fleet's name, file, mapping or Python object to its checked profiles."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from clients.fleet.profile import DeviceProfile
from clients.keys.specs import NonNegativeFloat, NonNegativeInt, Spec, explain, kind_of
from clients.processes.base import Clock
from fl_peel.errors import FieldError, ProfileError
from fl_peel.plugins import Registry, did_you_mean

SHIPPED_FOLDER = Path(__file__).parent / "shipped"
MAX_FLEET_BYTES = 2**20
_MAX_ENTRIES = 100_000
_SUFFIXES = (".yaml", ".yml")
PROFILES: Registry[object] = Registry("profile", "fl_peel.profiles")


class Shock(Spec):
    """All budgets of the fleet times ``factor`` from ``at_round`` on (until ``until_round``, if given)."""

    at_round: NonNegativeInt
    factor: NonNegativeFloat
    until_round: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _check_rounds(self) -> Shock:
        if self.until_round is not None and self.until_round <= self.at_round:
            raise FieldError(f"must be after at_round {self.at_round} (got {self.until_round})", "until_round")
        return self


class FleetDocument(Spec):
    """The top level of a fleet file."""

    profiles: tuple[DeviceProfile, ...]
    clock: Clock = Clock()
    shocks: tuple[Shock, ...] = ()
    description: str = ""

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
        found = call_registered(str(entry["use"]))
    except FieldError as error:
        raise FieldError(str(error), place, "use") from None
    if not isinstance(found, DeviceProfile):
        raise FieldError(f"{entry['use']!r} is {kind_of(found)}, not one DeviceProfile", place, "use")
    replaced = {key: value for key, value in entry.items() if key != "use"}
    kept = {key: getattr(found, key) for key in found.model_fields_set if key not in replaced}
    if {"population_share", "population_count"} & set(replaced):
        kept = {key: value for key, value in kept.items() if key not in ("population_share", "population_count")}
    return type(found).model_validate({**kept, **replaced})


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


def read_document(data: object, *, where: str, folder: Path) -> FleetDocument:
    """Check a mapping as a fleet file holds it; ``where`` names it in errors.

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
    is_name = isinstance(source, str) and not text.endswith(_SUFFIXES) and not re.search(r"[/\\\0]", text)
    if is_name and text in shipped_names():
        path = SHIPPED_FOLDER / f"{text}.yaml"
    elif is_name and text in PROFILES.names():
        return _registered_document(text), text
    else:
        path = Path(text).expanduser() if "\0" not in text else Path("?")
        if path.is_dir():
            raise ProfileError(f"{text}: is a folder; give a fleet file in it")
        if not path.is_file():
            known = sorted({*shipped_names(), *PROFILES.names()})
            raise ProfileError(f"{text}: no such fleet file or name; {did_you_mean(text, known)}")
    return read_document(_load_yaml(path), where=path.name, folder=path.parent.resolve()), path.name


def _registered_document(name: str) -> FleetDocument:
    try:
        found = call_registered(name)
    except FieldError as error:
        raise ProfileError(str(error)) from None
    if isinstance(found, DeviceProfile):
        found = {"profiles": [found.model_copy(update={"population_share": None, "population_count": None})]}
    elif isinstance(found, (list, tuple)):
        found = {"profiles": list(found)}
    return read_document(found, where=name, folder=Path())


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads 1e-3 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _load_yaml(path: Path) -> object:
    num_bytes = path.stat().st_size
    if num_bytes > MAX_FLEET_BYTES:
        raise ProfileError(
            f"{path.name}: has {num_bytes} bytes, a fleet file at most {MAX_FLEET_BYTES}; "
            "put long series into a trace or empirical file"
        )
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path.name}: is not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ProfileError(f"{path.name}{line}: not valid YAML: {' '.join(str(error.problem).split())}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ProfileError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ProfileError(f"{path.name}: nested too deeply") from None
    except OSError as error:
        raise ProfileError(f"{path.name}: cannot be read: {error.strerror}") from None
    if data is None:
        raise ProfileError(f"{path.name}: is empty; it needs profiles")
    _check_extent(data, path.name)
    return data


def _check_extent(data: object, where: str) -> None:
    """Refuse a document that is small in the file and huge (or endless) once its anchors are followed."""
    pending, count = [data], 0
    while pending:
        entry = pending.pop()
        count += 1
        if count > _MAX_ENTRIES:
            raise ProfileError(f"{where}: has more than {_MAX_ENTRIES} entries once its anchors are followed")
        if isinstance(entry, Mapping):
            pending.extend(entry.values())
        elif isinstance(entry, list):
            pending.extend(entry)
