"""List of our files in a folder of results: kept in a file of its own, so that nothing else is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fl_peel.errors import ReportError

LIST = ".fl-peel.json"
"""Names, relative to the folder, of all that runs, studies and benchmarks wrote into it."""


def listed(out: Path) -> frozenset[str]:
    """Return what earlier runs wrote into the folder; nothing, where there is no list, or one that makes no sense."""
    try:
        names = json.loads((out / LIST).read_text(encoding="utf-8"))["files"]
        return frozenset(name for name in names if isinstance(name, str) and _inside(name))
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _inside(name: str) -> bool:
    """Return whether a name is of a file within the folder: who changes a list has no other files removed."""
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def require_ours(out: Path, names: Sequence[str], place: str) -> None:
    """Refuse a folder in which somebody else's files are where results would be.

    names: of files, and of folders, of which every file counts.

    Raises:
        ReportError: naming the first.
    """
    ours = listed(out)
    for file in _files(out, names):
        if file.relative_to(out).as_posix() not in ours:
            raise ReportError(
                f"{file}: the folder holds files that fl-peel did not write; move this file, or give another {place}"
            )


def _files(out: Path, names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            yield from sorted(file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
        elif path.is_symlink() or path.exists():
            yield path
