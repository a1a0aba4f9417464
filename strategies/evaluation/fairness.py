"""Quality of each device class, against systems whose tables are not elastic.

- *Fixed tiers*: a few table sizes; every class is given the one that serves it best on validation. A device under
  whose budget of the moment its class's table does not fit serves nothing.
- *Excluding small devices*: one table size; devices whose budget does not hold it neither train nor are served. Also
  with their training excluded but everybody served elastically, which shows what their data was worth.

Rivals use the same groups, blocks, weights and precision, so that elasticity alone makes the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks.layout import budget_bytes
from fl_peel.figures import Estimate
from strategies.evaluation.evaluator import BudgetRequest, Evaluator
from strategies.figures.per_device import cell_recalls
from strategies.figures.schema import (
    EXCLUDING_SMALL,
    FIXED_TIERS,
    PEEL,
    TRAINED_WITHOUT,
    ClassFairness,
    ClassGap,
    ExcludingSmall,
    FairnessResult,
    FixedTiersResult,
    Spread,
    WorstClass,
)
from strategies.run.refinement import Refine

TIERS, TIERS_ON_VALIDATION = "tiers", "tiers on validation"
"""Names of what is asked about fixed tiers."""


@dataclass(frozen=True)
class ServingRecall:
    """One way of serving: recall of every class (None: nobody was evaluated), and its spread over devices."""

    method: str
    recall: tuple[Estimate | None, ...]
    spread: Spread


class FairnessTally:
    """Collects one way of serving after the other, each as recall per class and a histogram over devices."""

    def __init__(self, evaluator: Evaluator, own: wire.EvaluateReply) -> None:
        """Start from ``own``, the evaluation of all devices under their own budgets."""
        self.evaluator = evaluator
        self.names = evaluator.members.class_names
        self.served: list[ServingRecall] = []
        self._own = own.owned[0]
        self.add(PEEL, own)

    def add(self, name: str, reply: wire.EvaluateReply, chosen: NDArray[np.int64] | None = None) -> None:
        """A way of serving; chosen: (C,) which of the budgets asked for each class gets (None: the first)."""
        classes = np.arange(len(self.names))
        if chosen is None:
            chosen = np.zeros(len(classes), np.int64)
        per_class = reply.sums[chosen, classes].total(axis=1)
        histogram = reply.spread[chosen, classes].total(axis=0)
        spread = Spread(
            method=name,
            recall=float(per_class.total().mean()[0]),
            worst_10_percent=histogram.worst_mean(0.1),
            worst_25_percent=histogram.worst_mean(0.25),
            worst_50_percent=histogram.worst_mean(0.5),
            zero_share=histogram.zero_share(),
        )
        self.served.append(ServingRecall(name, tuple(cell_recalls(per_class)), spread))

    def add_tiers(self, on_validation: wire.EvaluateReply, on_test: wire.EvaluateReply) -> FixedTiersResult:
        """Fixed tiers, chosen per class on validation; of :func:`tier_rows`."""
        shares = sorted(self.evaluator.scenario.fairness.tiers)
        recall = np.stack([on_validation.by_class(i).recall for i in range(len(shares))])  # (tiers, C)
        chosen = recall.argmax(axis=0)  # the smallest of the best
        self.add(FIXED_TIERS, on_test, chosen)
        return FixedTiersResult(
            tuple(shares), {name: shares[place] for name, place in zip(self.names, chosen.tolist(), strict=True)}
        )

    def add_excluding(self, refine: Refine, share: float) -> ExcludingSmall:
        """Add the figures without the devices whose budget is below a share of the full table."""
        scenario, budget = self.evaluator.scenario, budget_bytes(self.evaluator.layout, share)
        refinement = scenario.refinement.model_copy(update={"min_budget_share": share})
        without = refine(scenario.model_copy(update={"refinement": refinement}))
        reply = Evaluator.from_strategy(without).evaluate([budget, wire.OWN_BUDGET], rooms=[1.0, -1.0])
        self.add(EXCLUDING_SMALL, reply)
        self.add(TRAINED_WITHOUT, reply, np.ones(len(self.names), np.int64))
        excluded = sum(int(record.clock.excluded.sum()) for record in without.rounds)
        return ExcludingSmall(share, excluded)

    def by_class(self, yardsticks: tuple[str, ...]) -> tuple[ClassFairness, ...]:
        """Return every class under every way of serving; yardsticks: full tables, as added."""
        rows = []
        for i, name in enumerate(self.names):
            recall = {served.method: served.recall[i] for served in self.served}
            devices = int(self._own.devices[i])
            rows.append(
                ClassFairness(
                    device_class=name,
                    devices=devices,
                    budget_bytes=float(self._own.budget_bytes[i] / devices) if devices else None,
                    recall=recall,
                    ratio={full: _ratio(recall[PEEL], recall[full]) for full in yardsticks},
                )
            )
        return tuple(rows)


def tier_rows(evaluator: Evaluator) -> dict[str, BudgetRequest]:
    """Return the requests about fixed tiers, by name; none where there are no tiers."""
    shares = sorted(evaluator.scenario.fairness.tiers)
    budgets = tuple(budget_bytes(evaluator.layout, share) for share in shares)
    rooms = (1.0,) * len(budgets)
    questions = {
        TIERS_ON_VALIDATION: BudgetRequest(budgets, rooms=rooms, on_validation=True),
        TIERS: BudgetRequest(budgets, rooms=rooms),
    }
    return questions if budgets else {}


def _ratio(recall: Estimate | None, to: Estimate | None) -> float | None:
    return recall.value / to.value if recall is not None and to is not None and to.value else None


def worst_classes(rows: Sequence[ClassFairness], yardsticks: tuple[str, ...]) -> tuple[WorstClass, ...]:
    """The class that elastic tables serve worst, against each of the full tables."""
    worst = []
    for name in yardsticks:
        known = [(row.device_class, ratio) for row in rows if (ratio := row.ratio[name]) is not None]
        if known:
            device_class, ratio = min(known, key=lambda one: one[1])
            worst.append(WorstClass(name, device_class, ratio))
    return tuple(worst)


def gaps(rows: Sequence[ClassFairness], methods: Sequence[str]) -> tuple[ClassGap, ...]:
    """Recall of the class with the largest budgets less that of the one with the smallest, for each way of serving."""
    known = [(row.budget_bytes, row) for row in rows if row.recall[PEEL] is not None and row.budget_bytes is not None]
    if len(known) < 2:
        return ()
    small, large = (pick(known, key=lambda one: one[0])[1] for pick in (min, max))
    class_gaps = []
    for method in methods:
        high, low = large.recall[method], small.recall[method]
        if high is not None and low is not None:
            class_gaps.append(ClassGap(method, small.device_class, large.device_class, high.value - low.value))
    return tuple(class_gaps)


def measure_fairness(
    evaluator: Evaluator,
    own: wire.EvaluateReply,
    extra: Mapping[str, wire.EvaluateReply],
    full: dict[str, wire.EvaluateReply],
    refine: Refine,
) -> FairnessResult:
    """``report.json["fairness"]``. own: own budgets; extra: replies to :func:`tier_rows`; full: tables by name."""
    fairness = FairnessTally(evaluator, own)
    for name, reply in full.items():
        fairness.add(name, reply)
    part = evaluator.scenario.fairness
    tiers = fairness.add_tiers(extra[TIERS_ON_VALIDATION], extra[TIERS]) if part.tiers else None
    excluding = None if part.exclude_below is None else fairness.add_excluding(refine, part.exclude_below)
    rows = fairness.by_class(tuple(full))
    return FairnessResult(
        metric=f"recall@{evaluator.scenario.evaluation.top_n}",
        worst_class=worst_classes(rows, tuple(full)),
        gap=gaps(rows, [served.method for served in fairness.served]),
        by_class=rows,
        over_devices=tuple(served.spread for served in fairness.served),
        fixed_tiers=tiers,
        excluding_small=excluding,
    )
