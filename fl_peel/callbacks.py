"""Whoever follows a run: a tracker, a progress display, a program of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fl_peel.events import Event
from fl_peel.scenario.scenario import Scenario


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
