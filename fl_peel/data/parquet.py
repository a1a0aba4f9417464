"""Parquet files with one interaction per row -> columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from fl_peel.data.settings import Dialect
from fl_peel.data.text_tables import (
    FileColumns,
    called,
    check_file,
    label_fault,
    pick_columns,
)
from fl_peel.data.times import MAX_TIME, REMEDY, is_date, local_seconds, seconds_of, time_fault, whole_seconds
from fl_peel.errors import DataError

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_parquet(path: Path, dialect: Dialect) -> FileColumns:
    """Read a Parquet file: ids are integers or text, times are numbers (seconds), Arrow timestamps or dates, or text.

    Raises:
        DataError: no such file, damaged, a column lacks or has the wrong type, or a row is malformed.
    """
    check_file(path)
    try:
        file = pa.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        positions = pick_columns(str(path), names, dialect.columns)
        table = file.read(columns=[names[i] for i in positions.values()])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: not a whole Parquet file ({reason}); write or copy it again") from error
    if table.num_rows == 0:
        raise DataError(f"{path}: holds no interaction; check that it was written in full")
    column = {meaning: table.column(names[i]).combine_chunks() for meaning, i in positions.items()}
    name = {meaning: called(meaning, names[i]) for meaning, i in positions.items()}
    users, items = (_parquet_labels(path, name[meaning], column[meaning]) for meaning in ("user", "item"))
    ratings = timestamps = None
    if "rating" in column:
        ratings = _parquet_numbers(path, name["rating"], column["rating"]).astype(np.float64)
    if "timestamp" in column:
        timestamps = _parquet_times(path, name["timestamp"], column["timestamp"], dialect.time_zone)
    return FileColumns(users, items, ratings, timestamps)


def _parquet_labels(path: Path, name: str, column: Any) -> Any:
    column, kind = _plain(column)
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        raise DataError(f"{path}: {name} column is {kind}; store ids as integers or text")
    labels = pc.utf8_trim(pc.cast(column, pa.string()), characters=" ")
    for label in pc.unique(labels).to_pylist():
        if fault := label_fault(label, integer_ids=False):
            is_bad = pc.is_null(labels) if label is None else pc.equal(labels, label)
            raise DataError(f"{path}: row {pc.index(is_bad, True).as_py() + 1}: {name} {fault}")
    return labels


def _plain(column: Any) -> tuple[Any, Any]:
    """A column whose values are not looked up elsewhere, and its type."""
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return column, column.type


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parquet_times(path: Path, name: str, column: Any, zone: str | None) -> NDArray[np.int64]:
    column, kind = _plain(column)
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or _is_text(kind)):
        numbers = _parquet_numbers(path, name, column)
        return whole_seconds(numbers) if numbers.dtype.kind == "f" else numbers.astype(np.int64)
    _require_all(path, name, column)
    if _is_text(kind):
        return _text_times(path, name, pc.utf8_trim(pc.cast(column, pa.string()), characters=" "), zone)
    if pa.types.is_date(kind):
        column, kind = pc.cast(column, pa.timestamp("s")), pa.timestamp("s")
    ticks: NDArray[np.int64] = pc.cast(column, pa.int64()).to_numpy(zero_copy_only=False)
    seconds = ticks // _PER_SECOND[kind.unit]
    if kind.tz is not None:
        return seconds
    if zone is None:
        raise DataError(f"{path}: {name} column is {kind}, without a time zone; {REMEDY}")
    try:
        return local_seconds(pa.array(seconds, pa.timestamp("s")), zone)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: {name} column: {reason}; correct it, or data.time_zone") from error


def _text_times(path: Path, name: str, texts: Any, zone: str | None) -> NDArray[np.int64]:
    try:
        return seconds_of(texts, zone)
    except ValueError as error:
        dates = is_date(texts[0].as_py())
        for row, text in enumerate(texts.to_pylist(), start=1):
            if fault := time_fault(text, zone, dates=dates):
                raise DataError(f"{path}: row {row}: {name} {fault}") from error
        raise DataError(f"{path}: {name} column cannot be read ({str(error).splitlines()[0]})") from error


def _require_all(path: Path, name: str, column: Any) -> None:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py() + 1
        raise DataError(f"{path}: row {row}: {name} is missing; fill it in or leave out the row")


def _parquet_numbers(path: Path, name: str, column: Any) -> NDArray[Any]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{path}: {name} column is {kind}; store it as numbers")
    _require_all(path, name, column)
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind in "fu":
        bad = ~(np.abs(numbers) < MAX_TIME)
        if bad.any():
            raise DataError(f"{path}: row {int(bad.argmax()) + 1}: {name} is {numbers[bad][0]}; store a finite number")
    return numbers
