"""Names of selectors, features and settings of the controller. Imports no torch: a scenario's keys are read with it."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from fl_peel.plugins import Registry

CONTROLLER = "controller"
"""The selector that is no fixed order: a network, learned during refinement."""

SELECTORS: Registry[Any] = Registry(
    "selector",
    "fl_peel.selectors",
    MappingProxyType(
        {
            "popularity": "fl_peel.weighting.selectors:popularity",
            "exposure": "fl_peel.weighting.selectors:exposure",
            "global-popularity": "fl_peel.weighting.selectors:global_popularity",
            "energy": "fl_peel.weighting.selectors:energy",
            "random": "fl_peel.weighting.selectors:random_blocks",
        }
    ),
    reserved=(CONTROLLER,),
)
"""Functions from statistics to weights: the values of ``selector`` and of ``evaluation.selectors``."""

FeatureName = Literal["exposure", "popularity", "global-popularity", "loss", "energy"]


@dataclass(frozen=True)
class ControllerConfig:
    """How the controller learns: what :class:`fl_peel.scenario.method.ControllerPart` says under each key."""

    features: tuple[FeatureName, ...]
    hidden: tuple[int, ...]
    steps: int
    learning_rate: float
    weight_decay: float
    signal_momentum: float
