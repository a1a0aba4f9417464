"""A run's progress on the terminal: a bar per stage, or plain lines where stderr is not a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from fl_peel.events import Event, OnEvent, silent

STAGES = ("start", "data", "pretraining", "grouping", "joining", "refinement", "evaluation", "model", "heterogeneity")
"""In the order in which they run."""

MAX_LINES = {"pretraining": 5}
"""Lines that a stage is told in, at most; 20 for any other."""


@contextmanager
def shown(console: Console, *, quiet: bool = False) -> Iterator[OnEvent]:
    """Show the events that the given function is told, as bars on a terminal, as lines elsewhere."""
    if quiet:
        yield silent
        return
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logger = logging.getLogger("fl_peel")
    logger.addHandler(handler)
    try:
        if console.is_terminal:
            yield from _bars(console)
        else:
            yield ProgressLines(lambda line: console.print(Text(line), soft_wrap=True))
    finally:
        logger.removeHandler(handler)


class ProgressLines:
    """A line for each step of a stage with few steps, a few lines for a stage with many."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._start = clock()
        self._ended: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Tell a step, unless its stage has been told to the end."""
        last = event.done >= event.total
        every = max(1, -(-event.total // MAX_LINES.get(event.stage, 20)))
        if event.stage in self._ended or not (last or event.done % every == 0):
            return
        if last:
            self._ended.add(event.stage)
        steps = f" {event.done}/{event.total}" if event.total > 1 else ""
        text = f": {event.text}" if event.text else ""
        self._write(f"[{self._clock() - self._start:6.1f} s] {event.stage}{steps}{text}")


def _bars(console: Console) -> Iterator[OnEvent]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[steps]:>9}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def begin(stage: str) -> TaskID:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=None, steps="", text="")
            return tasks[stage]

        def tell(event: Event) -> None:
            steps = f"{event.done}/{event.total}" if event.total > 1 else ""
            task = begin(event.stage)
            progress.update(task, total=event.total, completed=event.done, steps=steps)
            if event.text:
                progress.update(task, text=event.text)
            if event.done >= event.total:
                progress.stop_task(task)
                following = STAGES[STAGES.index(event.stage) + 1 :] if event.stage in STAGES else ()
                if following:
                    begin(following[0])

        begin(STAGES[0])
        yield tell


# ---- `fl-peel run --live`: progress on the terminal, and on a page of loopback as well


@contextmanager
def shown_at(console: Console, *, port: int | None, title: str, quiet: bool = False) -> Iterator[OnEvent]:
    """As :func:`shown`; with a port, events are told to a page there, too.

    Raises:
        ReportError: the port is taken.
    """
    if port is None:
        with shown(console, quiet=quiet) as on_event:
            yield on_event
        return
    from simulations.live import live

    with live(port, title) as (address, events):
        console.print(Text(f"live: {address}"), soft_wrap=True)
        with shown(console, quiet=quiet) as on_event:

            def tell(event: Event) -> None:
                events(event)
                on_event(event)

            yield tell
