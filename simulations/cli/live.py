"""`fl-peel run --live`: progress on the terminal, and on a page of loopback as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from fl_peel.events import Event, OnEvent
from simulations.cli.progress_lines import shown


@contextmanager
def shown_at(console: Console, *, port: int | None, title: str, quiet: bool = False) -> Iterator[OnEvent]:
    """As :func:`simulations.cli.progress_lines.shown`; with a port, events are told to a page there, too.

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


__all__ = ["shown_at"]
