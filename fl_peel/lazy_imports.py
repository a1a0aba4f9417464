"""Public names that are imported when they are first asked for, so that importing a package costs nothing."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fl_peel.errors import MissingExtraError


def imported_when_asked(package: str, file: str) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` (PEP 562). Its public names, ``__all__``, are those that its ``__init__``,
    ``file``, imports under ``TYPE_CHECKING``, which type checkers read, too: one list for all.
    """
    homes = {
        alias.name: str(node.module)
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def public_name(name: str) -> Any:
        if name == "__all__":
            return sorted(homes)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return public_name


# ---- Packages that only some users need: imported when they are asked for


def optional(module: str, extra: str, what: str) -> Any:
    """A module of a package that ``pip install 'fl-peel[extra]'`` brings. what: needs it, for the message.

    Raises:
        MissingExtraError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{what} needs {module} ({error}); pip install 'fl-peel[{extra}]'") from None
