"""Versions of what figures depend on."""

from __future__ import annotations

import importlib.metadata
import platform

from fl_peel import __version__


def versions() -> dict[str, str]:
    """Of this package, of Python, and of what figures depend on."""
    others = ("flwr", "torch", "numpy", "scikit-learn", "ray", "numba")
    found = {name: importlib.metadata.version(name) for name in others}
    return {"fl-peel": __version__, "python": platform.python_version(), **found}


__all__ = ["versions"]
