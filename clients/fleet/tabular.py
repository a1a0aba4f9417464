"""Columns out of the files that a fleet refers to: CSV, TSV, JSON and Parquet; and sizes out of texts like "4 GB"."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clients.fleet.specs import Folder, number
from fl_peel.errors import FieldError, shortened
from fl_peel.files import file_kind
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of
from fl_peel.randomness import device_uniforms
from fl_peel.scenario.fleet_files import MAX_DATA_BYTES

if TYPE_CHECKING:
    import pyarrow as pa


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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FieldError(f"{path} is not UTF-8 text (byte {error.start})") from None


def _csv_rows(path: Path, wanted: tuple[str | None, ...]) -> list[tuple[str, tuple[object, ...]]]:
    lines = _text(path).splitlines()
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max((",", ";", "\t", "|"), key=header.count))
    rows: list[tuple[str, tuple[object, ...]]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        numbers = [pick_column(names, name, path) for name in wanted]
        for row in reader:
            if not row:
                continue
            place = f"{path}:{reader.line_num}"
            if len(row) <= max(numbers):
                raise FieldError(f"{place} has {len(row)} of {len(names)} columns")
            rows.append((place, tuple(row[number] for number in numbers)))
    except csv.Error as error:
        raise FieldError(f"{path}:{reader.line_num}: {error}") from None
    return rows


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
        lists = {
            str(key): list(value.values()) if isinstance(value, Mapping) else list(value)
            for key, value in data.items()
            if isinstance(value, (list, Mapping))
        }
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


# ---- Recorded series per device (memory, availability), and how simulated devices replay them
# The rule: a simulated device replays one recorded device, drawn uniformly by (seed, device id); with a random start
# it begins at a time drawn uniformly over the recording. Between two samples the earlier one holds. After the last
# sample the recording starts anew ("loop") or its last value stays ("hold").


FloatArray = NDArray[np.float64]
AtEnd = Literal["loop", "hold"]
LONGEST_S = 1e10
"""Three centuries. All recordings lie on one time line of float64, where a longer one would blur the others' seconds;
who gives nanoseconds learns it here."""


@dataclass(frozen=True, eq=False)
class RecordedTraces:
    """T recorded devices, their R samples laid end to end.

    indptr: (T + 1,) rows of each trace; values: (R,); duration_s: (T,) from its first sample until the recording
    ends (the last sample holds for the trace's median interval); begin_s: (T,) where each trace begins on a time
    line that has them end to end, and laid_s: (R,) its samples there; peak: (T,) its largest value.
    """

    indptr: NDArray[np.int64]
    values: FloatArray
    duration_s: FloatArray
    begin_s: FloatArray
    laid_s: FloatArray
    peak: FloatArray

    @property
    def num_traces(self) -> int:
        """Recorded devices, T."""
        return len(self.duration_s)

    def assigned(self, seed: int, devices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Recorded device that each simulated one replays: (N,) in [0, T)."""
        drawn = device_uniforms(seed, "trace", "device", devices=devices)
        return np.minimum((drawn * self.num_traces).astype(np.int64), self.num_traces - 1)

    def at(
        self, seed: int, devices: NDArray[np.int64], time_s: float, *, at_end: AtEnd, random_start: bool
    ) -> FloatArray:
        """Value that each device replays at a time: (N,)."""
        trace = self.assigned(seed, devices)
        duration = self.duration_s[trace]
        moment = np.full(len(devices), time_s)
        if random_start:
            moment += duration * device_uniforms(seed, "trace", "start", devices=devices)
        if at_end == "loop":
            moment = np.where(duration > 0, np.fmod(moment, np.where(duration > 0, duration, 1.0)), 0.0)
        laid = self.begin_s[trace] + np.minimum(moment, duration)
        row = np.searchsorted(self.laid_s, laid, side="right") - 1
        result: FloatArray = self.values[np.clip(row, self.indptr[trace], self.indptr[trace + 1] - 1)]
        return result


def load_traces(path: Path, value_column: str, *, largest: float = np.inf) -> RecordedTraces:
    """Read ``device, time_s, <value_column>`` from CSV, TSV or Parquet; devices may be interleaved.

    Raises:
        FieldError: not readable, a column is missing, no rows, a value that is not a number >= 0, a row
            without a device, a device whose time does not rise, or a recording longer than ``LONGEST_S``.
    """
    table = _read(path)
    names = [name.strip() for name in table.column_names]
    columns = [table.column(pick_column(names, name, path)) for name in ("device", "time_s", value_column)]
    if table.num_rows == 0:
        raise FieldError(f"{path} has a header and no rows")
    device_index = _codes(columns[0], path)
    time_s = _numbers(columns[1], path, "time_s")
    values = _numbers(columns[2], path, value_column)
    for name, array, high in (("time_s", time_s, np.inf), (value_column, values, largest)):
        wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0) & (array <= high)))
        if len(wrong):
            bound = "a finite number >= 0" if high == np.inf else f"between 0 and {high:g}"
            raise FieldError(f"{path}: data row {wrong[0] + 1}: {name} must be {bound} (got {array[wrong[0]]:g})")
    order = np.argsort(device_index, kind="stable")
    device_index, time_s, values = device_index[order], time_s[order], values[order]
    same = device_index[1:] == device_index[:-1]
    falls = np.flatnonzero(same & (np.diff(time_s) <= 0))
    if len(falls):
        worst = falls[np.argmin(order[falls + 1])]
        raise FieldError(
            f"{path}: data row {order[worst + 1] + 1}: time_s must rise within a device "
            f"(got {time_s[worst + 1]:g} after {time_s[worst]:g})"
        )
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    indptr = np.append(starts, len(values)).astype(np.int64)
    relative = time_s - np.repeat(time_s[starts], np.diff(indptr))
    last = relative[indptr[1:] - 1]
    if last.max() > LONGEST_S:
        row = int(order[indptr[1:][np.argmax(last)] - 1])
        raise FieldError(
            f"{path}: data row {row + 1}: {last.max():g} s after its device's first sample, at most {LONGEST_S:g}; "
            "time_s is in seconds"
        )
    rows = itertools.pairwise(indptr)
    duration = last + np.array([np.median(np.diff(relative[a:b])) if b - a > 1 else 0.0 for a, b in rows])
    begin = np.concatenate([[0.0], np.cumsum(duration[:-1] + 1.0)])
    laid = np.repeat(begin, np.diff(indptr)) + relative
    return RecordedTraces(indptr, values, duration, begin, laid, np.maximum.reduceat(values, starts))


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.read_table(path)
        if suffix in (".csv", ".tsv", ".txt"):
            with path.open("rb") as file:
                header = file.readline(65536).decode("utf-8-sig", errors="replace")
            delimiter = max((",", ";", "\t"), key=header.count)
            names = [name.strip().strip('"') for name in header.strip("\r\n").split(delimiter)]
            return pa_csv.read_csv(
                path,
                parse_options=pa_csv.ParseOptions(delimiter=delimiter),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name: pa.string() for name in names}, strings_can_be_null=False
                ),
            )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FieldError(f"{path}: not a readable trace: {str(error).splitlines()[0]}") from None
    raise FieldError(f"{path}: cannot read {suffix or 'a file without ending'}; use .csv, .tsv or .parquet")


def _codes(column: pa.ChunkedArray, path: Path) -> NDArray[np.int64]:
    encoded = column.combine_chunks().dictionary_encode()  # codes in order of first appearance
    nameless = [i for i, name in enumerate(encoded.dictionary.to_pylist()) if not str(name).strip()]
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((codes < 0) | np.isin(codes, nameless))
    if len(wrong):
        raise FieldError(f"{path}: data row {wrong[0] + 1}: names no device")
    return np.asarray(codes, dtype=np.int64)


def _numbers(column: pa.ChunkedArray, path: Path, name: str) -> FloatArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.utf8_trim_whitespace(column)
        cast = column.cast(pa.float64(), safe=False)
    except pa.ArrowException:
        for i, cell in enumerate(column.to_pylist()):
            if not _is_number(cell):
                raise FieldError(f"{path}: data row {i + 1}: {name} must be a number (got {cell!r})") from None
        raise FieldError(f"{path}: {name} must hold numbers (got {column.type})") from None
    result: Any = cast.to_numpy()
    return np.asarray(result, dtype=np.float64)  # a missing cell reads as NaN and is refused with its row


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True
