"""Names of mechanisms. Imports no NumPy: the scenario's keys are read with it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from fl_peel.plugins import Registry

LARGEST_MULTIPLIER = 1e5
"""Noise beyond this leaves nothing: a target that asks for more cannot be met."""
NO_MECHANISM = "none"
"""The name that stands for no noise at all."""

MECHANISMS: Registry[Any] = Registry(
    "mechanism",
    "fl_peel.mechanisms",
    MappingProxyType(
        {
            "central-gaussian": "fl_peel.privacy.mechanisms:CentralGaussian",
            "local-gaussian": "fl_peel.privacy.mechanisms:LocalGaussian",
            "local-laplace": "fl_peel.privacy.mechanisms:LocalLaplace",
        }
    ),
    reserved=(NO_MECHANISM,),
)
"""Subclasses of :class:`fl_peel.privacy.mechanisms.Mechanism`: the values of ``privacy.mechanism``."""

__all__ = ["LARGEST_MULTIPLIER", "MECHANISMS", "NO_MECHANISM"]
