"""How a mistake in a scenario, a fleet or a report becomes one line, as ``path.of.the[3].key: is missing``.

YAML that users write is read in bounded time and memory: whatever is wrong with it is one fault with its line. Plain
data alone is read: what a document may hold is bounded in bytes, in entries (anchors followed, merges carried out) and
in depth, so that a small file cannot become a large value. A key that is there twice is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, ScalarNode

from fl_peel.errors import FieldError, PathPart, shortened
from fl_peel.files import file_kind
from fl_peel.plugins import did_you_mean, nearest

MAX_YAML_BYTES = 2**20
MAX_ENTRIES = 100_000
"""A hundred times the largest scenario or fleet that anybody would type."""
MAX_DEPTH = 64
_MAX_NUMBER_LENGTH = 1000
"""Characters: the largest float64 has 309 digits."""
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class YamlFault(ValueError):
    """What is wrong with a YAML text, in one line; ``line``: ``:3`` after the file's name, or nothing."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(shortened(" ".join(message.split()), 200))
        self.line = "" if line is None else f":{line}"


class StrictLoader(yaml.SafeLoader):
    """PyYAML's loader of plain data, within the bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = 0
        self._num_merged = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuse nesting while it is scanned, for which PyYAML takes a time that grows with its square."""
        if self.flow_level > MAX_DEPTH:
            raise YamlFault("nested too deeply")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count nodes as they are read."""
        self._num_nodes += 1
        if self._num_nodes > MAX_ENTRIES:
            raise YamlFault(f"has more than {MAX_ENTRIES} entries")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that is there twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise _fault(f"the key {kind_of(key.value)} is there twice", key)
                seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        """Count entries before they are merged: PyYAML asks this of every mapping that it merges, too."""
        super().flatten_mapping(node)
        self._num_merged += len(node.value)
        if self._num_merged > MAX_ENTRIES:
            raise YamlFault(f"has more than {MAX_ENTRIES} entries once its merges are carried out")

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Refuse a value that is not what it claims to be, such as the 45th of a month."""
        what = str(node.tag).rpartition(":")[2]
        if node.tag in _NUMBERS and len(str(node.value)) > _MAX_NUMBER_LENGTH:
            raise _fault(f"a number of {len(str(node.value))} characters; at most {_MAX_NUMBER_LENGTH}", node)
        try:
            return super().construct_object(node, deep)
        except (YamlFault, RecursionError):
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            given = kind_of(node.value) if isinstance(node, ScalarNode) else "this"
            raise _fault(f"{given} is no valid {what}; quote it if it is text", node) from error


def read_yaml(text: str, loader: type[StrictLoader] = StrictLoader) -> object:
    """The one document of a text, as plain data.

    Raises:
        YamlFault: it is not YAML, or beyond the bounds.
    """
    if len(text) > MAX_YAML_BYTES:
        raise YamlFault(f"has {len(text)} characters; at most {MAX_YAML_BYTES}")
    try:
        data = yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise YamlFault(f"not valid YAML: {error.problem or error.context}", line) from None
    except yaml.YAMLError as error:
        raise YamlFault(f"not valid YAML: {error}") from None
    except RecursionError:
        raise YamlFault("nested too deeply") from None
    _check_extent(data)
    return data


def read_yaml_file(path: Path, loader: type[StrictLoader] = StrictLoader) -> object:
    """The same of a file.

    Raises:
        YamlFault: it cannot be read, or as :func:`read_yaml`.
    """
    if file_kind(path) != "file":
        raise YamlFault("is a folder, a pipe or a device, and no file of text")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise YamlFault(f"cannot be read ({error.strerror})") from None
    if len(raw) > MAX_YAML_BYTES:
        raise YamlFault(f"has more than {MAX_YAML_BYTES} bytes; put long series into a file of their own")
    try:
        return read_yaml(raw.decode("utf-8-sig"), loader)
    except UnicodeDecodeError as error:
        raise YamlFault(f"is not UTF-8 text (byte {error.start})", raw[: error.start].count(b"\n") + 1) from None


def kind_of(value: object) -> str:
    """Name a value's kind in the words of a YAML file, with the value itself where it is short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a huge number"
    if isinstance(value, date):
        return f"the date {value}; quote it if it is text"
    text = repr(value[:100] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fault(message: str, node: Any) -> YamlFault:
    return YamlFault(f"not valid YAML: {message}", node.start_mark.line + 1)


def _check_extent(data: object) -> None:
    """Refuse a document that is small in the file and huge, deep or endless once its anchors are followed."""
    pending, count = [(data, 1)], 0
    while pending:
        entry, depth = pending.pop()
        count += 1
        if count > MAX_ENTRIES:
            raise YamlFault(f"has more than {MAX_ENTRIES} entries once its anchors are followed")
        if depth > MAX_DEPTH:
            raise YamlFault("nested too deeply")
        if isinstance(entry, Mapping):
            pending.extend((part, depth + 1) for part in entry.values())
        elif isinstance(entry, (list, tuple, set)):
            pending.extend((part, depth + 1) for part in entry)


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
