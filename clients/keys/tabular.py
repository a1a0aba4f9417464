"""Columns out of the files that a fleet refers to: CSV, TSV, JSON and Parquet; and sizes out of texts like "4 GB"."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from clients.keys.specs import Folder, number
from fl_peel.errors import FieldError, shortened
from fl_peel.file_kind import file_kind
from fl_peel.plugins import did_you_mean
from fl_peel.safe_yaml import kind_of
from fl_peel.scenario.fleet_files import MAX_DATA_BYTES

DATA_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".parquet")
_UNIT_BYTES = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_AMOUNT = re.compile(
    r"(?P<numbers>\d[\d.,]*(?:\s*/\s*\d[\d.,]*)*)\s*(?P<unit>[kmgt]i?b|[kmgt]|bytes|b)?(?![a-z0-9])", re.IGNORECASE
)
_MINUS_OR_RANGE = re.compile(r"^\s*(\d[\d.,]*\s*)?[-\u2013\u2212]\s*$|\s(\d[\d.,]*)?[-\u2013\u2212]$")
"""Pattern of what stands before the 4 in "-4 GB", "2-4 GB", "2 - 4 GB" and "RAM 2-4 GB", but not in "Mi 9 - 4 GB"."""
_BLANK = frozenset({"", "-", "?", "n/a", "na", "nan", "none", "null", "unknown"})


def checked_file(folder: Folder, name: object) -> Path:
    """Path of a file named in a fleet file.

    Raises:
        FieldError: no such file, empty, or larger than 256 MB.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise FieldError(f"must be a file name (got {kind_of(name)})")
    if isinstance(folder, Mapping):
        if name not in folder:
            raise FieldError("names a file that did not come with the fleet; files are named under the key file")
        path = folder[name]
    else:
        path = folder / os.path.expanduser(name)
    if file_kind(path) != "file":
        raise FieldError(f"no file {shortened(str(path), 200)}; relative names start from the folder of the fleet file")
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise FieldError(f"{path} is empty")
    if num_bytes > MAX_DATA_BYTES:
        raise FieldError(
            f"{path} has {num_bytes / 2**20:.0f} MB; at most {MAX_DATA_BYTES // 2**20} MB are read: thin it out"
        )
    return path


def pick_column(columns: list[str], wanted: str | None, path: Path) -> int:
    """Number of the wanted column, by exact name and then by name without case or blanks.

    Raises:
        FieldError: no such column, several of that name, or none was named and there are several.
    """
    if wanted is None:
        if len(columns) == 1:
            return 0
        raise FieldError(f"{path} has {len(columns)} columns: name one with column ({', '.join(columns)})")
    plain = [column.strip().lower() for column in columns]
    for names, name in ((columns, wanted), (plain, wanted.strip().lower())):
        if names.count(name) > 1:
            raise FieldError(f"{path} has {names.count(name)} columns {wanted!r}: keep one")
        if name in names:
            return names.index(name)
    raise FieldError(f"{path} has no column {wanted!r}; {did_you_mean(wanted, columns)}")


