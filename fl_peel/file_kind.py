"""What lies at a path that a user names: asked before it is opened, since a pipe may wait and a device never end."""

from __future__ import annotations

import stat
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
