"""Progress of a run, told to whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


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


def of_seed(seed: int, on_event: OnEvent) -> OnEvent:
    """The same events, with the seed before each stage's name."""
    return lambda event: on_event(replace(event, stage=f"seed {seed}: {event.stage}"))
