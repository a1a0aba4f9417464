"""Objects as JSON and arrays, and back: what a run keeps of its server's state, without pickling.

A value is a tree of plain Python, NumPy arrays and objects of the project's own classes (or of packages that add to
it); what occurs twice is one thing afterwards, too. It becomes a list of nodes. To read one, classes are looked up by
name and their objects filled, without calling them: a file from elsewhere can hold wrong values, but name nothing to be
run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.package_check import PACKAGES
from fl_peel.plugins import all_added

Live = Mapping[str, object]
"""Objects that are there again when a value is read, by name: it refers to them and does not hold them."""
Arrays = dict[str, NDArray[Any]]
_PLAIN = (type(None), bool, int, float, str)
_KINDS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MADE = {kind: of for of, kind in _KINDS.items()}


def to_nodes(value: object, live: Live | None = None) -> tuple[Any, Arrays]:
    """Return a value as JSON, and its arrays by name. live: objects in it that are written by name alone.

    Raises:
        TypeError: it holds something that is no value.
        RecursionError: it holds itself.
    """
    nodes = _Nodes({} if live is None else live)
    root = nodes.encode(value)
    return {"root": root, "nodes": nodes.nodes}, nodes.arrays


def from_nodes(plain: Any, arrays: Arrays, live: Live | None = None) -> Any:
    """Return the value that JSON and arrays stand for.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: they stand for none.
    """
    made: list[Any] = []
    for node in plain["nodes"]:
        made.append(_made(node, made, arrays, {} if live is None else live))
    return _value(plain["root"], made)


class _Nodes:
    """Nodes and arrays of a value, each thing once."""

    def __init__(self, live: Live) -> None:
        self.nodes: list[list[Any]] = []
        self.arrays: Arrays = {}
        self._names = {id(one): name for name, one in live.items() if one is not None}
        self._known: dict[int, int] = {}
        self._held: list[object] = []  # so that no other thing gets an id that is known

    def encode(self, value: object) -> Any:
        """A plain value as it is, anything else as ``[number of its node]``."""
        if type(value) in _PLAIN:
            return value
        if id(value) not in self._known:
            node = self._node(value)
            self.nodes.append(node)
            self._held.append(value)
            self._known[id(value)] = len(self.nodes) - 1
        return [self._known[id(value)]]

    def _node(self, value: Any) -> list[Any]:
        name = self._names.get(id(value))
        if name is not None:
            return ["live", name]
        kind = _KINDS.get(type(value))
        if kind is not None:
            return [kind, [self.encode(one) for one in value]]
        if type(value) is dict:
            return ["dict", [[self.encode(key), self.encode(one)] for key, one in value.items()]]
        if isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise TypeError(f"an array of {array.dtype} is not kept")
            name = str(len(self.arrays))
            self.arrays[name] = array
            return ["array" if isinstance(value, np.ndarray) else "scalar", name]
        if isinstance(value, np.dtype):
            return ["dtype", value.str]
        cls = type(value)
        if own_class(cls.__module__, cls.__qualname__) is not cls:
            raise TypeError(f"a {cls.__module__}.{cls.__qualname__} is not kept")
        if isinstance(value, Enum):
            return ["enum", cls.__module__, cls.__qualname__, value.name]
        state = value.__getstate__()
        if isinstance(value, list | tuple | set | frozenset | dict | str | int | float) or isinstance(state, tuple):
            raise TypeError(f"a {cls.__module__}.{cls.__qualname__}, with slots or of a plain type, is not kept")
        return ["object", cls.__module__, cls.__qualname__, self.encode(state)]


def _made(node: list[Any], made: list[Any], arrays: Arrays, live: Live) -> Any:
    match node:
        case ["live", str(name)]:
            return live[name]
        case ["dict", pairs]:
            return {_value(key, made): _value(one, made) for key, one in pairs}
        case ["array", str(name)]:
            return arrays[name]
        case ["scalar", str(name)]:
            return arrays[name][()]
        case ["dtype", str(name)]:
            return np.dtype(name)
        case ["enum", str(module), str(name), str(member)]:
            return _known_class(module, name)[member]
        case ["object", str(module), str(name), state]:
            return _filled(_known_class(module, name), _value(state, made))
        case [str(kind), values]:
            return _MADE[kind](_value(one, made) for one in values)
    raise ValueError("a node of no kind")


def _value(encoded: Any, made: list[Any]) -> Any:
    if isinstance(encoded, list):
        (number,) = encoded
        if number < 0:
            raise IndexError("a node before the first")
        return made[number]
    return encoded


def _filled(cls: Any, state: Any) -> Any:
    one = object.__new__(cls)
    if hasattr(cls, "__setstate__"):
        one.__setstate__(state)
    elif state is not None:
        vars(one).update(state)
    return one


def _known_class(module: str, name: str) -> Any:
    cls = own_class(module, name)
    if cls is None:
        raise TypeError(f"{module}.{name} is no class of ours")
    return cls


@cache
def own_class(module: str, name: str) -> type | None:
    """A class of the project, or of a package that adds to it, by name; None where there is none."""
    if module.partition(".")[0] not in _roots():
        return None
    __import__(module)
    own: Any = sys.modules[module]
    for word in name.split("."):
        own = vars(own).get(word)
        if own is None:
            return None
    return own if isinstance(own, type) and own.__module__ == module else None


@cache
def _roots() -> frozenset[str]:
    added: Iterable[str] = (point.module.partition(".")[0] for point in all_added())
    return frozenset((*PACKAGES, *added))
