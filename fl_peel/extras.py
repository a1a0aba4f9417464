"""Packages that only some users need: imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fl_peel.errors import MissingExtraError


def optional(module: str, extra: str, what: str) -> Any:
    """A module of a package that ``pip install 'fl-peel[extra]'`` brings. what: needs it, for the message.

    Raises:
        MissingExtraError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{what} needs {module} ({error}); pip install 'fl-peel[{extra}]'") from None


__all__ = ["optional"]
