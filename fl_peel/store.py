"""What is kept to go on from: pretrained tables, stages and rounds of a run, periods, rows of studies, trials, seeds.

A store is a folder of entries. An entry is a folder of its own, ``NAME-DIGEST``, by the digest of its key. Its files
are called after the digests of what is in them; the file ``entry`` lists them, after a digest of its own. Each file is
written aside, brought to the disk and renamed, ``entry`` last: an entry is whole or not there, whatever ends a process.

The state of a run's server is kept as JSON and arrays, without pickling. A value is a tree of plain Python, NumPy
arrays and objects of the project's own classes (or of packages that add to it); what occurs twice is one thing
afterwards, too. It becomes a list of nodes. To read one, classes are looked up by name and their objects filled,
without calling them: a file from elsewhere can hold wrong values, but name nothing to be run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fl_peel.files import locked
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.packages import PACKAGES
from fl_peel.plugins import all_added

logger = logging.getLogger("fl_peel")

Arrays = Mapping[str, NDArray[Any]]
Content = Path | Arrays | Callable[[], Arrays]
"""Content of a file: of another file, or arrays as safetensors. A function makes its arrays when they are written, so
that those of one file are in memory at a time.
"""
ENTRY, LOCK, PART = "entry", "lock", ".part"
_FOLDER = re.compile(r".+-[0-9a-f]{16}")
CHUNK_BYTES, MOST_AT_ONCE = 1 << 20, 16
DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, SafetensorError)
"""What reading an entry may raise that is not as it was written."""
_DTYPES = {
    **{"|b1": "BOOL", "|i1": "I8", "|u1": "U8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32"},
    **{"<i8": "I64", "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64"},
}


@dataclass(frozen=True)
class Entry:
    """What was kept. key: JSON that decides it; value: JSON; files: by their path in the entry; made: Unix time."""

    name: str
    key: Any
    value: Any
    files: Mapping[str, Path]
    made: float
    folder: Path

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def arrays(self, file: str) -> dict[str, NDArray[Any]]:
        with safe_open(self.files[file], framework="numpy") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118, it is no dictionary


@dataclass(frozen=True)
class Store:
    """A folder of entries::

        store = Store(folder)
        store.write("round", key, {"done": 3}, {"tables": {"items": array}, "disks/users.npy": Path("users.npy")})
        entry = store.read("round", key)  # None: nothing whole is there
        entry.value["done"], entry.arrays("tables")["items"], entry.files["disks/users.npy"]

    ``key`` is JSON: everything that decides what the entry holds, code or versions included where they do. Reading
    compares every file with its digest; of a damaged entry one line goes to ``on_damaged``, and it counts as not there.
    Writing replaces what was there under the same name and key; files that did not change are not written again.
    """

    folder: Path
    on_damaged: Callable[[str], None] = field(default=logger.warning, compare=False)

    def read(self, name: str, key: Any = None) -> Entry | None:
        place = self._place(name, key)
        if not (place / ENTRY).exists():
            return None
        try:
            entry = _entry(place)
            for file in entry.files.values():
                if _digest(_chunks(file)) != file.name:
                    file.unlink()  # so that it is written again
                    raise ValueError("a digest does not fit")
        except DAMAGED as error:
            self.on_damaged(f"{place}: damaged ({str(error)[:80] or type(error).__name__})")
            return None
        return entry

    def write(self, name: str, key: Any = None, value: Any = None, files: Mapping[str, Content] | None = None) -> None:
        """Keep an entry. value: JSON; files: by their path within the entry.

        Raises:
            OSError: it cannot be written; what was there before is as it was.
            TypeError: the key or the value is not JSON.
        """
        place = self._place(name, key)
        place.mkdir(parents=True, exist_ok=True)
        with locked(place):
            try:
                listed = {path: _put(place, content) for path, content in (files or {}).items()}
                content = {"name": name, "key": key, "made": time.time(), "value": value, "files": listed}
                data = json.dumps(content).encode()
                _finish(list(place.glob(f"*{PART}")))
                _write(place / f"{ENTRY}{PART}", [_digest([data]).encode() + b"\n", data])
                _finish([place / f"{ENTRY}{PART}"])
            finally:
                _sweep(place)

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first, digests unchecked; an unreadable one has its folder's name, no files."""
        entries = []
        for place in self._folders():
            try:
                entries.append(_entry(place))
            except FileNotFoundError:  # it is being written, or removed
                continue
            except DAMAGED:
                entries.append(Entry(place.name, "damaged", None, {}, 0.0, place))
        return sorted(entries, key=lambda entry: entry.made)

    def others(self, name: str, key: Any = None) -> bool:
        """Return whether there is an entry of the same name with another key."""
        return any(entry.name == name and entry.folder != self._place(name, key) for entry in self.entries())

    def remove(self, prefix: str = "") -> None:
        """Remove entries whose folders' names begin like this, damaged ones, too."""
        for place in self._folders():
            if place.name.startswith(prefix):
                with suppress(OSError), locked(place):
                    shutil.rmtree(place, ignore_errors=True)

    def strangers(self) -> list[str]:
        """Return the names of what lies in the folder and is neither an entry nor a lock."""
        ours = {LOCK, *(place.name for place in self._folders())}
        return sorted({one.name for one in self.folder.iterdir()} - ours) if self.folder.is_dir() else []

    def locked(self) -> AbstractContextManager[None]:
        """Hold the whole store, as who alone goes on from it.

        Raises:
            BlockingIOError: somebody else holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return locked(self.folder / LOCK, wait=False)

    def _place(self, name: str, key: Any) -> Path:
        digest = hashlib.blake2b(json.dumps([name, key], sort_keys=True).encode(), digest_size=8)
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)[:60]}-{digest.hexdigest()}"

    def _folders(self) -> list[Path]:
        places = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [place for place in places if _FOLDER.fullmatch(place.name) and place.is_dir()]


def _entry(place: Path) -> Entry:
    """Read an entry without its files.

    Raises:
        Exception: those of ``DAMAGED``.
    """
    digest, _, data = (place / ENTRY).read_bytes().partition(b"\n")
    if _digest([data]).encode() != digest:
        raise ValueError("its digest does not fit")
    content = json.loads(data)
    files = {path: place / name for path, name in content["files"].items()}
    return Entry(content["name"], content["key"], content["value"], files, content["made"], place)


def _put(place: Path, content: Content) -> str:
    """Write a file aside, unless it is there; return its name."""
    made = content() if callable(content) else content
    name = _digest(_chunks(made))
    if not (place / name).exists():
        _write(place / f"{name}{PART}", _chunks(made))
    return name


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def _finish(parts: list[Path]) -> None:
    """Bring files to the disk, and give them their names."""
    _at_once(_sync, parts)
    for part in parts:
        os.replace(part, part.with_suffix(""))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _at_once(work: Callable[[Path], None], files: list[Path]) -> None:
    """Do the same with many files: a disk that is asked for one after the other takes much longer."""
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        list(pool.map(work, files))


def _sweep(place: Path) -> None:
    """Remove what no entry lists: of what was there before, or of what could not be written."""
    listed: set[str] = set()
    with suppress(*DAMAGED):
        listed = {file.name for file in _entry(place).files.values()}
    _at_once(Path.unlink, [file for file in place.iterdir() if file.name not in {ENTRY, *listed}])


def _digest(chunks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(content: Path | Arrays) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file, or of arrays as safetensors; arrays in files are not in memory afterwards."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        return
    header, stop = {}, 0
    for name, array in content.items():
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": _dtype(array), "shape": array.shape, "data_offsets": [start, stop]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    for array in content.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        drop_pages_now(array)


def _dtype(array: NDArray[Any]) -> str:
    if array.dtype.str not in _DTYPES:
        raise TypeError(f"an array of {array.dtype} is not kept")
    return _DTYPES[array.dtype.str]


Live = Mapping[str, object]
"""Objects that are there again when a value is read, by name: it refers to them and does not hold them."""
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
        self.arrays: dict[str, NDArray[Any]] = {}
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
