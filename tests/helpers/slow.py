"""Parameters of a test of which one is for every day and the others for ``make test-all``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def but_one_slow(quick: str, names: Iterable[str]) -> list[Any]:
    """Return the names as parameters, all of them marked slow but for one."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
