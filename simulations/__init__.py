"""Runs of scenarios: ``from simulations import run``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulations.runner import run

__all__ = ["run"]

# A simulation reports to nobody. Flower and Ray read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyway, without its warning


def __getattr__(name: str) -> Any:
    """Import torch, Flower and Ray when something is run, so that ``fl-peel --help`` answers at once."""
    if name == "run":
        from simulations.runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
