"""Folders in which a run leaves things: the simulated devices' disks, and pretrained tables."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import platformdirs

from fl_peel.errors import ReportError
from fl_peel.files import owned_folder, remove_abandoned

PREFIX = "fl-peel-"
"""Prefix of the name of a run's folder."""
LEAST_FREE_BYTES = 32 << 20
"""Bytes that the smallest run needs on the disk, with what Ray writes itself."""


def default_cache_dir() -> Path:
    """Return the folder where pretrained tables are kept between runs."""
    return Path(platformdirs.user_cache_dir("fl-peel")) / "pretrained"


def data_folder(data_dir: str | Path | None) -> str:
    """Return the folder of named data sets: the one given, that of the environment, or "", the default."""
    return os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder for the simulated devices' disks; those of killed runs are removed before.

    Raises:
        ReportError: there is no place for one, or the disk is full.
    """
    with ExitStack() as stack:
        try:
            place = Path(tempfile.gettempdir())
            remove_abandoned(place, PREFIX)
            free = shutil.disk_usage(place).free
            if free < LEAST_FREE_BYTES:
                raise ReportError(
                    f"{place}: {free >> 10} KiB are free, where a run and Ray's logs take {LEAST_FREE_BYTES >> 20} MiB "
                    "and more; make some room, or set TMPDIR to another disk"
                )
            folder = stack.enter_context(owned_folder(place, PREFIX))
        except OSError as error:
            raise ReportError(
                f"no temporary folder can be made ({error}); set TMPDIR to one that can be written"
            ) from error
        try:
            yield folder
        except OSError as error:
            if not _is_full(error):
                raise
            raise ReportError(
                f"{place}: no space left for the run's folder ({error}); free some, or set TMPDIR to another disk"
            ) from error


def _is_full(error: OSError) -> bool:
    """Return whether a disk is full by this error; NumPy's has no number, but how much it could write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and " requested and " in str(error))
