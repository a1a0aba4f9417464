"""Every key of a scenario: type, unit, default, limits, description; and the JSON Schema that they are read from.

The models are the one source: the schema is made from them, and lists of keys from the schema, of fleets likewise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fl_peel.scenario.base import PERCENT
from fl_peel.scenario.scenario import Scenario

Schema = Mapping[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
ANY_NAME = "NAME"
"""Stands in paths for the keys of a mapping that the user names."""
_TYPES = {"string": "text", "boolean": "true or false", "integer": "whole number"}
_LIMITS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
}


@dataclass(frozen=True)
class ScenarioKey:
    """One key. path: dotted, from the top; limits: as words, empty for none; default: None where it must be given,
    empty where nothing stands for it."""

    path: str
    type: str
    unit: str
    default: str | None
    limits: str
    description: str


@dataclass(frozen=True)
class Part:
    """Keys that belong together. path: of the mapping that holds them, empty for the top."""

    path: str
    description: str
    keys: tuple[ScenarioKey, ...]


def scenario_schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file, for editors. A file needs no name: its own is taken."""
    schema = Scenario.model_json_schema()
    schema["required"] = [key for key in schema["required"] if key != "name"]
    return {"$schema": DRAFT, **schema}


def parts_of(schema: Schema) -> list[Part]:
    """Every mapping of a schema with the keys directly in it, from the top down, in the order of the models."""
    return list(_parts(schema, schema, ""))


def keys_of(schema: Schema) -> list[ScenarioKey]:
    """Every key, in the same order."""
    return [key for part in parts_of(schema) for key in part.keys]


def _parts(schema: Schema, top: Schema, path: str) -> Iterator[Part]:
    keys, inner = [], []
    for name, node in schema.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        mappings = list(_mappings(node, top, place))
        if mappings:
            inner += mappings
        else:
            keys.append(_key(place, node, top, required=name in schema.get("required", ())))
    yield Part(path, _one_line(schema.get("description", "")), tuple(keys))
    for place, mapping in inner:
        yield from _parts(mapping, top, place)


def _mappings(node: Schema, top: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Mappings that stand at a key, with the path of their own keys."""
    node = _resolved(node, top)
    if "properties" in node:
        yield path, node
    if isinstance(node.get("additionalProperties"), Mapping):
        yield from _mappings(node["additionalProperties"], top, f"{path}.{ANY_NAME}")
    if isinstance(node.get("items"), Mapping):
        yield from _mappings(node["items"], top, f"{path}[]")
    for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _mappings(choice, top, path)


def _resolved(node: Schema, top: Schema) -> Schema:
    while "$ref" in node:
        node = {**top["$defs"][node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _key(path: str, node: Schema, top: Schema, *, required: bool) -> ScenarioKey:
    node = _resolved(node, top)
    kinds = list(dict.fromkeys(_kinds(node, top)))
    limits = ", ".join(dict.fromkeys(limit for one in _leaves(node, top) for limit in _limits(one)))
    units = [one["unit"] for one in _leaves(node, top) if "unit" in one]
    default = None if required else text_of(node["default"]) if "default" in node else ""
    return ScenarioKey(
        path, " or ".join(kinds), units[0] if units else "", default, limits, _one_line(node.get("description", ""))
    )


def _leaves(node: Schema, top: Schema) -> Iterator[Schema]:
    """A node and all that it may be instead or hold."""
    node = _resolved(node, top)
    yield node
    for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _leaves(choice, top)
    if isinstance(node.get("items"), Mapping):
        yield from _leaves(node["items"], top)


def _kinds(node: Schema, top: Schema) -> Iterator[str]:
    node = _resolved(node, top)
    choices = (*node.get("anyOf", ()), *node.get("oneOf", ()))
    for choice in choices:
        yield from _kinds(choice, top)
    if choices:
        return
    if node.get("pattern") == PERCENT:
        yield "percentage"
    elif "enum" in node or "const" in node:
        yield from (text_of(value) for value in node.get("enum", [node.get("const")]))
    elif node.get("type") == "array":
        items = list(dict.fromkeys(_kinds(node.get("items", {}), top)))
        yield f"list of {' or '.join(items)}" if items else "list"
    elif node.get("type") == "object" and "title" in node:
        yield str(node["title"])
    elif "type" in node:
        yield _TYPES.get(node["type"]) or str(node["type"])


def _limits(node: Schema) -> list[str]:
    return [words.format(text_of(node[key])) for key, words in _LIMITS.items() if key in node]


def text_of(value: Any) -> str:
    """A value as one would type it into a file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:_}" if value >= 100_000 else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {text_of(inner)}' for key, inner in value.items())}}}"
    return str(value) or '""'


def _one_line(text: str) -> str:
    """A docstring without line breaks, and with code marked as Markdown does."""
    return " ".join(re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`")).split())
