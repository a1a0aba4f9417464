"""A run's progress where there is a notebook, and on the terminal where there is none; whether there is one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from typing import Any

from rich.console import Console

from fl_peel.events import Callback, Event, OnEvent
from fl_peel.scenario.scenario import Scenario
from simulations.cli.console import shown

LEAST_S = 0.25
"""Seconds between two changes of what a notebook shows, but for changes that end a stage."""


def notebook() -> Any:
    """The notebook's shell, None where this is no notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def show_figures() -> None:
    """Have a notebook show figures that are the value of a cell, whether or not pyplot was ever loaded."""
    shell = notebook()
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})  # type: ignore[no-untyped-call]


@dataclass
class StageBars:
    """The latest event of each stage, as a notebook shows it."""

    latest: dict[str, Event] = field(default_factory=dict)
    end: str = ""

    def __repr__(self) -> str:
        lines = [f"{one.stage} {one.done}/{one.total} {one.text}".strip() for one in self.latest.values()]
        return "\n".join([*lines, *([self.end] if self.end else [])])

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><th>{escape(one.stage)}</th>"
            f'<td><progress value="{min(one.done, one.total)}" max="{one.total}"></progress></td>'
            f"<td>{one.done}/{one.total}</td><td>{escape(one.text)}</td></tr>"
            for one in self.latest.values()
        ]
        return f"<table>{''.join(rows)}</table>{escape(self.end)}"


class Progress(Callback):
    """Callback that shows a run's stages: as progress bars in a notebook, on stderr elsewhere. Use one per run at a
    time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = ExitStack()
        self._print: OnEvent | None = None
        self._handle: Any = None
        self._stages = StageBars()
        self._start_s = self._shown_s = 0.0

    def on_start(self, scenario: Scenario) -> None:
        """Start the display."""
        self._start_s = self._clock()
        if notebook() is None:
            self._print = self._open.enter_context(shown(Console(stderr=True, highlight=False)))
            return
        from IPython.display import display

        self._stages = StageBars()
        self._handle = display(self._stages, display_id=True)  # type: ignore[no-untyped-call]

    def on_event(self, event: Event) -> None:
        """Show the event, unless another one was shown just before."""
        if self._print is not None:
            self._print(event)
            return
        self._stages.latest[event.stage] = event
        now_s = self._clock()
        if event.done >= event.total or now_s - self._shown_s >= LEAST_S:
            self._shown_s = now_s
            self._handle.update(self._stages)

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Show the duration."""
        self._close(f"done in {self._clock() - self._start_s:.1f} s")

    def on_error(self, error: BaseException) -> None:
        """Leave the display as it is."""
        self._close(f"stopped after {self._clock() - self._start_s:.1f} s")

    def _close(self, end: str) -> None:
        self._open.close()
        self._print = None
        if self._handle is not None:
            self._stages.end = end
            self._handle.update(self._stages)
            self._handle = None
