"""How a mistake in a scenario, a fleet or a report becomes one line, as ``path.of.the[3].key: is missing``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from fl_peel.errors import FieldError, PathPart, shortened
from fl_peel.plugins import did_you_mean, nearest
from fl_peel.safe_yaml import kind_of

MOST_TOLD = 3
"""Problems that one line tells; of more, their number."""
_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "missing": "is missing",
        "float_type": "must be a number",
        "float_parsing": "must be a number",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_from_float": "must be a whole number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
        "string_type": "must be text",
        "string_unicode": "must be text in Unicode",
        "tuple_type": "must be a list in brackets, e.g. [a, b]",
        "list_type": "must be a list in brackets, e.g. [a, b]",
        "dict_type": "must be a mapping of keys, e.g. {a: 1}",
        "finite_number": "must be a finite number",
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be {ge} or more",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
        "too_long": "has more than {max_length} entries",
        "string_too_long": "has more than {max_length} characters",
    }
)
"""What is wrong, by pydantic's name for it."""


def problems(
    error: ValidationError, prefix: tuple[PathPart, ...] = (), model: type[BaseModel] | None = None
) -> list[tuple[tuple[PathPart, ...], str]]:
    """Return the path and the message of every problem. model: what was built, so that unknown keys are guessed at."""
    lines: list[tuple[tuple[PathPart, ...], str]] = []
    for item in error.errors(include_url=False):
        path, context = (*prefix, *item["loc"]), item.get("ctx", {})
        cause = context.get("error")
        if isinstance(cause, ValidationError):
            lines.extend(problems(cause, path))
        elif isinstance(cause, FieldError):
            lines.append(((*path, *cause.path), str(cause)))
        elif cause is not None:
            lines.append((path, str(cause)))
        elif item["type"] == "extra_forbidden":
            lines.append((path, f"unknown key; {_guess(model, item['loc'])}"))
        else:
            got = "" if item["type"] == "missing" else f" (got {kind_of(item['input'])})"
            lines.append((path, _text(item["type"], context, model, item["loc"], item["msg"]) + got))
    return lines


def _text(
    kind: str, context: Mapping[str, Any], model: type[BaseModel] | None, path: tuple[PathPart, ...], otherwise: str
) -> str:
    if kind in _WORDS:
        whole = {
            name: int(one) if isinstance(one, float) and one.is_integer() else one for name, one in context.items()
        }
        return _WORDS[kind].format(**whole)
    if kind == "literal_error":
        return f"must be one of {str(context['expected']).replace(chr(39), '').replace(' or ', ', ')}"
    if kind in ("model_type", "model_attributes_type"):
        return f"must be a mapping of keys: {', '.join(_keys(model, path))}"
    return otherwise[:1].lower() + otherwise[1:].replace("Input should be", "must be")


def key_path(path: tuple[PathPart, ...]) -> str:
    """Write ``("profiles", 2, "memory")`` as ``profiles[2].memory``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def explain(error: ValidationError, *prefix: PathPart, model: type[BaseModel] | None = None) -> str:
    """Put a validation error in one line: its first problems, and how many more there are."""
    texts = []
    lines = problems(error, prefix, model)
    for path, message in lines[:MOST_TOLD]:
        place = shortened(key_path(path), 200)
        unknown = model is not None and message.startswith("unknown key;")
        texts.append(message.replace("unknown key", f"unknown key {place}", 1) if unknown else f"{place}: {message}")
    more = f" (and {len(lines) - MOST_TOLD} more)" if len(lines) > MOST_TOLD else ""
    return " ".join(("; and ".join(text.removeprefix(": ") for text in texts) + more).split())


def _guess(model: type[BaseModel] | None, path: tuple[PathPart, ...]) -> str:
    """Say which key may have been meant: one of the same mapping, or of the same name elsewhere."""
    known, word = _keys(model, path[:-1]), str(path[-1])
    if close := nearest(word, known):
        return f"did you mean {close!r}?"
    elsewhere = keys_named(model, word)
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(word, known)


def keys_named(model: type[BaseModel] | None, word: str) -> list[str]:
    """Return the paths of the first keys anywhere in a model that have a name, or one that it is short for."""
    paths = [path for path in _paths(model) if nearest(word, [path.rpartition(".")[2]], cutoff=1.0)]
    return paths[:MOST_TOLD]


def _keys(model: type[BaseModel] | None, path: tuple[PathPart, ...]) -> list[str]:
    for part in path:
        field = None if model is None else model.model_fields.get(str(part))
        model = _model_of(None if field is None else field.annotation)
    return [] if model is None else list(model.model_fields)


def _paths(model: type[BaseModel] | None, prefix: str = "") -> Iterator[str]:
    for name, field in ({} if model is None else model.model_fields).items():
        yield prefix + name
        yield from _paths(_model_of(field.annotation), f"{prefix}{name}.")


def _model_of(annotation: object) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
