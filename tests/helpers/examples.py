"""How many examples a property is tried on: all of them in ``make test-all``, a fifth in ``make test``, fifteen times
as many of those about damaged files and bad inputs in ``make hostile``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import Phase, settings

ALL, FEW = 100, 20
"""Examples of a property that has no number of its own, in each of the two."""
FEWEST = 5


def register_profiles() -> None:
    """Register the profiles that ``--hypothesis-profile`` names, and choose the quick one."""
    settings.register_profile("quick", deadline=None, max_examples=FEW)  # the first call of a compiled loop compiles it
    settings.register_profile("thorough", deadline=None, max_examples=ALL)
    settings.register_profile("hostile", deadline=None, max_examples=15 * ALL)
    settings.register_profile(  # the same mutants survive each time, and nobody wants the smallest example
        "mutants", deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
    )
    settings.load_profile("quick")


def examples(count: int, **more: Any) -> settings:
    """Return the settings of a property that is tried on ``count`` examples, or on the profile's share of them."""
    return settings(max_examples=max(min(count, FEWEST), count * settings().max_examples // ALL), **more)


# --- Parameters of a test of which one is for every day and the others for ``make test-all``.


def but_one_slow(quick: str, names: Iterable[str]) -> list[Any]:
    """Return the names as parameters, all of them marked slow but for one."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
