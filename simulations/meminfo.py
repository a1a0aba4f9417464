"""Conversion of recordings of ``/proc/meminfo`` to a trace that fleets replay: what `fl-peel profiles from-meminfo`
does.

A recording is a text file of snapshots one after the other, each with a line of seconds before it::

    while true; do date +%s; cat /proc/meminfo; sleep 5; done > phone.txt

Of a snapshot the line ``MemAvailable`` alone is used, so ``grep MemAvailable /proc/meminfo`` will do. The trace has the
columns that :mod:`clients.fleet.tabular` reads: ``device`` (the file's name without its ending), ``time_s`` since the
first snapshot, ``memory_bytes``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from clients.fleet.tabular import LONGEST_S
from fl_peel.errors import ProfileError
from fl_peel.files import file_kind
from fl_peel.problems import kind_of
from fl_peel.scenario.fleet_files import MAX_DATA_BYTES
from simulations.report.result_files import csv_bytes
from simulations.report.table_view import TableView, format_bytes

COLUMNS = ("device", "time_s", "memory_bytes")
LARGEST_KB = 2**43
"""Largest value that a trace may hold, 2^53 bytes."""
_TIME = re.compile(r"\d{1,20}(\.\d{1,9})?")
_AVAILABLE = re.compile(r"MemAvailable:\s*(\d{1,20})\s*kB")
_OTHER = re.compile(r"[^\s:]+:\s*\d+(\s*kB)?")


@dataclass(frozen=True)
class Recording:
    """A device's available memory: ``time_s`` since the first of its S snapshots, rising, and as many bytes."""

    device: str
    time_s: tuple[Decimal, ...]
    available_bytes: tuple[int, ...]


def read_recordings(paths: Sequence[Path], every_s: float | None = None) -> tuple[Recording, ...]:
    """Read recordings, a device each. every_s: seconds between snapshots, for files without lines of time.

    Raises:
        ProfileError: as of :func:`read_recording`; two files of one name, which would be one device; or ``every_s``
            is not above 0.
    """
    if every_s is not None and not 0 < every_s <= LONGEST_S:
        raise ProfileError(f"--every: must be above 0 and at most {LONGEST_S:g} seconds (got {every_s:g})")
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ProfileError(f"{path}: {named[path.stem]} is a device {path.stem!r} already; rename one of the files")
        named[path.stem] = path
    return tuple(read_recording(path, every_s) for path in paths)


def read_recording(path: Path, every_s: float | None = None) -> Recording:
    """Read one recording. A last snapshot that was cut off (by Ctrl-C, say) is left out.

    Raises:
        ProfileError: no such file, larger than 256 MB, not text, or no snapshot in it; a line that is none of
            ``/proc/meminfo``; a snapshot without ``MemAvailable`` or, unless ``every_s`` is given, without a line of
            time; or a time that does not rise, or is not in seconds.
    """
    _check_file(path)
    reader = _MeminfoReader(path, None if every_s is None else Decimal(str(every_s)))
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                reader.take(number, line)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from None
    if not reader.available_bytes:
        raise ProfileError(f"{path}: has no line MemAvailable; record with date +%s; cat /proc/meminfo, in a loop")
    first = reader.time_s[0]
    return Recording(path.stem, tuple(time - first for time in reader.time_s), tuple(reader.available_bytes))


