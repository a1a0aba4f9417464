"""Whoever follows a run: a tracker, a progress display, a program of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fl_peel.events import Event
from fl_peel.scenario.scenario import Scenario


class Callback(Protocol):
    """Told what becomes of a run; a subclass overrides what it wants to know.

    All but the end comes from the thread of the run's server. Whatever a callback raises costs a warning and the rest
    of what it would have been told: the run goes on.
    """

    def on_start(self, scenario: Scenario) -> None:
        """A run of this scenario has begun: it was not refused."""

    def on_event(self, event: Event) -> None:
        """A step has ended; its figures are numbers by plain names."""

    def on_end(self, result: Mapping[str, Any]) -> None:
        """The run is done. result: what report.json says."""

    def on_error(self, error: BaseException) -> None:
        """The run, which had begun, has failed or was stopped."""


__all__ = ["Callback"]
