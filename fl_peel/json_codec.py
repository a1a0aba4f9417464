"""Dataclasses to plain JSON types and back: the layout of a file is written once, as the types of what it holds.

A field goes by its own name, or by that of its :class:`JsonKey`. A field whose default is None is left out while it is
None; without that default None is written as null, which says: looked for, and not there. :class:`Inline` lays the keys
of a part among those of its owner, a :class:`Layout` decides on other keys. Keys that no type knows are passed over,
so that a newer report can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path as FilePath
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from fl_peel.errors import ReportError
from fl_peel.problems import problems

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class JsonKey:
    """Name of a field in JSON; ``{name}`` in it is filled in when a file is written or read."""

    text: str


@dataclass(frozen=True)
class Inline:
    """The keys of this part, or of this dictionary, stand among those of its owner, with a prefix before each. holding:
    text that each key of the dictionary has in it.
    """

    prefix: str = ""
    holding: str = ""


@runtime_checkable
class Layout(Protocol):
    """How a value that takes several keys of its owner stands among them; a mark of the field."""

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the keys that it takes, that of the field first."""

    def write(self, key: str, value: Any) -> dict[str, Any]:
        """Return its entries."""

    def read(self, key: str, plain: Mapping[str, Any], read: Callable[[Any, str], Any]) -> Any:
        """Return the value. read: what a mapping has of a type under a key."""


UNWRITTEN = MappingProxyType({"written": False})
"""Metadata of a field that has no place in JSON."""


def laid_flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of nested dictionaries by path, ``{"a.b": 1}`` of ``{"a": {"b": 1}}``; empty ones are values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{path}": one for path, one in laid_flat(value).items()}
        else:
            flat[key] = value
    return flat


def to_plain(value: Any, where: str = "result", **names: object) -> Any:
    """Return a value in plain JSON types: dataclasses as dictionaries, fields in order; tuples as lists; numbers of
    NumPy as Python's; paths as text. where: names the value in messages; names: of placeholders in keys.

    Raises:
        ReportError: with the key's path, for NaN, infinity and anything that JSON cannot express.
    """
    if is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {}
        owner: type = type(value)
        for one in fields_of(owner):
            part, key = getattr(value, one.name), one.key.format(**names)
            if not one.written or (part is None and one.may_lack):
                continue
            if one.layout is not None:
                estimates = {key: part} if one.inline is None else part
                for name, estimate in estimates.items():
                    laid = _prefixed(one.inline or "", one.layout.write(name, estimate))
                    plain |= to_plain(laid, where, **names)
                continue
            content = to_plain(part, f"{where}.{key}", **names)
            plain |= {key: content} if one.inline is None else _prefixed(one.inline, content)
        return plain
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise ReportError(f"{where} has the key {wrong!r}: keys must be text; use str(key)")
        return {key: to_plain(part, f"{where}.{key}", **names) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part, f"{where}.{index}", **names) for index, part in enumerate(value)]
    return _plain_leaf(value.item() if getattr(value, "shape", None) == () else value, where)


def _plain_leaf(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, FilePath):
        return str(value)
    if not isinstance(value, float):
        raise ReportError(f"{where} is a {type(value).__name__}: use numbers, text, lists and dictionaries only")
    if not math.isfinite(value):
        raise ReportError(
            f"{where} is {value}: a reported number must be finite; use None for what was not measured, "
            "and look for a diverged training (lower the learning rate) otherwise"
        )
    return value


def from_plain(kind: type[Kind], plain: object, what: str, **names: object) -> Kind:
    """The inverse of :func:`to_plain`; ``what`` is read, for messages.

    Raises:
        ReportError: a key is missing or its value of the wrong type or out of range; its path is named.
    """
    value: Kind = _JsonReader(what, names).read(kind, plain, ())
    return value


def _prefixed(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: part for key, part in content.items()}


@dataclass(frozen=True)
class JsonField:
    """A field of a dataclass. may_lack: its key is not there where it is None; required: it has no default."""

    name: str
    key: str
    kind: Any
    inline: str | None
    holding: str
    may_lack: bool
    required: bool
    layout: Layout | None
    written: bool


