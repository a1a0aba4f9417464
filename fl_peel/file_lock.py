"""Locks between processes, held by the operating system: a lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""Errors of a file system that has no locks: there, a process goes on without one."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is not there and stays. wait: for whoever else holds it.

    Raises:
        BlockingIOError: somebody else holds it, and nobody waits.
        OSError: the file cannot be opened.
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
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
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


__all__ = ["locked"]
