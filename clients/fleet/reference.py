"""The JSON Schema of a fleet file, made from the classes that read it; lists of its keys are made from the schema."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clients.fleet.files import FleetDocument
from clients.keys.distributions import distribution_schema
from clients.processes.availability import DiurnalAvailability, TraceAvailability
from clients.processes.budgets import BUDGETS, BudgetProcess
from fl_peel.scenario.reference import DRAFT, Part, parts_of

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
        parts[_named(name)] = process
    plain = [name for name, process in processes.items() if process["required"] == ["process"]]
    parts["Budget"] = {"anyOf": [{"enum": plain}, *({"$ref": _DEFS + _named(name)} for name in processes)]}
    parts["Availability"] = _availability(parts)
    budget, availability = {"$ref": f"{_DEFS}Budget"}, {"$ref": f"{_DEFS}Availability"}
    profile = parts["DeviceProfile"]["properties"]
    profile["budget"] |= budget | {"default": "constant"}
    profile["availability"] |= availability | {"default": 1.0}
    parts[_named("shock")]["properties"]["of"] |= budget | {"default": "constant"}
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


def _named(process: str) -> str:
    return f"budget-{process}"


def _as_typed(node: Any, *, default: bool = False) -> Any:
    """A schema whose defaults are as one would type them: a constant is its number."""
    if isinstance(node, dict):
        if default and set(node) == {"value"}:
            return node["value"]
        return {key: _as_typed(value, default=default or key == "default") for key, value in node.items()}
    return [_as_typed(value, default=default) for value in node] if isinstance(node, list) else node
