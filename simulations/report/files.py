"""Values to bytes, bytes to files: strict JSON, CSV, and writing that leaves all old or all new files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_peel.errors import ReportError


def to_plain(value: Any, where: str = "result") -> Any:
    """Copy `value` as plain JSON types; NumPy scalars become Python's, tuples become lists.

    Raises `ReportError` with the key's path for NaN, infinity and anything that JSON cannot say.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ReportError(
                f"{where} is {value}: a reported number must be finite; use None for what was not measured, "
                "and look for a diverged training (lower the learning rate) otherwise"
            )
        return value
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise ReportError(f"{where} has the key {wrong!r}: keys must be text; use str(key)")
        return {key: to_plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part, f"{where}.{index}") for index, part in enumerate(value)]
    raise ReportError(f"{where} is a {type(value).__name__}: use numbers, text, lists and dictionaries only")


def json_bytes(plain: Any) -> bytes:
    """UTF-8 JSON, two spaces of indent, keys in their given order, floats to their last digit."""
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def csv_bytes(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """UTF-8 CSV with LF ends; a missing or None cell is empty; floats keep their last digit."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def write_files(out_dir: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write `contents` (file name -> bytes) into `out_dir`: all of them or, on any failure, none.

    Files are first written into a temporary folder inside `out_dir` (on the same disk: a move is atomic) and
    then moved one by one; if a move fails, those already made are undone. Other files in `out_dir` are left
    alone. Raises `ReportError` when the disk says no.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".report-", dir=out_dir))
    except OSError as error:
        raise ReportError(f"{out_dir}: cannot write here ({error}); give another --out") from error
    try:
        for name, data in contents.items():
            (staging / name).write_bytes(data)
        return _move_all(staging, out_dir, list(contents))
    except OSError as error:
        raise ReportError(f"{out_dir}: cannot write ({error}); the old files are as they were") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_all(staging: Path, out_dir: Path, names: Sequence[str]) -> list[Path]:
    backup = staging / "old"
    backup.mkdir()
    for name in names:
        if (out_dir / name).exists():
            shutil.copy2(out_dir / name, backup / name)
    moved: list[str] = []
    try:
        for name in names:
            os.replace(staging / name, out_dir / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            if (backup / name).exists():
                shutil.move(backup / name, out_dir / name)
            else:
                (out_dir / name).unlink()
        raise
    return [out_dir / name for name in names]
