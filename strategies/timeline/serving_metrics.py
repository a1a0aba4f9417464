"""Metrics of every way of serving, period by period: sums that add up over periods and kinds of devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import MetricSums
from strategies.figures.intervals import MeasuredQuality

Cohort = Literal["start", "since", "first"]
"""Devices that were there when the first period began; that joined in a period since; that join in this one."""
COHORTS: tuple[Cohort, ...] = get_args(Cohort)


@dataclass(frozen=True)
class MetricTotals:
    """Totals over some devices: sums of their metrics, (1,), and the same sums under the weights of a bootstrap, (1,
    B).
    """

    sums: MetricSums
    replicates: Replicates

    @staticmethod
    def from_reply(reply: wire.EvaluateReply, place: int = 0) -> MetricTotals:
        """Make the totals of a reply under one of the budgets asked for, the one at ``place``."""
        some = slice(place, place + 1)
        drawn = reply.replicates
        return MetricTotals(reply.by_budget()[some], Replicates(drawn.recall[some], drawn.ndcg[some], drawn.devices))

    def __add__(self, other: MetricTotals) -> MetricTotals:
        """Add the totals of other devices, or of the same devices in another period: each device and period counts
        once.
        """
        return MetricTotals(self.sums + other.sums, self.replicates + other.replicates)

    def measured(self) -> MeasuredQuality:
        """Means, and those of the replicates."""
        recall, ndcg = self.sums.mean()
        recalls, ndcgs = self.replicates.means()
        return MeasuredQuality(float(recall[0]), float(ndcg[0]), recalls[0], ndcgs[0], int(self.sums.devices[0]))


@dataclass
class ServingMetrics:
    """The metrics by period, way of serving and kind of device."""

    totals: dict[tuple[int, str, Cohort], MetricTotals] = field(default_factory=dict)

    def put(self, period: int, line: str, cohort: Cohort, totals: MetricTotals) -> None:
        """Add what these devices find in this period to what is there."""
        key = period, line, cohort
        self.totals[key] = self.totals[key] + totals if key in self.totals else totals

    def names(self) -> list[str]:
        """Ways of serving, in the order in which they came."""
        return list(dict.fromkeys(line for _, line, _ in self.totals))

    def replicates(self, periods: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Return bootstrap replicates (B,) of the mean recall over these periods, by way of serving."""
        quality = {line: self.over(periods, line) for line in self.names()}
        return {line: one.recalls for line, one in quality.items() if one is not None}

    def over(self, periods: Iterable[int], line: str, cohorts: Iterable[Cohort] = COHORTS) -> MeasuredQuality | None:
        """Return the quality over these periods and kinds of devices; None where no device was asked."""
        keys = [(period, line, cohort) for period in periods for cohort in cohorts]
        totals = [self.totals[key] for key in keys if key in self.totals]
        if not totals:
            return None
        whole = reduce(add, totals).measured()
        return whole if whole.devices else None
