"""The files that a scenario's fleet names, by value: whoever reads the scenario sends them, and a node opens none."""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fl_peel.errors import MessageError, ProfileError
from fl_peel.files import file_kind
from fl_peel.problems import MAX_YAML_BYTES, YamlFault, read_yaml

MAX_DATA_BYTES = 256 * 2**20
"""Largest size of a trace or a table of values that a fleet file names."""


@dataclass(frozen=True)
class FleetFile:
    """One fleet file. name: without its folder; only: the one class that is wanted, "" for all; content: its bytes;
    data: bytes of the files that it names under a key ``file``, by the name that stands there.
    """

    name: str
    only: str
    content: bytes
    data: Mapping[str, bytes]


def fleet_files(fleet: str | tuple[str, ...]) -> str:
    """Return the files among the entries of ``scenario.fleet`` as one line of JSON, "" where all entries are names.

    The names of files are taken from a fleet file without checking the rest of it: that is the fleet's own to do.

    Raises:
        ProfileError: a file cannot be read.
    """
    entries = (fleet,) if isinstance(fleet, str) else fleet
    files = {entry: file for entry in entries if (file := _fleet_file(entry)) is not None}
    return json.dumps({entry: _packed(asdict(file)) for entry, file in files.items()}) if files else ""


def sent_files(text: str) -> dict[str, FleetFile]:
    """Return what :func:`fleet_files` put in a line, by entry.

    Raises:
        MessageError: it is no such line.
    """
    if not text:
        return {}
    try:
        return {str(entry): _sent_file(content) for entry, content in json.loads(text).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error, zlib.error):
        raise MessageError("the setting's fleet holds no fleet files") from None


def _fleet_file(entry: str) -> FleetFile | None:
    """The file of ``fleet.yaml`` or of one class in it, ``fleet.yaml:class``; None where the entry is a name."""
    whole, (part, _, only) = os.path.expanduser(entry), os.path.expanduser(entry).rpartition(":")
    for text, wanted in ((whole, ""), (part, only)):
        path = Path(text)
        if ("/" in text or path.suffix in (".yaml", ".yml")) and file_kind(path) == "file":
            content = _bytes_of(path, MAX_YAML_BYTES)
            data = {name: path.parent / os.path.expanduser(name) for name in _data_files(content)}
            there = {name: file for name, file in data.items() if file_kind(file) == "file"}
            return FleetFile(
                path.name, wanted, content, {name: _bytes_of(file, MAX_DATA_BYTES) for name, file in there.items()}
            )
    return None


def _bytes_of(path: Path, most: int) -> bytes:
    """What a file holds; of one that is too large, enough for its reader to see that it is."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}); correct fleet, or the file it names") from None


def _data_files(content: bytes) -> set[str]:
    try:
        return set(_under_file(read_yaml(content.decode("utf-8-sig"))))
    except (YamlFault, UnicodeDecodeError):
        return set()


def _under_file(node: object) -> Iterator[str]:
    """Texts that stand under a key ``file``, anywhere in a YAML document."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "file" and isinstance(value, str):
                yield value
            yield from _under_file(value)
    elif isinstance(node, list):
        for value in node:
            yield from _under_file(value)


def _packed(value: object) -> object:
    """Bytes as text, compressed: a trace is many digits."""
    if isinstance(value, bytes):
        return base64.b64encode(zlib.compress(value)).decode("ascii")
    return {key: _packed(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def _unpacked(text: str, most: int) -> bytes:
    return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most + 1)


def _sent_file(content: Mapping[str, object]) -> FleetFile:
    data = content["data"]
    if not isinstance(data, Mapping):
        raise TypeError("the data files of a fleet file are a mapping")
    return FleetFile(
        str(content["name"]),
        str(content["only"]),
        _unpacked(str(content["content"]), MAX_YAML_BYTES),
        {str(name): _unpacked(str(text), MAX_DATA_BYTES) for name, text in data.items()},
    )
