"""Where compiled loops are kept, so that they are compiled once: beside their source, or where one may write.

numba keeps them beside the source or in the user's cache, and refuses to start where it can write to neither: a package
installed by root, run by a user without a home, as in many containers.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

import platformdirs

VARIABLE = "NUMBA_CACHE_DIR"


def choose_cache_folder(source_folder: Path) -> None:
    """Tell numba where to keep the compiled loops of ``source_folder``, unless the user did; before they are defined.

    Worker processes inherit the choice.
    """
    if os.environ.get(VARIABLE) or _is_writable(source_folder / "__pycache__"):
        return
    folder = Path(platformdirs.user_cache_dir("fl-peel")) / "compiled"
    if not (folder.is_absolute() and _is_writable(folder)):
        folder = _private_folder()
    os.environ[VARIABLE] = str(folder)
    if "numba" in sys.modules:  # it has read its environment already
        from numba.core import config

        config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _private_folder() -> Path:
    """A temporary folder that nobody else can put code into: the same one each time, if it is ours alone."""
    folder = Path(tempfile.gettempdir()) / f"fl-peel-compiled-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="fl-peel-compiled-"))
