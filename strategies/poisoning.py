"""What malicious devices do to a run: recall and target hit rate with more and more of them, with and without defence.

Every figure is of the devices that are malicious under none of the shares compared, so that rows differ by what was
done to the tables alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fl_peel.config import Poisoning, Robust, Scenario
from fl_peel.ranking import MetricSums
from strategies.fairness import Refine
from strategies.peel import PeelStrategy

USUAL_SHARE = 0.01
"""Budget, of the full table, at which recall and target hits are measured where the scenario evaluates it."""


def budget_share(scenario: Scenario) -> float:
    """The usual budget, or the scenario's smallest."""
    shares = scenario.evaluation.budgets
    return USUAL_SHARE if USUAL_SHARE in shares or not shares else min(shares)


def measure_poisoning(strategy: PeelStrategy, refine: Refine) -> dict[str, Any]:
    """``poisoning`` of report.json; empty where the scenario knows no malicious devices.

    rows: share of malicious devices, robust (the rule, or "none"), recall@20 and target_hit_rate at ``budget_share`` of
    the table, recall_ratio to the clean run without defence.
    """
    scenario = strategy.scenario
    part, robust = scenario.poisoning, scenario.refinement.aggregation.robust
    if part.largest_share == 0:
        return {}
    rows: list[dict[str, Any]] = []
    for share, kind, defence in _cases(scenario):
        same = share == part.share and kind == part.kind and defence == robust
        ran = strategy if same else refine(_changed(scenario, share, kind, defence))
        rows.append({"share": share if kind != "idle" else 0.0, "robust": name_of(defence), **_measured(ran)})
    clean = next(row for row in rows if row["share"] == 0)
    for row in rows:
        row["recall_ratio"] = row["recall@20"] / clean["recall@20"] if clean["recall@20"] else 0.0
    targets = [int(item) for item in part.target_items]
    return {
        "kind": part.kind,
        "factor": part.factor,
        "target_items": targets,
        "num_targets": len(targets) or part.num_targets,
        "budget_share": budget_share(scenario),
        "rows": rows,
    }


def name_of(robust: Robust) -> str:
    """A defence in words."""
    words = [] if robust.norm_bound is None else [f"norm bound {robust.norm_bound:g}"]
    if robust.in_buckets:
        words.append(f"{robust.rule} of {robust.buckets} sub-cohorts")
    return ", ".join(words) or "none"


def _cases(scenario: Scenario) -> Iterable[tuple[float, Any, Robust]]:
    """Share, kind and defence of every row: clean ones first. Nobody is malicious who is idle."""
    part, robust = scenario.poisoning, scenario.refinement.aggregation.robust
    defences = [Robust()] if robust == Robust() else [Robust(), robust]
    shares = sorted({*part.compare, *([part.share] if part.share > 0 else [])})
    for defence in defences:
        yield shares[-1], "idle", defence
    if part.kind == "idle":
        return
    for share in shares:
        for defence in defences:
            yield share, part.kind, defence


def _changed(scenario: Scenario, share: float, kind: Any, robust: Robust) -> Scenario:
    part: Poisoning = scenario.poisoning
    shares = tuple(sorted({*part.compare, part.largest_share}))  # so that the devices that count stay the same
    part = part.model_copy(update={"share": share, "kind": kind, "compare": shares})
    aggregation = scenario.refinement.aggregation.model_copy(update={"robust": robust})
    refinement = scenario.refinement.model_copy(update={"aggregation": aggregation})
    return scenario.model_copy(update={"poisoning": part, "refinement": refinement})


def _measured(strategy: PeelStrategy) -> dict[str, float]:
    scenario = strategy.scenario
    budget = int(budget_share(scenario) * strategy.layout.full_table_bytes + 1e-6)
    found = {}
    for name, split in (("recall@20", "test"), ("target_hit_rate", "targets")):
        reply = strategy.evaluate(
            [budget], precision=scenario.blocks.precision, selector=scenario.selector, split=split
        )
        sums = MetricSums(*(np.asarray(values.sum()) for values in (reply.recall, reply.ndcg, reply.devices)))
        found[name] = float(sums.mean()[0])
    return found


__all__ = ["budget_share", "measure_poisoning", "name_of"]
