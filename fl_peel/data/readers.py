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

import csv
import io
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from fl_peel.data.interactions import IntArray, Interactions, UserItems
from fl_peel.data.timeline import (
    MAX_TIME,
    REMEDY,
    is_date,
    local_seconds,
    number_fault,
    seconds_of,
    time_fault,
    whole_seconds,
)
from fl_peel.errors import DataError, shortened
from fl_peel.files import file_kind
from fl_peel.plugins import did_you_mean
from fl_peel.problems import kind_of
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


# ---- A catalogue: the ids of all items, in an order that everybody shares. It is no one's data
# A text file with one id a line; the item in line n + 1 has the number n. With it interactions that lie in many
# places have the same numbers, whoever holds which of them.


logger = logging.getLogger("fl_peel")


def read_catalogue(path: Path | str) -> tuple[str, ...]:
    """The ids of a file.

    Raises:
        DataError: it cannot be read, is empty, or has a line that is no new id.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); correct data.catalogue") from error
    return checked_catalogue(text, str(path))


def checked_catalogue(text: str, where: str) -> tuple[str, ...]:
    """The ids of a text, one a line. where: it comes from.

    Raises:
        DataError: it is empty, or has a line that is no new id.
    """
    lines = text.removesuffix("\n").split("\n")
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        item = line.strip()
        if not item:
            raise DataError(f"{where}:{number}: there is no item; write one id a line")
        if item in seen:
            raise DataError(f"{where}:{number}: item {item[:80]} is there twice; leave one out")
        seen.add(item)
    if len(lines) > MAX_ID:
        raise DataError(f"{where}: more than {MAX_ID} items; split the catalogue")
    return tuple(line.strip() for line in lines)


TITLES = ("title", "movie_title", "name")
"""Names of a column of titles."""


def read_titles(path: Path | str) -> dict[str, str]:
    """Read the titles of items by their ids; items may be missing, and others be there.

    Raises:
        DataError: it cannot be read, or has no column of items or of titles.
    """
    raw = read_bytes(Path(path))
    try:
        lines = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = raw.decode("latin-1").splitlines()  # as MovieLens has it
    delimiter = next((mark for mark in ("::", "|", "\t") if mark in lines[0]), ",")
    rows = [line.split(delimiter) for line in lines] if delimiter != "," else list(csv.reader(lines))
    item, title = 0, 1
    if delimiter in (",", "\t"):
        names = [name.partition(":")[0].strip().lower() for name in rows.pop(0)]
        item = next((place for place, name in enumerate(names) if name in ALIASES["item"]), -1)
        title = next((place for place, name in enumerate(names) if name in TITLES), -1)
        if item < 0 or title < 0:
            have = shortened(", ".join(map(repr, names)), 300)
            raise DataError(f"{path}:1: no item or no title column among {have}; name them item and title")
    return {row[item].strip(): row[title].strip() for row in rows if len(row) > max(item, title) and row[title].strip()}


def restrict_to_catalogue(interactions: Interactions, catalogue: Sequence[str], where: str) -> Interactions:
    """The interactions with the catalogue's items, numbered as there; others are left out, and how many is told here
    alone. Users stay, also those that nothing is left of.

    Raises:
        DataError: no item is in the catalogue.
    """
    number = {item: place for place, item in enumerate(catalogue)}
    labels = interactions.item_labels or tuple(str(item) for item in range(interactions.num_items))
    numbers = np.array([number.get(label, -1) for label in labels], np.int64)  # (I of the file,)
    known = numbers[interactions.pairs.items] >= 0
    if not known.any():
        raise DataError(f"{where}: none of its items is in the catalogue, which begins with {catalogue[0][:80]}")
    if not known.all():
        unknown = np.count_nonzero(numbers < 0)
        logger.warning(
            "%s: %d items with %d interactions are not in the catalogue and left out", where, unknown, (~known).sum()
        )
    pairs = interactions.pairs.keep(known)
    times = None if interactions.timestamps is None else interactions.timestamps[known]
    if times is None:
        renumbered = UserItems(pairs.indptr, numbers[pairs.items].astype(np.int32))
    else:  # of two at one time the one with the lower number comes first
        items = numbers[pairs.items]
        order = np.lexsort((items, times, pairs.users()))
        renumbered, times = UserItems(pairs.indptr, items[order].astype(np.int32)), times[order]
    given = interactions.given_test
    return replace(
        interactions,
        pairs=renumbered,
        num_items=len(catalogue),
        timestamps=times,
        given_test=None if given is None else _renumbered(given, numbers),
        item_labels=tuple(catalogue),
    )


def _renumbered(items: UserItems, numbers: IntArray) -> UserItems:
    kept = items.keep(numbers[items.items] >= 0)
    return UserItems(kept.indptr, numbers[kept.items].astype(np.int32))


# ---- LightGCN's lists: a line per user, ``user item item ...``, numbers from 0, split by blanks -> pairs
# Gowalla, Yelp2018 and Amazon-Book are published like this, as ``train.txt`` and ``test.txt`` (He et al., "LightGCN:
# Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020).


MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Lists:
    """Pairs of one file, as they stand in it (repeats included), and whom it lists.

    users, items: (N,) int64 numbers from 0; listed_users: (L,) int64, the first number of each line.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    listed_users: NDArray[np.int64]


