"""Events of a run, and callbacks that are told of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fl_peel.scenario.scenario import Scenario


@dataclass(frozen=True)
class Event:
    """Progress event: step ``done`` of ``total`` of a stage has ended; ``text`` is for display.

    figures: measurements of the step, by names such as ``refinement/loss`` (docs/trackers.md lists them).
    """

    stage: str
    done: int
    total: int
    text: str = ""
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def step(self) -> int:
        """Position of the figures on an axis: the epoch, the round, the period."""
        return self.done


OnEvent = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""


def stages_under(prefix: str, on_event: OnEvent) -> OnEvent:
    """The same events, with ``prefix: `` before each stage's name."""
    return lambda event: on_event(replace(event, stage=f"{prefix}: {event.stage}"))


def figures_under(prefix: str, on_event: OnEvent) -> OnEvent:
    """The same events, with ``prefix/`` before each figure's name: of a stage that runs more than once."""
    return lambda event: on_event(replace(event, figures={f"{prefix}/{k}": v for k, v in event.figures.items()}))


def known(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Figures without those that were not measured."""
    return {name: float(value) for name, value in figures.items() if value is not None}


def plain_name(text: str) -> str:
    """Part of a figure's name: letters, digits, points, dashes and underscores, which every tracker accepts."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text.replace("%", "pct")).strip("_")


class Callback(Protocol):
    """Base class of callbacks of a run; a subclass overrides the events that it needs.

    All events but the end come from the thread of the run's server. A callback that raises an exception is reported
    with a warning and receives no further events; the run continues.
    """

    def on_start(self, scenario: Scenario) -> None:
        """Called when a run of this scenario has started, after its checks."""

    def on_event(self, event: Event) -> None:
        """Called when a step has ended; its figures are numbers by plain names."""

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Called when the run has ended. result: the content of report.json."""

    def on_error(self, error: BaseException) -> None:
        """Called when a started run has failed or was stopped."""
