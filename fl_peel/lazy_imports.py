"""Public names that are imported when they are first asked for, so that importing a package costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from fl_peel.errors import MissingExtraError


def imported_when_asked(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562). homes: the module that each public name lies in.

    Static tools read the same names from imports under ``TYPE_CHECKING``.
    """

    def public_name(name: str) -> Any:
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


__all__ = ["imported_when_asked", "optional"]
