"""Files of a model, and the list of those that lie in a folder.

A folder appears whole or not at all. Of a file that is read, nothing is believed before its size and digest are right.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fl_peel.blocks.layout import BlockLayout
from fl_peel.errors import ModelError, shortened
from fl_peel.files import file_kind

ABOUT = "model.json"
FORMAT = "fl-peel model"
VERSION = 1
"""Version of the format."""
DIGEST_BYTES = 16
MOST_ABOUT_BYTES = 64 << 20
"""Largest size of ``model.json``, which lists the files."""
FILES, DIGEST = "files", "digest"
"""Keys of ``model.json``: sizes and digests of files by name; the digest of all its other keys."""


def digest_of(data: bytes) -> str:
    """Return the BLAKE2b digest of some bytes, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _digest_of_about(about: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in about.items() if key != DIGEST}
    return digest_of(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode())


def _digest_or_none(about: Mapping[str, Any]) -> str | None:
    try:
        return _digest_of_about(about)
    except (ValueError, RecursionError):  # deeper than anything that was saved
        return None


@dataclass
class ModelWriter:
    """Writer of the files of a model that is being saved."""

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, data: bytes) -> None:
        """Write a file, and remember its size and digest."""
        (self.folder / name).write_bytes(data)
        self.files[name] = {"bytes": len(data), "digest": digest_of(data)}

    def add_tensors(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        whole = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
        self.add(name, safetensors.numpy.save(whole))

    def add_json(self, name: str, content: Any) -> None:
        self.add(name, json.dumps(content, ensure_ascii=False, allow_nan=False).encode())

    @property
    def num_bytes(self) -> int:
        return sum(about["bytes"] for about in self.files.values())


@contextmanager
def writing(folder: Path, about: Mapping[str, Any]) -> Iterator[ModelWriter]:
    """Write a model's files: the folder is replaced when all are written. about: more keys of ``model.json``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written = ModelWriter(part)
        yield written
        content = {"format": FORMAT, "version": VERSION, **about, FILES: dict(sorted(written.files.items()))}
        content[DIGEST] = _digest_of_about(content)
        (part / ABOUT).write_bytes((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        shutil.rmtree(folder, ignore_errors=True)
        part.chmod(0o755)  # a temporary folder is its maker's alone
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass(frozen=True)
class ModelFiles:
    """Reader of the files of a saved model. about: content of ``model.json``."""

    folder: Path
    about: Mapping[str, Any]

    @staticmethod
    def open(folder: Path) -> ModelFiles:
        """Read and check ``model.json``; other files are read when they are needed.

        Raises:
            ModelError: it is not there, of another format or version, or damaged.
        """
        about = _about(folder)
        files = about.get(FILES)
        if not isinstance(files, dict) or not all(
            isinstance(one, dict) and type(one.get("bytes")) is int and isinstance(one.get("digest"), str)
            for one in files.values()
        ):
            raise ModelError(f"{folder / ABOUT}: lists no files; save the model again")
        return ModelFiles(folder, about)

    def number(self, key: str, most: int) -> int:
        """Return a whole number from 1 to ``most``.

        Raises:
            ModelError: it is something else.
        """
        value = self.about.get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise self.fault(ABOUT, f"{key} is {str(value)[:40]}, not a whole number from 1 to {most}")
        return value

    def text(self, key: str, *known: str) -> str:
        """Return a text that is one of these words; any text, where none are given.

        Raises:
            ModelError: it is something else.
        """
        value = self.about.get(key)
        if not isinstance(value, str) or (known and value not in known):
            raise self.fault(
                ABOUT, f"{key} is {str(value)[:40]!r}" + (f", none of {', '.join(known)}" if known else "")
            )
        return value

    def has(self, name: str) -> bool:
        return name in self.about[FILES]

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            ModelError: it is not there, cannot be read, or is not the one that was saved.
        """
        known, path = self.about[FILES].get(name), self.folder / name
        if known is None:
            raise self.fault(ABOUT, f"does not list {name}")
        if file_kind(path) != "file":
            raise self.fault(name, "is missing")
        try:
            if path.stat().st_size != known["bytes"]:
                raise self.fault(name, f"{path.stat().st_size} bytes, not {known['bytes']}: it was cut off or changed")
            data = path.read_bytes()
        except OSError as error:
            raise self.fault(name, f"cannot be read ({error.strerror})") from error
        if digest_of(data) != known["digest"]:
            raise self.fault(name, "its digest does not match: it was changed")
        return data

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a file.

        Raises:
            ModelError: as for :meth:`read`, or it holds none.
        """
        data = self.read(name)
        try:
            return safetensors.numpy.load(data)
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise self.fault(name, f"holds no arrays ({str(error)[:80]})") from error

    def json(self, name: str) -> Any:
        """Return the content of a JSON file.

        Raises:
            ModelError: as for :meth:`read`, or it is no JSON.
        """
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise self.fault(name, f"is no JSON ({str(error)[:80]})") from error

    def fault(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self.folder / name}: {why}; save the model again, or copy all of its folder")


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if file_kind(path) != "file":
        if file_kind(folder / "model" / ABOUT) == "file":
            raise ModelError(f"{folder}: holds no {ABOUT}; name the folder model in it")
        raise ModelError(f"{path}: no such file; name the folder model/ that a run with --out leaves")
    try:
        if path.stat().st_size > MOST_ABOUT_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes are no {ABOUT}; name the folder of a model")
        about = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({str(error)[:80]}); save the model again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ModelError(f"{path}: is not of a model of fl-peel; name the folder model/ that a run with --out leaves")
    if about.get("version") != VERSION:
        raise ModelError(
            f"{path}: format {str(about.get('version'))[:20]}, where this release reads {VERSION}; "
            f"it was saved by fl-peel {str(about.get('package'))[:20]}"
        )
    if about.get(DIGEST) != _digest_or_none(about):
        raise ModelError(f"{path}: its digest does not match: it was changed; save the model again")
    return about


OwnId = str | int
"""An item as a user names it; a number means its digits."""
LONGEST_QUOTED = 60


@dataclass(frozen=True)
class Catalogue:
    """Items and how they are cut into blocks. ids: (I,) the data's own, by item number; empty where the numbers are the
    ids; titles: for readers, by id, of the items that have one.
    """

    layout: BlockLayout
    ids: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        """Items, I."""
        return self.layout.num_items

    def id_of(self, item: int) -> str:
        return self.ids[item] if self.ids else str(item)

    def by_row(self) -> list[str]:
        """Own ids (I,) by catalogue row, which is how artefacts number items."""
        return [self.id_of(item) for item in self.layout.catalogue.tolist()]

    def items(self, given: Iterable[OwnId]) -> NDArray[np.int32]:
        """Item numbers (N,) of own ids, each once, in the order given.

        Raises:
            ModelError: an id that no item has.
        """
        numbers = dict.fromkeys(self._item(own) for own in given)
        return np.fromiter(numbers, np.int32, len(numbers))

    def _item(self, own: object) -> int:
        if isinstance(own, bool) or not isinstance(own, str | int | np.integer):
            raise ModelError(f"item {shortened(repr(own), LONGEST_QUOTED)} is no id; give text or whole numbers")
        name = str(own)
        if self.ids:
            item = self._numbers.get(name, -1)
        else:
            item = int(name) if name.isascii() and name.isdigit() and len(name) <= len(str(self.num_items)) else -1
        if not 0 <= item < self.num_items or self.id_of(item) != name:
            raise ModelError(
                f"item {shortened(repr(name), LONGEST_QUOTED)} is none of the model's {self.num_items}; "
                f"ids are those of its data, such as {', '.join(self.id_of(i) for i in range(min(3, self.num_items)))}"
            )
        return item

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: item for item, name in enumerate(self.ids)}

    def places_of(self, other: Catalogue, blocks: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where blocks (K,) of this catalogue stand among blocks (L,) of another one, (K,); -1: nowhere."""
        mine, theirs = self.layout, other.layout
        if mine.num_slices != theirs.num_slices or mine.embedding_dim != theirs.embedding_dim:
            return np.full(len(blocks), -1, np.int64)
        place = np.full(theirs.num_blocks, -1, np.int64)
        place[among] = np.arange(len(among))
        groups, slices = blocks // mine.num_slices, blocks % mine.num_slices
        there = self._groups_in(other, groups)
        return np.where(there >= 0, place[np.maximum(there, 0) * mine.num_slices + slices], -1)

    def _groups_in(self, other: Catalogue, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Item groups (K,) of this catalogue in another one: all keep their number where both are alike, single items
        are found by name, and no others are.
        """
        if self.ids == other.ids and self.layout.digest == other.layout.digest:
            return groups
        if not (self.layout.is_single and other.layout.is_single):
            return np.full(len(groups), -1, np.int64)
        return np.array([other.find(self.id_of(item)) for item in groups.tolist()], np.int64)

    def find(self, name: str) -> int:
        """The item of an own id; -1 where there is none."""
        try:
            return self._item(name)
        except ModelError:
            return -1
