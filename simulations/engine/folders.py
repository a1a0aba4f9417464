"""Where a run leaves things: the simulated devices' disks, and pretrained tables."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from fl_peel.errors import ReportError


def default_cache_dir() -> Path:
    """Where pretrained tables are kept between runs."""
    return Path(platformdirs.user_cache_dir("fl-peel")) / "pretrained"


def data_folder(data_dir: str | Path | None) -> str:
    """Where named data sets lie: the folder given, else that of the environment, else "", the default places."""
    return os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder for the simulated devices' disks.

    Raises:
        ReportError: there is no place for one.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="fl-peel-"))
    except OSError as error:
        raise ReportError(
            f"no temporary folder can be made ({error}); set TMPDIR to one that can be written"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["data_folder", "default_cache_dir", "run_folder"]
