"""Progress of a run, told to whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Step ``done`` of ``total`` of a stage has ended; ``text`` is for people."""

    stage: str
    done: int
    total: int
    text: str = ""


OnEvent = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""