def read_lists(path: Path) -> Lists:
    """Read one list file; a line with nothing but a user is a user without items.

    Raises:
        DataError: no such file, empty, or a line that holds anything but whole numbers from 0 to 2**31 - 1.
    """
    raw = read_bytes(path)
    data = np.frombuffer(raw, dtype=np.uint8)
    is_digit = (data >= ord("0")) & (data <= ord("9"))
    is_break = (data == ord("\n")) | (data == ord("\r"))
    if not (is_digit | is_break | (data == ord(" ")) | (data == ord("\t"))).all():
        raise _fault(path, raw)
    edges = np.flatnonzero(np.diff(is_digit.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]  # (T,) each: where every number starts and ends
    if (ends - starts).max() > len(str(MAX_ID)):
        raise _fault(path, raw)
    numbers = np.fromstring(raw.decode("ascii"), dtype=np.int64, sep=" ")  # (T,)
    assert len(numbers) == len(starts)
    if numbers.max() > MAX_ID:
        raise _fault(path, raw)
    line = np.searchsorted(np.flatnonzero(is_break), starts)  # (T,) line of each number
    is_user = np.diff(line, prepend=-1) > 0  # the first number of its line
    users = numbers[is_user]
    row = np.cumsum(is_user) - 1
    return Lists(users[row[~is_user]], numbers[~is_user], users)


def _fault(path: Path, raw: bytes) -> DataError:
    for line, content in enumerate(raw.splitlines(), start=1):
        try:
            words = content.decode("utf-8").split()
        except UnicodeDecodeError:
            return DataError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8")
        for place, word in enumerate(words):
            what = "item" if place else "user"
            if fault := label_fault(word, integer_ids=True):
                return DataError(f"{path}:{line}: {what} {fault}")
            if len(word) > len(str(MAX_ID)) or int(word) > MAX_ID:
                return DataError(f"{path}:{line}: {what} {word} is above {MAX_ID}; number ids from 0 without gaps")
    return DataError(f"{path}: holds more than numbers and blanks; write lines like: user item item")


# ---- Text files with one interaction per line: MovieLens, RecBole ``.inter``, CSV -> columns
# Arrow reads the file in one vectorized pass. Only when that fails does a slow pass walk the lines, to name the one
# that is wrong.


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
        places = [i for i, name in enumerate(names) if _plain_name(name) in aliases and i not in positions.values()]
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
    return meaning if _plain_name(name) in ALIASES[meaning] else f"{shortened(name, 100)} ({meaning})"


def _plain_name(name: str) -> str:
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
