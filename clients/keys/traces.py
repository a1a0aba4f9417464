"""Recorded series per device (memory, availability), and how simulated devices replay them.

The rule: a simulated device replays one recorded device, drawn uniformly by (seed, device id); with a random start
it begins at a time drawn uniformly over the recording. Between two samples the earlier one holds. After the last
sample the recording starts anew ("loop") or its last value stays ("hold").
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clients.keys.tabular import pick_column
from fl_peel.errors import FieldError
from fl_peel.randomness import device_uniforms

if TYPE_CHECKING:
    import pyarrow as pa

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
