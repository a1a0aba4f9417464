"""What of a report is golden, how it is written, and what differs between two of them, named by key.

Imports nothing of the packages: it compares any two commits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

IGNORED = {
    "versions": "of packages; `make golden` says where they are not those of the recording",
    "command": "holds folders",
    "peak_rss_bytes": "memory",
    "stages": "seconds of wall time",
    "printed.items.title": "not every copy of the data has titles",
    "files.me.items.json": "holds titles",
    "environment.cpus": "the machine",
    "environment.machine": "the machine",
    "environment.system": "the machine",
    "secure_aggregation.devices_per_second": "of wall time",
}
"""Keys that are left out, without places in lists, and why; what lies beneath them is left out, too."""
IGNORED_ANYWHERE = {"seconds": "wall time; seconds of the virtual clock have other names"}
"""Names that are left out wherever they stand."""
LONGEST = 40
"""Entries of a list that is kept as it is."""
FOLDED = ("elastic_traces", "over")
"""Names of what is large though it has few entries."""
COUNT, DIGESTS = "entries", "digests"
"""Keys of what stands for something large: the number of its entries, and a digest for each of their keys."""


def kept(value: Any, path: str = "") -> Any:
    """Return a report without what is ignored."""
    if isinstance(value, dict):
        paths = {key: f"{path}.{key}" if path else key for key in value}
        ignored = {key for key, below in paths.items() if key in IGNORED_ANYWHERE or below in IGNORED}
        return {key: kept(entry, paths[key]) for key, entry in value.items() if key not in ignored}
    if isinstance(value, list):
        return [kept(entry, path) for entry in value]
    return value


def folded(value: Any, name: str = "") -> Any:
    """Return a report with digests in place of what is large. name: of the value in the report."""
    if isinstance(value, dict | list) and (name in FOLDED or (isinstance(value, list) and len(value) > LONGEST)):
        return fold(value)
    if isinstance(value, dict):
        return {key: folded(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [folded(entry) for entry in value]
    return value


def fold(values: dict[str, Any] | list[Any]) -> dict[str, Any]:
    """Return what stands for something large. Of a list of objects it has a digest for each of the keys within them."""
    columns: dict[str, Any] = {}
    if isinstance(values, dict):
        columns = values
    else:
        for place, entry in enumerate(values):
            for path, leaf in leaves(entry):
                columns.setdefault(path, []).append([place, leaf])
    return {COUNT: len(values), DIGESTS: {key: digest(column) for key, column in columns.items()}}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values within a value and their keys, without places in lists."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from leaves(entry, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for entry in value:
            yield from leaves(entry, f"{path}[]")
    else:
        yield path, value


def digest(value: Any) -> str:
    """Return a name for a value: equal for equal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def text_of(report: dict[str, Any]) -> str:
    """Return a report as JSON, keys sorted, a line for each of its parts."""
    lines = [f"{json.dumps(key)}:{_compact(report[key])}" for key in sorted(report)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences(expected: Any, measured: Any, path: str = "") -> Iterator[str]:
    """Yield a line for every value that is not the same to the last digit: its key, what was expected and measured."""
    if isinstance(expected, dict) and set(expected) == {COUNT, DIGESTS} and isinstance(measured, dict | list):
        measured = fold(measured)
    if isinstance(expected, dict) and isinstance(measured, dict):
        for key in sorted(expected.keys() | measured.keys()):
            below = f"{path}.{key}" if path else key
            if key not in measured:
                yield f"{below}: expected {_short(expected[key])}, is missing"
            elif key not in expected:
                yield f"{below}: is new, {_short(measured[key])}"
            else:
                yield from differences(expected[key], measured[key], below)
    elif isinstance(expected, list) and isinstance(measured, list):
        if len(expected) != len(measured):
            yield f"{path}: expected {len(expected)} entries, measured {len(measured)}"
        for place, (one, other) in enumerate(zip(expected, measured, strict=False)):
            yield from differences(one, other, f"{path}[{place}]")
    elif _compact(expected) != _compact(measured):
        yield f"{path}: expected {_short(expected)}, measured {_short(measured)}"


def _compact(value: Any) -> str:
    """Return JSON without blanks, floats to the last digit."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _short(value: Any) -> str:
    text = _compact(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
