"""Files: what lies at a path that a user names, and locks between processes.

A path is looked at before it is opened, since a pipe may wait and a device never end. Locks are held by the operating
system: a lock ends with its process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

FileKind = Literal["file", "folder", "other", "nothing"]


def file_kind(path: Path) -> FileKind:
    """A file of bytes; a folder; a pipe, socket or device; or nothing: there is none, or none can have such a name."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "nothing"
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""Errors of a file system that has no locks, or none of folders."""
OWNED = "owned"
"""Name of a file in a folder from when its process holds its lock."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, or of a file, which is made where it is not there and stays. wait: for whoever else
    holds it; where there are no locks, one who would wait goes on without one.

    Raises:
        BlockingIOError: somebody else holds it, and nobody waits.
        OSError: it cannot be opened, or there are no locks, and nobody would wait.
    """
    file = _acquire(path, wait)
    while file is None:
        file = _acquire(path, wait)
    try:
        yield
    finally:
        os.close(file)


def _acquire(path: Path, wait: bool) -> int | None:
    """Return the open, locked file; None where its former owner has just removed it, so that nobody else sees it."""
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if not wait or error.errno not in NO_LOCKS:
                raise
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


@contextmanager
def owned_folder(place: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder, gone when the block ends, or with :func:`remove_abandoned` where its process was killed.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        with locked(folder):
            (folder / OWNED).touch()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path, prefix: str, first: Callable[[Path], None] = lambda folder: None) -> None:
    """Remove folders of :func:`owned_folder` whose processes have ended. first: is called with each before."""
    for mark in place.glob(f"{prefix}*/{OWNED}"):
        with suppress(OSError), locked(mark.parent, wait=False):
            first(mark.parent)
            shutil.rmtree(mark.parent, ignore_errors=True)
