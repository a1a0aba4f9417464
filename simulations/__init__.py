"""Runs of scenarios: ``from simulations import run``."""

from simulations.runner import run

__all__ = ["run"]
