"""Text files with one interaction per line: MovieLens, RecBole ``.inter``, CSV -> columns.

Arrow reads the file in one vectorized pass. Only when that fails does a slow pass walk the lines, to name the
one that is wrong.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from fl_peel.data.timeline import is_date, number_fault, seconds_of, time_fault
from fl_peel.errors import DataError, shortened
from fl_peel.files import file_kind
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of
from fl_peel.scenario.settings import Dialect

ALIASES = {
    "user": ("user", "user_id", "userid"),
    "item": ("item", "item_id", "itemid", "movie_id", "movieid"),
    "rating": ("rating",),
    "timestamp": ("timestamp", "time"),
}
_BOM = b"\xef\xbb\xbf"
_INTEGER = re.compile(r"[0-9]+")
_NEGATIVE = re.compile(r"-[0-9]+")
LONGEST_LABEL = 1000
"""Largest number of characters in an id: a longer one means that the file is not separated as assumed."""


@dataclass(frozen=True)
class FileColumns:
    """Columns of one file, row by row.

    users, items: (N,) Arrow strings, never null or empty; ratings: (N,) float64, finite, or None; timestamps: (N,)
    int64 seconds, or None.
    """

    users: Any
    items: Any
    ratings: NDArray[np.float64] | None
    timestamps: NDArray[np.int64] | None


@dataclass(frozen=True)
class TextFormat:
    """Layout of a text table.

    columns: names by position, or None where the first line names them; typed_header: names read ``name:type``; quoted:
    fields may stand in double quotes; integer_ids: users, items are integers >= 0.
    """

    delimiter: str
    columns: tuple[str, ...] | None = None
    typed_header: bool = False
    quoted: bool = False
    integer_ids: bool = False


_MOVIELENS = ("user", "item", "rating", "timestamp")
TEXT_FORMATS = {
    "movielens-tab": TextFormat("\t", columns=_MOVIELENS, integer_ids=True),
    "movielens-dat": TextFormat("::", columns=_MOVIELENS, integer_ids=True),
    "recbole": TextFormat("\t", typed_header=True),
    "csv": TextFormat(",", quoted=True),
    "tsv": TextFormat("\t", quoted=True),
}


def check_file(path: Path) -> None:
    """Raise a DataError where there is no file to read."""
    kind = file_kind(path)
    if kind == "nothing":
        raise DataError(f"{path}: no such file; check the path")
    if kind == "folder":
        raise DataError(f"{path}: is a folder; name the file inside it")
    if kind == "other":
        raise DataError(f"{path}: is a pipe or a device; write its output to a file")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file without a byte-order mark, never blank; every way this can fail is one DataError."""
    check_file(path)
    try:
        raw = path.read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not raw.strip():
        raise DataError(f"{path}: the file is empty; it should hold one interaction per line")
    return raw


def read_text_table(path: Path, text_format: TextFormat, dialect: Dialect) -> FileColumns:
    """Read a delimited text file.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a malformed line, which is named.
    """
    raw = read_bytes(path)
    names = text_format.columns or _header(path, raw, text_format)
    positions = pick_columns(f"{path}:1" if text_format.columns is None else str(path), names, dialect.columns)
    try:
        return _read_fast(raw, text_format, len(names), positions, dialect.time_zone)
    except ValueError as error:  # Arrow's own errors are ValueErrors too
        _raise_for_bad_line(path, raw, text_format, names, positions, dialect.time_zone)
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); check the format and the file") from error


def pick_columns(place: str, names: Sequence[str], given: Mapping[str, str]) -> dict[str, int]:
    """Position of the user, item, rating and timestamp columns; the last two may be absent. given: as in a dialect.

    Raises:
        DataError: no user or item column, none of a given name, or two columns that mean the same.
    """
    positions = {meaning: _position(place, names, meaning, name) for meaning, name in given.items()}
    for meaning, aliases in ALIASES.items():
        if meaning in given:
            continue
        places = [i for i, name in enumerate(names) if _plain(name) in aliases and i not in positions.values()]
        if len(places) > 1:
            which = " and ".join(repr(names[i]) for i in places)
            raise DataError(f"{place}: {which} both name the {meaning}; keep one of them")
        if places:
            positions[meaning] = places[0]
        elif meaning in ("user", "item"):
            have = shortened(", ".join(repr(name) for name in names), 300)
            raise DataError(f"{place}: no {meaning} column among {have}; {_remedy(names, meaning, aliases)}")
    return {meaning: positions[meaning] for meaning in ALIASES if meaning in positions}


def _remedy(names: Sequence[str], meaning: str, aliases: Sequence[str]) -> str:
    """Say what to do about a column that is not found."""
    (name,) = names if len(names) == 1 else ("",)
    for mark in (";", "|", "\t"):
        if mark in name:
            return f"its columns are separated by {mark!r}: save it with commas"
    if any(name.strip().replace(".", "", 1).isdecimal() for name in names):
        return "its first line is no header: add one, e.g. user,item,timestamp"
    return f"call it {' or '.join(aliases[:2])}, or give its name as data.columns.{meaning}"


def _position(place: str, names: Sequence[str], meaning: str, name: str) -> int:
    """Return the position of the column whose name a dialect gives."""
    key = f"data.columns.{column_key(meaning)}"
    places = [i for i, one in enumerate(names) if one.strip() == name.strip()]
    if len(places) > 1:
        raise DataError(f"{place}: {len(places)} columns are called {name!r}, which {key} names; rename one of them")
    if not places:
        known = shortened(did_you_mean(name, names), 300)
        raise DataError(f"{place}: no column {shortened(repr(name), 100)}; correct {key}: {known}")
    return places[0]


