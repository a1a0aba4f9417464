"""Names of file formats, split orders and kinds of collection. Imports nothing: a scenario's keys are read with it."""

from __future__ import annotations

from typing import Literal

DataFormat = Literal["auto", "movielens-tab", "movielens-dat", "lightgcn", "recbole", "csv", "tsv", "parquet"]


SplitOrder = Literal["auto", "time", "random"]


CollectedMode = Literal["users", "oldest"]


Phase = Literal["choose", "earlier", "recent", "learn", "join"]
"""Of a period of a timeline, see :meth:`fl_peel.data.timeline.Timeline.splits`."""