@cache
def fields_of(owner: type) -> tuple[JsonField, ...]:
    """Return the fields of a dataclass, and how each is written."""
    hints = get_type_hints(owner, include_extras=True)
    described = []
    for field in fields(owner):
        hint = hints[field.name]
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        key = next((mark.text for mark in marks if isinstance(mark, JsonKey)), field.name)
        mark = next((mark for mark in marks if isinstance(mark, Inline)), None)
        inline, holding = (None, "") if mark is None else (mark.prefix, mark.holding)
        required = field.default is MISSING and field.default_factory is MISSING
        layout = next((mark for mark in marks if isinstance(mark, Layout)), None)
        written = bool(field.metadata.get("written", True))
        described.append(
            JsonField(field.name, key, hint, inline, holding, field.default is None, required, layout, written)
        )
    return tuple(described)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def bare_type(kind: Any) -> Any:
    """Return the type without its annotations, and without ``| None`` where a dataclass or a collection is left."""
    if get_origin(kind) is Annotated:
        return bare_type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        rest = [part for part in get_args(kind) if part is not type(None)]
        if len(rest) == 1:
            return bare_type(rest[0])
    return kind


Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _JsonReader:
    """Reader of values by their types. names: values for placeholders in keys."""

    what: str
    names: Mapping[str, object]

    def read(self, kind: Any, value: object, path: Path) -> Any:
        bare = bare_type(kind)
        if is_dataclass(bare):
            if value is None and bare is not kind:
                return None
            return self._dataclass(bare, self._mapping(value, path), path)
        origin, parts = get_origin(bare), get_args(bare)
        if origin is dict:
            content = self._mapping(value, path)
            return {key: self.read(parts[1], part, (*path, key)) for key, part in content.items()}
        if origin is tuple:
            if not isinstance(value, (list, tuple)):
                raise self._error("must be a list", path)
            return tuple(self.read(parts[0], part, (*path, place)) for place, part in enumerate(value))
        try:
            return _adapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise self._error(problems(error)[0][1], path) from None

    def _dataclass(self, owner: Any, plain: Mapping[str, Any], path: Path) -> Any:
        values: dict[str, Any] = {}
        for one in fields_of(owner):
            key = one.key.format(**self.names)
            if one.inline is not None:
                part = self._inlined(owner, one, plain)
                if one.layout is not None:
                    others = {name for whole in part for name in one.layout.keys(whole)[1:]}
                    values[one.name] = {
                        whole: self._laid(one.layout, whole, part, path) for whole in part if whole not in others
                    }
                elif part or one.required:
                    values[one.name] = self.read(one.kind, part, path)
            elif key in plain and one.layout is not None:
                values[one.name] = self._laid(one.layout, key, plain, path)
            elif key in plain:
                values[one.name] = self.read(one.kind, plain[key], (*path, key))
            elif one.required:
                raise self._error("is missing", (*path, key))
        return owner(**values)

    def _laid(self, layout: Layout, key: str, plain: Mapping[str, Any], path: Path) -> Any:
        return layout.read(key, plain, lambda kind, name: self.read(kind, plain[name], (*path, name)))

    def _inlined(self, owner: Any, one: JsonField, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that belong to an inlined field, without their prefix."""
        prefix, bare = one.inline or "", bare_type(one.kind)
        rest = {key.removeprefix(prefix): part for key, part in plain.items() if key.startswith(prefix)}
        if is_dataclass(bare):
            mine = self._keys(bare)
            return {key: part for key, part in rest.items() if key in mine}
        rest = {key: part for key, part in rest.items() if one.holding in key}
        if prefix:
            return rest
        others = [other for other in fields_of(owner) if other is not one]  # a dictionary has whatever they leave
        known = {key for other in others for key in self._keys_of(other)}
        prefixes = tuple(other.inline for other in others if other.inline)
        return {key: part for key, part in rest.items() if key not in known and not key.startswith(prefixes)}

    def _keys(self, owner: Any) -> set[str]:
        return {key for one in fields_of(owner) for key in self._keys_of(one)}

    def _keys_of(self, one: JsonField) -> set[str]:
        bare = bare_type(one.kind)
        if one.inline is not None and is_dataclass(bare):
            return self._keys(bare)
        key = one.key.format(**self.names)
        return {key} if one.layout is None else set(one.layout.keys(key))

    def _mapping(self, value: object, path: Path) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error("must be a mapping of keys", path)
        return value

    def _error(self, message: str, path: Path) -> ReportError:
        where = ".".join(str(step) for step in path) or "the whole"
        return ReportError(f"{self.what}: {where}: {message}; see strategies/figures/schema.py")
