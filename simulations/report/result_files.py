"""Files of results: strict JSON, CSV, and writing that leaves all old or all new files, listed as
ours (:mod:`simulations.listing`).
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fl_peel.errors import ReportError
from fl_peel.files import locked, owned_folder, remove_abandoned
from simulations.listing import LIST, listed

STAGING = ".report-"
"""Prefix of the name of a folder in which files are written before they are moved."""


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


def write_files(
    out_dir: Path, contents: Mapping[str, bytes | Path], out_of_date: Callable[[str], bool] | None = None
) -> list[Path]:
    """Write `contents` (name -> bytes, or a file to copy) into `out_dir`: all or, on any failure, none.

    out_of_date: as in :func:`write_results`; None where the files are not listed as ours.

    Files are first written into a temporary folder on the same disk, and then moved: a folder that is new comes with
    one rename, a single file likewise. Where several old files are replaced, all of them leave before the first new one
    comes, so that even a killed process leaves none of one kind beside the other. Other files in `out_dir` are left
    alone. Raises `ReportError` when the disk cannot be written.
    """
    is_new = not out_dir.exists()
    place = out_dir.parent if is_new else out_dir
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            staging = stack.enter_context(owned_folder(place, STAGING))
        except OSError as error:
            raise ReportError(f"{out_dir}: cannot write here ({error}); give another --out") from error
        try:
            for name, data in contents.items():
                file = staging / "new" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(data, Path):
                    _linked_or_copied(data, file)
                else:
                    file.write_bytes(data)
            if out_of_date is not None:
                _write_list(staging / "new", contents)
            if not (is_new and _renamed(staging / "new", out_dir)):
                if out_of_date is None:
                    _replace_all(staging, out_dir, list(contents), [])
                else:
                    _replace_listed(staging, out_dir, contents, out_of_date)
        except OSError as error:
            raise ReportError(f"{out_dir}: cannot write ({error}); the old files are as they were") from error
    remove_abandoned(place, STAGING)
    return [out_dir / name for name in contents]


def _linked_or_copied(source: Path, target: Path) -> None:
    """A file on the same disk is not written twice: nobody changes one that is there, a new one takes its place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _renamed(folder: Path, target: Path) -> bool:
    """Whether the folder could be given its name; not where somebody else was faster."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def _replace_all(staging: Path, out_dir: Path, names: Sequence[str], stale: Sequence[str]) -> None:
    aside: list[str] = []
    moved: list[str] = []
    try:
        if len(names) + len(stale) > 1:
            for name in (*names, *stale):
                if os.path.lexists(out_dir / name):
                    (staging / "old" / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(out_dir / name, staging / "old" / name)
                    aside.append(name)
        for name in names:
            (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / "new" / name, out_dir / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            (out_dir / name).unlink()
        for name in aside:
            (staging / "old" / name).rename(out_dir / name)
        raise


def _write_list(folder: Path, names: Iterable[str]) -> None:
    (folder / LIST).write_bytes(json_bytes({"files": sorted(names)}))


def _replace_list(staging: Path, out_dir: Path, names: Iterable[str]) -> None:
    _write_list(staging, names)
    os.replace(staging / LIST, out_dir / LIST)


def _replace_listed(staging: Path, out_dir: Path, contents: Iterable[str], out_of_date: Callable[[str], bool]) -> None:
    """Replace files, while nobody else does, and list them. Names are listed before their files come, and until these
    are gone: who is killed meanwhile leaves no file that looks like a stranger's.
    """
    with locked(out_dir):
        before, new = listed(out_dir), frozenset(contents)
        stale = [name for name in sorted(before - new) if out_of_date(name)]
        _replace_list(staging, out_dir, before | new)
        _replace_all(staging, out_dir, list(contents), stale)
        with suppress(OSError):  # the list may name files that are gone
            _replace_list(staging, out_dir, before.difference(stale) | new)
    for folder in {Path(name).parent for name in stale} - {Path()}:
        with suppress(OSError):  # other files are there
            (out_dir / folder).rmdir()


def write_results(
    out: Path, contents: Mapping[str, bytes | Path], out_of_date: Callable[[str], bool] = lambda name: False
) -> list[Path]:
    """Write files of results, all or none, and list them as ours.

    out_of_date: whether a file of an earlier run goes, if it is not written anew; asked of listed ones alone.

    Raises:
        ReportError: the folder cannot be written.
    """
    return write_files(out, contents, out_of_date)
