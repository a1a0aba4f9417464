"""What a run over a timeline measured: the content of timeline.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from strategies.figures.schema import Interval, OverTime, Ratio


@dataclass(frozen=True)
class LineResult:
    """Of devices of one kind, or all, in one period or several: mean recall@20 and NDCG@20 of ``devices`` of them (in
    several periods each counts once a period), and recall's interval.
    """

    recall: float
    ndcg: float
    devices: int
    interval: Interval | None


@dataclass(frozen=True)
class Read:
    """What devices read at the beginning of a period under a budget, on average over those that were there before
    (mean) and those that join (joining): bytes sent; bytes that they then hold; devices over budget; share of the
    former that changed their user group, and the mean of what these were sent.
    """

    sent_mean: float
    held_mean: float
    joining_mean: float
    violations: int
    moved: float
    moved_sent_mean: float


@dataclass(frozen=True)
class ClassResult:
    """Of a device class under its own budgets: recall@20 and half the width of its 95 % interval, devices asked, bytes
    of its budgets and of what is held.
    """

    recall: float | None
    margin: float | None
    devices: int
    budget_bytes_mean: float
    held_bytes_mean: float


@dataclass(frozen=True)
class PeriodResult:
    """One period. exponents: of the filter, as devices chose it; begins, ends: seconds since 1970; devices: there
    before it, left: of these, joining: in it; items: that tables have a row of, new_items: since the period before;
    changed_rows: of a table, new ones included; stage1_down and so on: bytes of a device that was there, on average;
    lines: by way of serving and kind of device, all included; reads: by budget; classes: by device class; followed:
    devices while their own budgets moved, from when they were asked until the next period's tables came.
    """

    exponents: dict[str, float]
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
    lines: dict[str, dict[str, LineResult]]
    reads: dict[str, Read]
    classes: dict[str, ClassResult]
    followed: OverTime | None


@dataclass(frozen=True)
class Summary:
    """A way of serving over some periods: of all devices and by kind, and its recall over that of every other way."""

    lines: dict[str, LineResult]
    over: dict[str, Ratio]


@dataclass(frozen=True)
class TimelineResult:
    """full_table_bytes: of the last period, fp32;
    last: over the last three periods; whole: over all.
    """

    scenario: dict[str, Any]
    seed: int
    full_table_bytes: int
    periods: tuple[PeriodResult, ...]
    last: dict[str, Summary]
    whole: dict[str, Summary]
    stages: dict[str, float]
    nodes: int
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    peak_rss_bytes: int = 0


__all__ = ["ClassResult", "LineResult", "PeriodResult", "Read", "Summary", "TimelineResult"]
