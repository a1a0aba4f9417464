"""Writing into a folder of results: all or none, and listed as ours (:mod:`simulations.listing`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from simulations.listing import LIST, listed
from simulations.report.result_files import json_bytes, write_files


def nothing(name: str) -> bool:
    """No file of an earlier run is out of date."""
    return False


def write_results(
    out: Path, contents: Mapping[str, bytes | Path], out_of_date: Callable[[str], bool] = nothing
) -> list[Path]:
    """Write files of results, all or none, and list them as ours.

    out_of_date: whether a file of an earlier run goes, if it is not written anew; asked of listed ones alone.

    Raises:
        ReportError: the folder cannot be written.
    """
    before = listed(out)
    stale = [name for name in sorted(before - contents.keys()) if out_of_date(name)]
    ours = sorted((before - set(stale)) | contents.keys())
    written = write_files(out, {**contents, LIST: json_bytes({"files": ours})}, stale)
    for folder in {Path(name).parent for name in stale} - {Path()}:
        if not any((out / folder).iterdir()):
            (out / folder).rmdir()
    return written[:-1]


__all__ = ["write_results"]