def column_key(meaning: str) -> str:
    """Return the key of a scenario's ``data.columns`` that names a column."""
    return "time" if meaning == "timestamp" else meaning


def called(meaning: str, name: str) -> str:
    """A column in a message: what it means, with its name where that is a name of the user's own."""
    return meaning if _plain(name) in ALIASES[meaning] else f"{shortened(name, 100)} ({meaning})"


def _plain(name: str) -> str:
    return name.strip().lower()


def label_fault(label: str | None, *, integer_ids: bool) -> str | None:
    """Return the fault of a user's or item's label with its remedy, or None."""
    if not label:
        return "is missing; every interaction needs one"
    if label in ("nan", "NaN"):
        return f"is {label!r}, which stands for no id; leave out such rows"
    if _NEGATIVE.fullmatch(label):
        return f"is negative ({shortened(label, 60)}); ids count from 0, so leave out such rows"
    if integer_ids and not _INTEGER.fullmatch(label):
        return f"is {kind_of(label)}, not an integer; ids here are whole numbers"
    if len(label) > LONGEST_LABEL:
        return f"has {len(label)} characters, ids at most {LONGEST_LABEL}; shorten it, or correct the line"
    return None


def _header(path: Path, raw: bytes, text_format: TextFormat) -> tuple[str, ...]:
    try:
        line = raw.splitlines()[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: not UTF-8 text; save the file as UTF-8") from error
    if text_format.quoted:
        try:
            names = next(csv.reader([line], delimiter=text_format.delimiter), [])
        except csv.Error as error:
            raise DataError(f"{path}:1: {error}; head the columns like user,item") from error
    else:
        names = line.split(text_format.delimiter)
    if text_format.typed_header:
        untyped = [name for name in names if ":" not in name]
        if untyped:
            raise DataError(
                f"{path}:1: {kind_of(untyped[0])} has no type; head the columns like user_id:token<TAB>item_id:token"
            )
        names = [name.rsplit(":", 1)[0] for name in names]
    return tuple(name.strip() for name in names)


def _read_fast(
    raw: bytes, text_format: TextFormat, num_fields: int, positions: dict[str, int], zone: str | None
) -> FileColumns:
    """Read in one vectorized pass; ValueError where anything at all is wrong."""
    delimiter = text_format.delimiter
    if len(delimiter) > 1:  # Arrow splits at one character only
        raw, delimiter = raw.replace(delimiter.encode(), b"\t"), "\t"
    fields = [str(i) for i in range(num_fields)]
    wanted = {meaning: fields[i] for meaning, i in positions.items()}
    table = pa.csv.read_csv(
        pa.BufferReader(raw),
        read_options=pa.csv.ReadOptions(column_names=fields, skip_rows=int(text_format.columns is None)),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if text_format.quoted else False,
            newlines_in_values=text_format.quoted,
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(wanted.values()), column_types=dict.fromkeys(wanted.values(), pa.string())
        ),
    )
    if table.num_rows == 0:
        raise ValueError("no interactions")
    text = {
        meaning: pc.utf8_trim(table.column(field).combine_chunks(), characters=" ") for meaning, field in wanted.items()
    }
    for meaning in ("user", "item"):
        for label in pc.unique(text[meaning]).to_pylist():
            if fault := label_fault(label, integer_ids=text_format.integer_ids):
                raise ValueError(f"{meaning} {fault}")
    ratings = pc.cast(text["rating"], pa.float64()).to_numpy() if "rating" in text else None
    if ratings is not None and not np.isfinite(ratings).all():
        raise ValueError("a rating is not finite")
    timestamps = seconds_of(text["timestamp"], zone) if "timestamp" in text else None
    return FileColumns(text["user"], text["item"], ratings, timestamps)


def _lines(path: Path, raw: bytes, text_format: TextFormat) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and fields of every record, the header included."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(raw[: error.start + 1].splitlines())
        raise DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
    if not text_format.quoted:
        for line, content in enumerate(raw.splitlines(), start=1):
            if content:
                yield line, content.decode("utf-8").split(text_format.delimiter)
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=text_format.delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: {error}; correct the quotes") from error


def _raise_for_bad_line(
    path: Path,
    raw: bytes,
    text_format: TextFormat,
    names: Sequence[str],
    positions: dict[str, int],
    zone: str | None,
) -> None:
    num_records, dates = 0, False
    for line, fields in _lines(path, raw, text_format):
        if text_format.columns is None and line == 1:
            continue
        num_records += 1
        if len(fields) != len(names):
            have = f"{len(fields)} field" + "s" * (len(fields) != 1)
            sign = {"\t": "tabs", ",": "commas"}.get(text_format.delimiter, repr(text_format.delimiter))
            raise DataError(f"{path}:{line}: {have} where {len(names)} belong ({', '.join(names)}), split at {sign}")
        for meaning, position in positions.items():
            text = fields[position].strip(" ")
            if meaning in ("user", "item"):
                fault = label_fault(text, integer_ids=text_format.integer_ids)
            elif meaning == "rating":
                fault = number_fault(text)
            else:
                dates = is_date(text) if num_records == 1 else dates
                fault = time_fault(text, zone, dates=dates)
            if fault:
                raise DataError(f"{path}:{line}: {called(meaning, names[position])} {fault}")
    if num_records == 0:
        raise DataError(f"{path}: names its columns and holds no interaction; check that it was written in full")