def read_columns(path: Path, wanted: tuple[str | None, ...]) -> list[tuple[str, tuple[object, ...]]]:
    """Rows of the wanted columns, each with its place ("phones.csv:7") for error messages.

    JSON: a list of values, a list of objects, one object with a column (list or numbered entries) per key, one
    object that holds a single list, or, when no column is named, one object of counts (its rows have two cells:
    value and count). CSV and TSV: with a header; the separator is found from it.

    Raises:
        FieldError: the file cannot be read as what its name says, or lacks a column.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _json_rows(path, wanted)
    if suffix == ".parquet":
        return _parquet_rows(path, wanted)
    if suffix in (".csv", ".tsv", ".txt"):
        return _csv_rows(path, wanted)
    raise FieldError(f"{path}: cannot read {suffix or 'a file without ending'}; use .csv, .tsv, .json or .parquet")


def separator_of(header: str) -> str:
    """Return the separator that a header line holds most of."""
    return max((",", ";", "\t", "|"), key=header.count)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FieldError(f"{path} is not UTF-8 text (byte {error.start})") from None


def _csv_rows(path: Path, wanted: tuple[str | None, ...]) -> list[tuple[str, tuple[object, ...]]]:
    lines = _text(path).splitlines()
    reader = csv.reader(lines, delimiter=separator_of(lines[0] if lines else ""))
    rows: list[tuple[str, tuple[object, ...]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        numbers = [pick_column(header, name, path) for name in wanted]
        for row in reader:
            if not row:
                continue
            place = f"{path}:{reader.line_num}"
            if len(row) <= max(numbers):
                raise FieldError(f"{place} has {len(row)} of {len(header)} columns")
            rows.append((place, tuple(row[number] for number in numbers)))
    except csv.Error as error:
        raise FieldError(f"{path}:{reader.line_num}: {error}") from None
    return rows


def _column(values: list[object] | Mapping[str, object]) -> list[object]:
    return list(values.values()) if isinstance(values, Mapping) else values


def _json_rows(path: Path, wanted: tuple[str | None, ...]) -> list[tuple[str, tuple[object, ...]]]:
    try:
        data = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise FieldError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise FieldError(f"{path}: nested too deeply") from None
    except ValueError:
        raise FieldError(f"{path}: holds a number with more digits than can be read") from None
    if isinstance(data, Mapping):
        if data and wanted == (None,) and all(isinstance(value, (int, float)) for value in data.values()):
            return [(f"{path}: {key}", (key, count)) for key, count in data.items()]  # a count per value
        lists = {str(key): list(_column(value)) for key, value in data.items() if isinstance(value, (list, Mapping))}
        holds_columns = bool(lists) and not any(isinstance(v, Mapping) for values in lists.values() for v in values)
        if holds_columns and wanted != (None,):
            names = list(lists)
            columns = [lists[names[pick_column(names, name, path)]] for name in wanted]
            if len({len(column) for column in columns}) > 1:
                raise FieldError(f"{path}: its columns differ in length")
            return [(f"{path}: entry {i + 1}", row) for i, row in enumerate(zip(*columns, strict=True))]
        if len(lists) == 1:
            data = next(iter(lists.values()))
    if not isinstance(data, list):
        raise FieldError(f"{path}: holds {kind_of(data)}; expected a list of values or of objects")
    rows: list[tuple[str, tuple[object, ...]]] = []
    for i, entry in enumerate(data):
        place = f"{path}: entry {i + 1}"
        if isinstance(entry, Mapping):
            names = [str(key) for key in entry]
            values = list(entry.values())
            if wanted != (None,) or len(names) == 1:
                rows.append((place, tuple(values[pick_column(names, name, path)] for name in wanted)))
                continue
            raise FieldError(f"{place} is an object: name one of its keys with column ({', '.join(names)})")
        if wanted != (None,):
            raise FieldError(f"{place} is {kind_of(entry)}, not an object with columns; leave column out", "column")
        rows.append((place, (entry,)))
    return rows


def _parquet_rows(path: Path, wanted: tuple[str | None, ...]) -> list[tuple[str, tuple[object, ...]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = list(pq.read_schema(path).names)
        chosen = [names[pick_column(names, name, path)] for name in wanted]
        table = pq.read_table(path, columns=chosen)
    except (pa.ArrowException, OSError) as error:
        raise FieldError(f"{path}: not a readable Parquet file: {error}") from None
    columns = [table.column(name).to_pylist() for name in chosen]
    return [(f"{path}: row {i + 1}", row) for i, row in enumerate(zip(*columns, strict=True))]


def is_blank(value: object) -> bool:
    """Return whether a cell means that nothing is known."""
    return value is None or (isinstance(value, float) and value != value) or str(value).strip().lower() in _BLANK


def _decimal(text: str) -> float:
    text = text.rstrip(".,")
    if "," in text and "." not in text:
        whole, _, rest = text.partition(",")
        thousands = len(rest) == 3 and rest.isdigit() and whole not in ("0", "")
        text = whole + rest if thousands else f"{whole}.{rest}"
    else:
        text = text.replace(",", "")
    return float(text)


def sizes(value: object, unit_bytes: int | None) -> list[float]:
    """Read a memory size in units of ``unit_bytes``: "4 GB", "512MB", "3.5GB RAM", 4; "4/6 GB" is two variants.

    1 KB is 1024 bytes, as memory is sold. A bare number is already in the key's unit. With ``unit_bytes`` None
    only bare numbers are read.

    Raises:
        FieldError: the text holds no size, or several that are not variants of one.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [number(value) if isinstance(value, int) else value]
    text = str(value).strip()
    if unit_bytes is None:
        try:
            return [float(text)]
        except ValueError:
            raise FieldError(f"cannot read {kind_of(value)} as a number") from None
    amounts = list(_AMOUNT.finditer(text))
    with_unit = [match for match in amounts if match["unit"]]
    before_ram = [m for m in with_unit if re.match(r"\s*(of\s+)?(ram|memory)\b", text[m.end() :], re.IGNORECASE)]
    matches = before_ram or with_unit or (amounts if len(amounts) == 1 and amounts[0].group() == text else [])
    if len(matches) != 1:
        what = "no size" if not matches else f"{len(matches)} sizes"
        raise FieldError(f"found {what} in {kind_of(value)}; expected one such as '4 GB' or '512 MB'")
    if _MINUS_OR_RANGE.search(text[: matches[0].start()]):
        raise FieldError(f"found a minus or a range in {kind_of(value)}; expected one size such as '4 GB', or '4/6 GB'")
    scale = _UNIT_BYTES[matches[0]["unit"][0].lower()] / unit_bytes if matches[0]["unit"] else 1.0
    try:
        return [_decimal(part.strip()) * scale for part in matches[0]["numbers"].split("/")]
    except ValueError:
        raise FieldError(f"cannot read {kind_of(value)} as a size") from None
