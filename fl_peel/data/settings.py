"""Names of file formats, split orders and kinds of collection. Imports nothing: a scenario's keys are read with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DataFormat = Literal["auto", "movielens-tab", "movielens-dat", "lightgcn", "recbole", "csv", "tsv", "parquet"]


HEADED: tuple[DataFormat, ...] = ("recbole", "csv", "tsv", "parquet")
"""Formats whose files name their columns."""


ZONE_UTC = "UTC"


@dataclass(frozen=True)
class Dialect:
    """How the files of a user are written. columns: their names by what they mean (user, item, rating, timestamp),
    where they are none of the usual ones; time_zone: of times that have no offset, None where it is not known.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    time_zone: str | None = None


SplitOrder = Literal["auto", "time", "random"]


CollectedMode = Literal["users", "oldest"]


Phase = Literal["choose", "earlier", "recent", "learn", "join"]
"""Phase of a period of a timeline, see :meth:`fl_peel.data.timeline.Timeline.splits`."""
