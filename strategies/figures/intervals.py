"""Figures of all devices with their intervals, and ratios of two of them, paired device by device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.ranking.bootstrap import interval, over
from strategies.figures.schema import Gain, Interval, Ratio, TableQuality

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

    @property
    def recall_interval(self) -> Interval | None:
        """Return the interval of the mean recall."""
        return _interval(self.recalls)

    @property
    def ndcg_interval(self) -> Interval | None:
        """Return the interval of the mean NDCG."""
        return _interval(self.ndcgs)

    def over(self, base: MeasuredQuality | None) -> Ratio | None:
        """Recall over that of another table."""
        if base is None or base.recall <= 0:
            return None
        ends = interval(over(self.recalls, base.recalls))
        low, high = ends if ends is not None else (None, None)
        return Ratio(self.recall / base.recall, low, high)

    def quality(self, base: MeasuredQuality | None) -> TableQuality:
        """Return the quality as the report has it for a full table. base: quality that ratios are relative to."""
        return TableQuality(
            recall=self.recall,
            ndcg=self.ndcg,
            recall_interval=self.recall_interval,
            ndcg_interval=self.ndcg_interval,
            to_global=self.over(base),
        )

    def gain(self, first: MeasuredQuality) -> Gain | None:
        """Recall less that of a first table; None without replicates."""
        ends = interval(self.recalls - first.recalls)
        return None if ends is None else Gain(self.recall - first.recall, *ends, devices=self.devices)


def _interval(replicates: Doubles) -> Interval | None:
    ends = interval(replicates)
    return None if ends is None else Interval(*ends)


__all__ = ["MeasuredQuality"]
