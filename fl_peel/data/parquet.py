"""Parquet files with one interaction per row -> columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from fl_peel.data.tables import (
    MAX_TIME,
    Columns,
    check_file,
    label_fault,
    pick_columns,
    whole_seconds,
)
from fl_peel.errors import DataError


def read_parquet(path: Path) -> Columns:
    """Read a Parquet file: ids are integers or text, times are numbers (seconds) or Arrow timestamps.

    Raises:
        DataError: no such file, damaged, a column lacks or has the wrong type, or a row is malformed.
    """
    check_file(path)
    try:
        file = pa.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        positions = pick_columns(str(path), names)
        table = file.read(columns=[names[i] for i in positions.values()])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: not a whole Parquet file ({reason}); write or copy it again") from error
    if table.num_rows == 0:
        raise DataError(f"{path}: holds no interaction; check that it was written in full")
    column = {meaning: table.column(names[i]).combine_chunks() for meaning, i in positions.items()}
    labels = {meaning: _parquet_labels(path, meaning, column[meaning]) for meaning in ("user", "item")}
    numbers = {m: _parquet_numbers(path, m, column[m]) for m in ("rating", "timestamp") if m in column}
    ratings = numbers["rating"].astype(np.float64) if "rating" in numbers else None
    timestamps = None
    if "timestamp" in numbers:
        times = numbers["timestamp"]
        timestamps = whole_seconds(times) if times.dtype.kind == "f" else times.astype(np.int64)
    return Columns(labels["user"], labels["item"], ratings, timestamps)


def _parquet_labels(path: Path, meaning: str, column: Any) -> Any:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: {meaning} column is {kind}; store ids as integers or text")
    labels = pc.utf8_trim(pc.cast(column, pa.string()), characters=" ")
    for label in pc.unique(labels).to_pylist():
        if fault := label_fault(label, integer_ids=False):
            is_bad = pc.is_null(labels) if label is None else pc.equal(labels, label)
            raise DataError(f"{path}: row {pc.index(is_bad, True).as_py() + 1}: {meaning} {fault}")
    return labels


def _parquet_numbers(path: Path, meaning: str, column: Any) -> NDArray[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) and meaning == "timestamp":
        column = pc.cast(column, pa.timestamp("s", kind.tz), safe=False).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{path}: {meaning} column is {kind}; store it as numbers")
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py() + 1
        raise DataError(f"{path}: row {row}: {meaning} is missing; fill it in or leave out the row")
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind in "fu":
        bad = ~(np.abs(numbers) < MAX_TIME)
        if bad.any():
            raise DataError(
                f"{path}: row {int(bad.argmax()) + 1}: {meaning} is {numbers[bad][0]}; store a finite number"
            )
    return numbers
