"""What each device class gets, against systems whose tables are not elastic.

- *Fixed tiers*: a few table sizes; every class is given the one that serves it best on validation. A device under
  whose budget of the moment its class's table does not fit serves nothing.
- *Excluding small devices*: one table size; devices whose budget does not hold it neither train nor are served. Also
  with their training excluded but everybody served elastically, which shows what their data was worth.

Rivals use the same groups, blocks, weights and precision, so that elasticity alone makes the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.config import Scenario
from fl_peel.ranking import MetricSums
from fl_peel.spread import Histogram
from strategies.peel import PeelStrategy

WORST = (0.1, 0.25, 0.5)
Refine = Callable[[Scenario], PeelStrategy]
"""Refine once more from the same start, under another scenario."""


def class_sums(reply: wire.EvaluateReply, place: int = 0) -> MetricSums:
    """Sums per device class, (C,) each, of one of the budgets asked for."""
    return MetricSums(*(values[place].sum(axis=1) for values in (reply.recall, reply.ndcg, reply.devices)))


def overall_recall(reply: wire.EvaluateReply, place: int = 0) -> float:
    """Mean recall over all devices with test items."""
    return float(_total(class_sums(reply, place)).mean()[0])


def _total(sums: MetricSums) -> MetricSums:
    return MetricSums(sums.recall.sum(), sums.ndcg.sum(), sums.devices.sum())


class Fairness:
    """Collects one way of serving after the other, each as recall per class and a histogram over devices."""

    def __init__(self, strategy: PeelStrategy, own: wire.EvaluateReply) -> None:
        """own: the evaluation of everybody under their own budgets."""
        self.strategy = strategy
        self.metric = f"recall@{strategy.scenario.evaluation.top_n}"
        names = strategy.members.class_names
        counts, budgets = own.owned[0, :, 0], own.owned[0, :, 1]
        self.by_class: list[dict[str, Any]] = [
            {
                "class": name,
                "devices": int(counts[i]),
                "budget_bytes": float(budgets[i] / counts[i]) if counts[i] else None,
            }
            for i, name in enumerate(names)
        ]
        self.spread: list[dict[str, Any]] = []
        self._evaluated = class_sums(own).devices
        everywhere = np.zeros(len(names), np.int64)
        self.add("peel", own, everywhere)

    def add(self, name: str, reply: wire.EvaluateReply, chosen: NDArray[np.int64] | None = None) -> None:
        """A way of serving; chosen: (C,) which of the budgets asked for each class gets (None: the first)."""
        classes = np.arange(len(self.by_class))
        if chosen is None:
            chosen = np.zeros(len(classes), np.int64)
        per_class = MetricSums(
            *(values[chosen, classes].sum(axis=1) for values in (reply.recall, reply.ndcg, reply.devices))
        )
        recall, _ = per_class.mean()
        for i, row in enumerate(self.by_class):
            row[name] = float(recall[i]) if self._evaluated[i] else None
        histogram = Histogram(
            reply.histogram[chosen, classes].sum(axis=0), reply.histogram_sums[chosen, classes].sum(axis=0)
        )
        self.spread.append(
            {
                "method": name,
                self.metric: float(_total(per_class).mean()[0]),
                **{f"worst_{share:.0%}".replace("%", "_percent"): histogram.worst_mean(share) for share in WORST},
                "zero_share": histogram.zero_share(),
            }
        )

    def add_tiers(self) -> dict[str, Any]:
        """Fixed tiers, chosen per class on validation."""
        scenario, layout = self.strategy.scenario, self.strategy.layout
        shares = sorted(scenario.fairness.tiers)
        budgets = [math.floor(share * layout.full_table_bytes + 1e-6) for share in shares]
        on_validation, on_test = (
            self.strategy.evaluate(
                budgets,
                precision=scenario.blocks.precision,
                selector=scenario.selector,
                split=split,
                rooms=[1.0] * len(budgets),
            )
            for split in ("validation", "test")
        )
        recall = np.stack([class_sums(on_validation, i).recall for i in range(len(budgets))])  # (tiers, C)
        chosen = recall.argmax(axis=0)  # the smallest of the best
        self.add("fixed_tiers", on_test, chosen)
        return {
            "tiers": shares,
            "chosen": {row["class"]: shares[place] for row, place in zip(self.by_class, chosen.tolist(), strict=True)},
        }

    def add_excluding(self, refine: Refine) -> dict[str, Any]:
        """Without the devices whose budget is below a share of the full table."""
        scenario, layout = self.strategy.scenario, self.strategy.layout
        share = scenario.fairness.exclude_below
        assert share is not None
        refinement = scenario.refinement.model_copy(update={"min_budget_share": share})
        without = refine(scenario.model_copy(update={"refinement": refinement}))
        one_size, elastic = math.floor(share * layout.full_table_bytes + 1e-6), wire.OWN_BUDGET
        reply = without.evaluate(
            [one_size, elastic],
            precision=scenario.blocks.precision,
            selector=scenario.selector,
            rooms=[1.0, -1.0],
        )
        self.add("excluding_small", reply)
        self.add("trained_without_small", reply, np.ones(len(self.by_class), np.int64))
        excluded = np.sum([record.clock[:, wire.ClockColumn.EXCLUDED] for record in without.rounds], axis=0)
        return {"below": share, "device_rounds": int(np.sum(excluded))}

    def report(self, yardsticks: tuple[str, ...]) -> dict[str, Any]:
        """``report.json["fairness"]``; yardsticks: full tables, as added, that classes are compared with."""
        ratios: list[dict[str, Any]] = []
        for name in yardsticks:
            for row in self.by_class:
                row[f"ratio_{name}"] = row["peel"] / row[name] if row[name] else None
            known = [row for row in self.by_class if row[f"ratio_{name}"] is not None]
            if known:
                worst = min(known, key=lambda row: row[f"ratio_{name}"])
                ratios.append({"against": name, "class": worst["class"], "ratio": worst[f"ratio_{name}"]})
        return {
            "metric": self.metric,
            "worst_class": ratios,
            "gap": self._gap(yardsticks),
            "by_class": self.by_class,
            "over_devices": self.spread,
        }

    def _gap(self, yardsticks: tuple[str, ...]) -> list[dict[str, Any]]:
        """Recall of the class with the largest budgets less that of the one with the smallest, for each way."""
        known = [row for row in self.by_class if row["peel"] is not None]
        if len(known) < 2:
            return []
        small, large = (pick(known, key=lambda row: row["budget_bytes"]) for pick in (min, max))
        return [
            {
                "method": spread["method"],
                "smallest": small["class"],
                "largest": large["class"],
                "gap": large[spread["method"]] - small[spread["method"]],
            }
            for spread in self.spread
        ]


def measure_fairness(
    strategy: PeelStrategy,
    own: wire.EvaluateReply,
    full: dict[str, wire.EvaluateReply],
    refine: Refine,
) -> dict[str, Any]:
    """``report.json["fairness"]``. own: everybody under their own budgets; full: full tables by name."""
    fairness = Fairness(strategy, own)
    for name, reply in full.items():
        fairness.add(name, reply)
    part = strategy.scenario.fairness
    more: dict[str, Any] = {}
    if part.tiers:
        more["fixed_tiers"] = fairness.add_tiers()
    if part.exclude_below is not None:
        more["excluding_small"] = fairness.add_excluding(refine)
    return fairness.report(tuple(full)) | more


__all__ = ["Fairness", "Refine", "class_sums", "measure_fairness", "overall_recall"]
