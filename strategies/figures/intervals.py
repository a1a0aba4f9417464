"""Figures of all devices with their intervals, and ratios of two of them, paired device by device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.figures import Estimate
from fl_peel.ranking.bootstrap import interval, over
from fl_peel.ranking.top import MetricSums
from strategies.figures.schema import Gain, Quality

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class MeasuredQuality:
    """Mean recall and NDCG of the devices that have test items, served from one table, and of their replicates, (B,)
    each; devices: how many these are.
    """

    recall: float
    ndcg: float
    recalls: Doubles
    ndcgs: Doubles
    devices: int

    @staticmethod
    def from_reply(reply: wire.EvaluateReply, place: int = 0) -> MeasuredQuality:
        """Measure the quality under one of the budgets asked for, the one at ``place``."""
        sums, (recalls, ndcgs) = reply.by_budget()[place], reply.replicates.means()
        recall, ndcg = sums.mean()
        return MeasuredQuality(float(recall), float(ndcg), recalls[place], ndcgs[place], int(sums.devices))

    def over(self, base: MeasuredQuality | None) -> Estimate | None:
        """Recall over that of another table."""
        if base is None or base.recall <= 0:
            return None
        return self._estimate(self.recall / base.recall, over(self.recalls, base.recalls))

    def quality(self, base: MeasuredQuality | None = None) -> Quality:
        """Return the quality as the report has it. base: quality of the global table, which it is compared with."""
        recall, ndcg = self._estimate(self.recall, self.recalls), self._estimate(self.ndcg, self.ndcgs)
        return Quality(recall, ndcg, self.over(base))

    def gain(self, first: MeasuredQuality) -> Gain | None:
        """Recall less that of a first table; None without replicates."""
        gain = self._estimate(self.recall - first.recall, self.recalls - first.recalls)
        return None if gain.ends is None else Gain(gain, self.devices)

    def _estimate(self, value: float, replicates: Doubles) -> Estimate:
        return Estimate(value, *(interval(replicates, self.devices) or (None, None)))


def qualities(reply: wire.EvaluateReply) -> list[Quality]:
    """Means over devices, for each of the budgets asked for."""
    recall, ndcg = reply.by_budget().mean()
    return [Quality(Estimate(float(r)), Estimate(float(n))) for r, n in zip(recall, ndcg, strict=True)]


def cell_recalls(sums: MetricSums) -> list[Estimate | None]:
    """Mean recall of every cell, with half the width of its interval where two devices count or more; None for a cell
    without devices.
    """
    cells = zip(sums.mean()[0].tolist(), sums.margin().tolist(), sums.devices.tolist(), strict=True)
    return [estimate_within(recall, margin) if devices else None for recall, margin, devices in cells]


def estimate_within(value: float, margin: float) -> Estimate:
    """Return the estimate of a margin, which is NaN where it is not known."""
    return Estimate.from_margin(value, None if np.isnan(margin) else margin)
