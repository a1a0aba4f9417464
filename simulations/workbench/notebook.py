"""Whether this is a notebook, and what it shows."""

from __future__ import annotations

import sys
from typing import Any


def notebook() -> Any:
    """The notebook's shell, None where this is no notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def show_figures() -> None:
    """Have a notebook show figures that are the value of a cell, whether or not pyplot was ever loaded."""
    shell = notebook()
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]


__all__ = ["notebook", "show_figures"]