def trace_bytes(recordings: Sequence[Recording], share: float = 1.0) -> bytes:
    """The trace as CSV; ``memory_bytes`` is ``share`` of what was available, rounded down.

    Raises:
        ProfileError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ProfileError(f"--recommender-share: must be above 0 and at most 1 (got {share:g})")
    rows = [
        dict(zip(COLUMNS, (recording.device, f"{time.normalize():f}", int(available * share)), strict=True))
        for recording in recordings
        for time, available in zip(recording.time_s, recording.available_bytes, strict=True)
    ]
    return csv_bytes(COLUMNS, rows)


def trace_table(recordings: Sequence[Recording], share: float = 1.0) -> TableView:
    """One line per device: its snapshots, how long they go on, and the least and the most memory of the trace."""
    rows = tuple(
        (
            recording.device,
            f"{len(recording.time_s):,}",
            f"{recording.time_s[-1]:,.0f} s",
            format_bytes(int(min(recording.available_bytes) * share)),
            format_bytes(int(max(recording.available_bytes) * share)),
        )
        for recording in recordings
    )
    what = "MemAvailable" if share == 1 else f"{share:g} of MemAvailable"
    columns = ("device", "snapshots", "over", "lowest", "highest")
    return TableView("Trace", columns, rows, 1, f"Memory: {what}. 1 KB = 1000 bytes.")


def _check_file(path: Path) -> None:
    kind = file_kind(path)
    if kind == "folder":
        raise ProfileError(f"{path}: is a folder; give the recordings in it")
    if kind != "file":
        raise ProfileError(f"{path}: no such file; give recordings of /proc/meminfo")
    num_bytes = path.stat().st_size
    if num_bytes > MAX_DATA_BYTES:
        raise ProfileError(
            f"{path}: has {num_bytes / 2**20:.0f} MB; at most {MAX_DATA_BYTES // 2**20} MB are read: "
            "keep the lines of time and MemAvailable alone"
        )


class _MeminfoReader:
    """The state after each line of a recording: complete snapshots, and the line where an incomplete one started."""

    def __init__(self, path: Path, every_s: Decimal | None) -> None:
        self.path, self.every_s = path, every_s
        self.time_s: list[Decimal] = []
        self.available_bytes: list[int] = []
        self.time: tuple[int, Decimal] | None = None  # a line of time, and what it says
        self.snapshot_line: int | None = None  # a line MemTotal

    def take(self, number: int, raw: bytes) -> None:
        """Read a line, the ``number``-th of the file."""
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise self._error(number, "is not UTF-8 text; save the recording as UTF-8") from None
        if not line or line.startswith("#"):
            return
        if _TIME.fullmatch(line):
            self._time(number, Decimal(line))
        elif match := _AVAILABLE.fullmatch(line):
            self._available(number, int(match[1]))
        elif line.startswith("MemTotal:") and _OTHER.fullmatch(line):
            self._refuse_incomplete(self.snapshot_line, number)
            self.snapshot_line = number
        elif (line.startswith("MemAvailable") or not _OTHER.fullmatch(line)) and raw.endswith(b"\n"):  # not cut off
            raise self._error(
                number,
                f"{kind_of(line)} is neither a line of /proc/meminfo nor a time in seconds; remove it, or begin it "
                "with #",
            )

    def _time(self, number: int, time_s: Decimal) -> None:
        if self.every_s is not None:
            raise self._error(number, "is a time, and --every is given too; leave --every out")
        self._refuse_incomplete(self.snapshot_line or (self.time and self.time[0]), number)
        if time_s > LONGEST_S:
            raise self._error(number, f"time must be in seconds, at most {LONGEST_S:g}; record with date +%s")
        if self.time_s and time_s <= self.time_s[-1]:
            raise self._error(
                number, f"time must rise (got {time_s} after {self.time_s[-1]}); remove this snapshot, or wait longer"
            )
        self.time = number, time_s

    def _available(self, number: int, kilobytes: int) -> None:
        if kilobytes > LARGEST_KB:
            raise self._error(number, f"MemAvailable must be at most {LARGEST_KB} kB; remove this snapshot")
        if self.every_s is not None:
            self.time_s.append(len(self.time_s) * self.every_s)
        elif self.time is not None:
            self.time_s.append(self.time[1])
        else:
            raise self._error(
                number, "no time before this snapshot; record date +%s before each, or give --every SECONDS"
            )
        self.available_bytes.append(kilobytes * 1024)
        self.time = self.snapshot_line = None

    def _refuse_incomplete(self, began: int | None, number: int) -> None:
        if began is not None:
            raise self._error(
                began,
                f"the snapshot that begins here has no MemAvailable, and the next begins in line {number}; remove it "
                "(kernels before 3.14 do not report it: record on a newer one)",
            )

    def _error(self, number: int, text: str) -> ProfileError:
        return ProfileError(f"{self.path}:{number}: {text}")
