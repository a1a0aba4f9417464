"""Interactions files of every supported format -> :class:`~fl_peel.data.interactions.Interactions`.

=============  =================================  ====================================================
format         recognized by                      a line
=============  =================================  ====================================================
movielens-tab  ``u.data``, ``*.data``             user, item, rating, timestamp, split by tabs
movielens-dat  ``ratings.dat``, ``*.dat``         the same, split by ``::``
lightgcn       ``train.txt``'s folder, ``*.txt``  ``user item item ...``, split by blanks
recbole        ``*.inter``                        split by tabs, below a header like ``user_id:token``
csv, tsv       ``*.csv``, ``*.tsv``               split by commas or tabs, below a header
parquet        ``*.parquet``, ``*.pq``            columns named like those of CSV
=============  =================================  ====================================================

Columns are called user or user_id, item or item_id, rating, timestamp or time, unless a dialect says otherwise; the
last two may be absent. Times are seconds since 1970, or ISO 8601.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from fl_peel.data.catalogue import MAX_ID, read_lists
from fl_peel.data.interactions import Interactions, UserItems
from fl_peel.data.text_tables import (
    TEXT_FORMATS,
    FileColumns,
    called,
    check_file,
    label_fault,
    pick_columns,
    read_text_table,
)
from fl_peel.data.timeline import MAX_TIME, REMEDY, is_date, local_seconds, seconds_of, time_fault, whole_seconds
from fl_peel.errors import DataError
from fl_peel.files import file_kind
from fl_peel.scenario.settings import HEADED, DataFormat, Dialect

_BY_SUFFIX: dict[str, DataFormat] = {
    ".data": "movielens-tab",
    ".dat": "movielens-dat",
    ".txt": "lightgcn",
    ".inter": "recbole",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def read_interactions(
    path: Path | str,
    *,
    format: DataFormat = "auto",
    test_path: Path | str | None = None,
    min_rating: float | None = None,
    name: str | None = None,
    dialect: Dialect | None = None,
) -> Interactions:
    """Read an interactions file, and the test file that belongs to it if there is one.

    A pair that occurs twice counts once, at its first time (its first line where there are no times); a test
    pair that the train file holds too is dropped from the test. Each user's items come oldest first where
    there are times (ties by item), else in the order of the file.

    Numbers: in LightGCN lists the file's own. Elsewhere labels are sorted, by value where all are integers,
    else as text, so that neither the order of the lines nor the format can change who gets which number.

    Args:
        path: the file; for LightGCN lists also the folder that holds ``train.txt`` and ``test.txt``.
        format: how it is written; "auto" goes by the name.
        test_path: pairs set aside for the test, in the same format (``given_test``).
        min_rating: keep interactions rated this or better; users and items left without any are not numbered.
        name: what to call the data; default: the file's name without its ending (MovieLens and lists: the
            folder's name).
        dialect: names of columns, and the zone of times without an offset; default: the usual names, and no zone.

    Raises:
        DataError: anything wrong with the files, in one line that names file and line.
    """
    path = Path(path)
    chosen = _format_of(path) if format == "auto" else format
    if chosen not in get_args(DataFormat):
        raise DataError(f"{path}: unknown format {chosen!r}; choose from {', '.join(get_args(DataFormat))}")
    if min_rating is not None and not math.isfinite(min_rating):
        raise DataError(f"{path}: min_rating is {min_rating}; it must be a finite number")
    dialect = dialect or Dialect()
    if dialect.columns and chosen not in HEADED:
        raise DataError(f"{path}: columns of {chosen} have no names; leave out data.columns, or correct data.format")
    test = Path(test_path) if test_path is not None else None
    if chosen == "lightgcn":
        if file_kind(path) == "folder":
            name = name or path.resolve().name
            path, test = path / "train.txt", test or path / "test.txt"
            if path.is_file() and not test.is_file():
                raise DataError(f"{test}: no such file; add it, or name {path} alone to have a test split off")
        if min_rating is not None:
            raise DataError(f"{path}: lists have no ratings; leave out min_rating")
        return _from_lists(path, test, name or path.resolve().parent.name)
    default = path.resolve().parent.name if chosen.startswith("movielens") else path.stem
    return _from_tables(path, test, partial(_read_table, chosen, dialect), min_rating, name or default)


def _format_of(path: Path) -> DataFormat:
    if file_kind(path) == "folder":
        if (path / "train.txt").exists():
            return "lightgcn"
        raise DataError(f"{path}: is a folder without train.txt; name the interactions file inside it")
    file_format = _BY_SUFFIX.get(path.suffix.lower())
    if file_format is None:
        if file_kind(path) == "nothing":
            raise DataError(f"{path}: no such file; check the path")
        known = ", ".join(get_args(DataFormat)[1:])
        raise DataError(f"{path}: its name does not reveal the format; set one of {known}")
    return file_format


def _from_lists(path: Path, test_path: Path | None, name: str) -> Interactions:
    train = read_lists(path)
    test = read_lists(test_path) if test_path else None
    both = [train] if test is None else [train, test]
    num_users = _count_ids(path, "user", np.concatenate([part.listed_users for part in both]))
    num_items = _count_ids(path, "item", np.concatenate([part.items for part in both]))
    if len(train.items) == 0:
        raise DataError(f"{path}: names users and holds no interaction; write lines like: user item item")
    pairs, _ = _unique_pairs(train.users, train.items, None, num_users, num_items)
    given = None if test is None else _given_test(test.users, test.items, pairs, num_items)
    return Interactions(name, pairs, num_items, given_test=given)


def _count_ids(path: Path, what: str, ids: NDArray[np.int64]) -> int:
    """One more than the largest id, refused where most numbers are unused: tables are as long as this."""
    if len(ids) == 0:
        return 0
    count, used = int(ids.max()) + 1, len(np.unique(ids))
    if count > 10 * used + 1000:
        raise DataError(
            f"{path}: {what} {count - 1} occurs and only {used} {what}s are used; "
            "number ids from 0 without gaps, or write CSV"
        )
    return count


def _from_tables(
    path: Path, test_path: Path | None, read: Callable[[Path], FileColumns], min_rating: float | None, name: str
) -> Interactions:
    paths = [path] if test_path is None else [path, test_path]
    parts = [_rated(p, read(p), min_rating) for p in paths]
    users, user_labels = _numbered([part.users for part in parts])
    items, item_labels = _numbered([part.items for part in parts])
    num_users, num_items = len(user_labels), len(item_labels)
    if max(num_users, num_items) > MAX_ID:
        raise DataError(f"{path}: more than {MAX_ID} users or items; split the file")
    pairs, timestamps = _unique_pairs(users[0], items[0], parts[0].timestamps, num_users, num_items)
    given = None if test_path is None else _given_test(users[1], items[1], pairs, num_items)
    return Interactions(name, pairs, num_items, timestamps, given, user_labels, item_labels)


def _read_table(chosen: str, dialect: Dialect, path: Path) -> FileColumns:
    return read_parquet(path, dialect) if chosen == "parquet" else read_text_table(path, TEXT_FORMATS[chosen], dialect)


def _rated(path: Path, columns: FileColumns, min_rating: float | None) -> FileColumns:
    if min_rating is None:
        return columns
    if columns.ratings is None:
        raise DataError(f"{path}: has no rating column; leave out min_rating")
    kept = columns.ratings >= min_rating
    if not kept.any():
        raise DataError(
            f"{path}: no rating reaches min_rating={min_rating:g}; "
            f"lower it to {columns.ratings.max():g}, the highest rating, or less"
        )
    mask = pa.array(kept)
    times = None if columns.timestamps is None else columns.timestamps[kept]
    return FileColumns(columns.users.filter(mask), columns.items.filter(mask), columns.ratings[kept], times)


def _numbered(parts: list[Any]) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Number the labels of all parts together: each part's numbers, (N_p,), and the labels by number."""
    encoded = pa.chunked_array(parts).combine_chunks().dictionary_encode()
    labels: list[str] = encoded.dictionary.to_pylist()
    if all(label.isascii() and label.isdigit() for label in labels):
        order = sorted(range(len(labels)), key=lambda i: (int(labels[i]), labels[i]))
    else:
        order = sorted(range(len(labels)), key=labels.__getitem__)
    number = np.empty(len(labels), dtype=np.int64)
    number[order] = np.arange(len(labels))
    numbers = number[encoded.indices.to_numpy(zero_copy_only=False)]
    bounds = np.cumsum([len(part) for part in parts])[:-1]
    return np.split(numbers, bounds), tuple(labels[i] for i in order)


def _unique_pairs(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    timestamps: NDArray[np.int64] | None,
    num_users: int,
    num_items: int,
) -> tuple[UserItems, NDArray[np.int64] | None]:
    """Each pair once, the first in time (in row order without times), sorted within the user the same way."""
    key = users * num_items + items
    first_come = np.argsort(key, kind="stable") if timestamps is None else np.lexsort((timestamps, key))
    is_first = np.diff(key[first_come], prepend=-1) != 0
    rows = first_come[is_first]
    if timestamps is None:
        rows = np.sort(rows)
        return UserItems.from_pairs(users[rows], items[rows], num_users), None
    rows = rows[np.lexsort((items[rows], timestamps[rows], users[rows]))]
    return UserItems.from_pairs(users[rows], items[rows], num_users), timestamps[rows]


def _given_test(users: NDArray[np.int64], items: NDArray[np.int64], train: UserItems, num_items: int) -> UserItems:
    pairs, _ = _unique_pairs(users, items, None, train.num_users, num_items)
    known = np.isin(pairs.users() * num_items + pairs.items, train.users() * num_items + train.items)
    return pairs.keep(~known) if known.any() else pairs


# ---- Parquet files with one interaction per row -> columns


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
