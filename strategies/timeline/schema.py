"""Types of timeline.json: what a replayed timeline measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from fl_peel.figures import Beside, Column, Estimate, Figures
from fl_peel.json_codec import UNWRITTEN
from strategies.figures.schema import OverTime


@dataclass(frozen=True)
class LineResult:
    """Mean recall@20 and NDCG@20 of ``devices`` devices of one kind, or of all, over one period or several (a device
    counts once per period), with the interval of recall."""

    recall: Annotated[Estimate, Beside(float, "interval", null=True)]
    ndcg: float
    devices: int


@dataclass(frozen=True)
class ReadCosts:
    """Downloads of devices at the start of a period under one budget. sent_mean, held_mean: bytes sent to, and then
    stored by, devices that were there before, mean; joining_mean: bytes sent to joining devices, mean; violations:
    devices above the budget; moved: share of the devices that changed their user group; moved_sent_mean: bytes sent
    to these, mean.
    """

    sent_mean: float
    held_mean: float
    joining_mean: float
    violations: int
    moved: float
    moved_sent_mean: float


@dataclass(frozen=True)
class ClassResult:
    """Device class under its own budgets: recall@20, devices evaluated, mean bytes of the budgets and of what is
    stored."""

    recall: Annotated[Estimate | None, Beside(float | None, "margin", "margin", null=True)]
    devices: int
    budget_bytes_mean: float
    held_bytes_mean: float


@dataclass(frozen=True)
class PeriodResult:
    """One period. exponents: exponents of the filter, chosen by devices; begins, ends: seconds since 1970; devices:
    devices that were there before it; left: those of them that are inactive; joining: devices that join in it;
    items: items with a row in the tables; new_items: items new since the previous period; changed_rows: share of a
    table's rows that changed, new ones included; stage1_down, stage1_up, refinement_down, refinement_up: bytes per
    device, mean; lines: quality by serving method and kind of device, "all" included; reads: downloads by budget;
    classes: by device class; followed: devices while their own budgets changed, until the next period's tables
    arrived.
    """

    exponents: Annotated[dict[str, float], Column("exponent")]
    begins: int
    ends: int
    devices: int
    left: int
    joining: int
    items: int
    new_items: int
    user_groups: int
    changed_rows: float
    refinement_rounds: int
    stage1_down: float
    stage1_up: float
    refinement_down: float
    refinement_up: float
    virtual_seconds: float
    lines: Annotated[dict[str, Annotated[dict[str, LineResult], Column("cohort")]], Column("method")]
    reads: Annotated[dict[str, ReadCosts], Column("method")]
    classes: Annotated[dict[str, ClassResult], Column("device_class")]
    followed: OverTime | None


@dataclass(frozen=True)
class TimelineSummary:
    """Serving method over several periods: quality of all devices and by kind, and its recall relative to every other
    method."""

    lines: Annotated[dict[str, LineResult], Column("cohort")]
    over: Annotated[dict[str, Estimate], Column("base")]


@dataclass(frozen=True)
class TimelineResult:
    """Content of timeline.json. full_table_bytes: size of the fp32 full table in the last period; last: summaries over
    the last three periods; whole: summaries over all periods; replicates: (B,) of mean recall over the last three
    periods, by serving method, for a summary over several seeds."""

    scenario: dict[str, Any]
    seed: Annotated[int, Column("seed")]
    full_table_bytes: int
    periods: Annotated[tuple[PeriodResult, ...], Column("period")]
    last: Annotated[dict[str, TimelineSummary], Column("method")]
    whole: Annotated[dict[str, TimelineSummary], Column("method")]
    stages: Annotated[dict[str, float], Column("stage")]
    nodes: int
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    peak_rss_bytes: int = 0
    replicates: dict[str, NDArray[np.float64]] = field(
        default_factory=dict, repr=False, compare=False, metadata=UNWRITTEN
    )

    @property
    def figures(self) -> Figures:
        """Return every number of the timeline, as the rows of a tidy table."""
        return Figures.from_result(self)
