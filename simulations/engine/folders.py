"""Folders in which a run leaves things: the simulated devices' disks, and pretrained tables."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import psutil

from fl_peel.errors import ReportError

PREFIX, OWNER = "fl-peel-", "owner.json"
"""Prefix of the name of a run's folder; name of the file in it that identifies its owner."""
LEAST_FREE_BYTES = 32 << 20
"""Bytes that the smallest run needs on the disk, with what Ray writes itself."""
SAME_S = 1.0
"""Seconds by which a process's start may differ when it is read again."""


def default_cache_dir() -> Path:
    """Return the folder where pretrained tables are kept between runs."""
    return Path(platformdirs.user_cache_dir("fl-peel")) / "pretrained"


def data_folder(data_dir: str | Path | None) -> str:
    """Return the folder of named data sets: the folder given, else that of the environment, else "", the default
    places.
    """
    return os.path.abspath(data_dir) if data_dir else os.environ.get("FL_PEEL_DATA", "")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder for the simulated devices' disks; those of killed runs are removed before.

    Raises:
        ReportError: there is no place for one, or the disk is full.
    """
    try:
        place = Path(tempfile.gettempdir())
        sweep(place)
        free = shutil.disk_usage(place).free
        if free < LEAST_FREE_BYTES:
            raise ReportError(
                f"{place}: {free >> 10} KiB are free, where a run and Ray's logs take {LEAST_FREE_BYTES >> 20} MiB and "
                "more; make some room, or set TMPDIR to another disk"
            )
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        raise ReportError(
            f"no temporary folder can be made ({error}); set TMPDIR to one that can be written"
        ) from error
    try:
        (folder / OWNER).write_text(
            json.dumps(dataclasses.asdict(Owner.from_process(psutil.Process()))), encoding="utf-8"
        )
        yield folder
    except OSError as error:
        if not _is_full(error):
            raise
        raise ReportError(
            f"{folder.parent}: no space left for the run's folder ({error}); free some, or set TMPDIR to another disk"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_full(error: OSError) -> bool:
    """Return whether a disk is full by this error; NumPy gives no number, but reports how much of an array it could
    write.
    """
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and " requested and " in str(error))


@dataclass(frozen=True)
class Owner:
    """The process that a run's folder is of. machine: its host, and which processes it sees there (containers);
    started_s: since the host started, whatever its clock was set to meanwhile.
    """

    machine: str
    pid: int
    started_s: float

    @staticmethod
    def from_process(process: psutil.Process) -> Owner:
        """A process of this machine."""
        return Owner(_machine(), process.pid, _started_s(process))

    def is_gone(self) -> bool:
        """Whether the process has ended; False where that cannot be known."""
        if self.machine != _machine():
            return False
        try:
            return abs(_started_s(psutil.Process(self.pid)) - self.started_s) > SAME_S
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


def _started_s(process: psutil.Process) -> float:
    boot_s = psutil.boot_time()  # first: psutil adds the one that it read last
    return process.create_time() - boot_s


def _machine() -> str:
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def sweep(place: Path) -> None:
    """Remove the folders of runs that were killed: those that name an owner whose process has ended."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            owner = Owner(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
            if owner.is_gone():
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError, TypeError):
            continue  # not a run's, or of one that has just begun


__all__ = ["Owner", "data_folder", "default_cache_dir", "run_folder", "sweep"]
