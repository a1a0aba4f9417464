"""What a run or a study is given besides its scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Required, TypedDict

from fl_peel.events import Callback, OnEvent, silent

if TYPE_CHECKING:
    from flwr.serverapp import Grid


class _Arguments(TypedDict, total=False):
    """What runs and studies have in common."""

    data_dir: str | Path | None
    """Folder that holds data sets by name; None: ``$FL_PEEL_DATA``, then the cache."""
    cache_dir: str | Path | None
    """Folder in which pretrained tables are kept by content; None keeps none."""
    on_event: OnEvent
    """Function that gets the event of every step."""
    command: str | None
    """Command that makes the same files again, for the report."""
    fresh: bool
    """Whether what an earlier try has kept is left unread, and all is done anew."""


class StudyArguments(_Arguments):
    """Keyword arguments of every study; all but its folder may be left out."""

    out: Required[str | Path]
    """Folder of the results and of the checkpoints."""


class RunArguments(_Arguments, total=False):
    """Keyword arguments of every run; each may be left out."""

    out: str | Path | None
    """Folder of the results, in which a run that is stopped leaves what it takes to resume."""
    callbacks: Sequence[Callback] | None
    """Objects that receive the run's events, and never stop it."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Arguments of a run or a study. grid: nodes that somebody else started; None: those of the engine."""

    out: str | Path | None = None
    data_dir: str | Path | None = None
    cache_dir: str | Path | None = None
    on_event: OnEvent = silent
    callbacks: Sequence[Callback] | None = None
    command: str | None = None
    fresh: bool = False
    grid: Grid | None = None
