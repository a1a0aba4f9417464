"""Trackers by name, as `fl-peel run --track NAME=PLACE` has them; cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

from fl_peel.callbacks import Callback
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.plugins import Registry

TRACKERS: Registry[Callable[[str], Callback]] = Registry(
    "tracker",
    "fl_peel.trackers",
    MappingProxyType(
        {"tensorboard": "simulations.trackers.tensorboard:TensorBoard", "mlflow": "simulations.trackers.mlflow:MLflow"}
    ),
)
"""Each is called with the place that its name is followed by."""


def trackers(asked: Iterable[str]) -> list[Callback]:
    """A callback for each ``NAME=PLACE``.

    Raises:
        ScenarioError: no such tracker, or no place.
        MissingExtraError: its package is not installed.
        FlPeelError: it cannot write there.
    """
    made_trackers = []
    for text in asked:
        name, _, place = text.partition("=")
        if not name.strip() or not place.strip():
            raise ScenarioError(f"--track {text}: expected NAME=PLACE, e.g. tensorboard=out/tensorboard")
        try:
            made = TRACKERS.get(name.strip())
        except FieldError as error:
            raise ScenarioError(f"--track {text}: {error}") from None
        made_trackers.append(made(place.strip()))
    return made_trackers


__all__ = ["TRACKERS", "trackers"]
