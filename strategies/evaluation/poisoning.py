"""Effect of malicious devices on a run: recall and target hit rate with more and more of them, with and without
defence.

Every figure is of the devices that are malicious under none of the shares compared, so that rows differ by what was
done to the tables alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fl_peel.blocks.layout import budget_bytes
from fl_peel.scenario.method import Robust
from fl_peel.scenario.protection import Poisoning
from fl_peel.scenario.scenario import Scenario
from strategies.evaluation.evaluator import Evaluator, overall_recall
from strategies.figures.schema import PoisoningResult, PoisoningRow
from strategies.rounds.strategy import PeelStrategy
from strategies.run.refinement import Refine

USUAL_SHARE = 0.01
"""Budget, of the full table, at which recall and target hits are measured where the scenario evaluates it."""


def budget_share(scenario: Scenario) -> float:
    """The usual budget, or the scenario's smallest."""
    shares = scenario.evaluation.budgets
    return USUAL_SHARE if USUAL_SHARE in shares or not shares else min(shares)


def measure_poisoning(strategy: PeelStrategy, refine: Refine) -> PoisoningResult:
    """``report.json["poisoning"]``, with a row for every share of malicious devices under every defence compared.

    The scenario must know malicious devices.
    """
    scenario = strategy.scenario
    part, robust = scenario.poisoning, scenario.refinement.aggregation.robust
    assert part.largest_share > 0
    rows: list[PoisoningRow] = []
    for share, kind, defence in _cases(scenario):
        same = share == part.share and kind == part.kind and defence == robust
        ran = strategy if same else refine(_changed(scenario, share, kind, defence))
        recall, hits = (_measured(Evaluator.from_strategy(ran), split) for split in ("test", "targets"))
        clean = rows[0].recall if rows else recall  # the first row is the clean run without defence
        rows.append(
            PoisoningRow(
                share=share if kind != "idle" else 0.0,
                robust=name_of(defence),
                recall=recall,
                target_hit_rate=hits,
                recall_ratio=recall / clean if clean else 0.0,
            )
        )
    targets = tuple(int(item) for item in part.target_items)
    return PoisoningResult(
        kind=part.kind,
        factor=part.factor,
        target_items=targets,
        num_targets=len(targets) or part.num_targets,
        budget_share=budget_share(scenario),
        rows=tuple(rows),
    )


def name_of(robust: Robust) -> str:
    """A defence in words."""
    words = [] if robust.norm_bound is None else [f"norm bound {robust.norm_bound:g}"]
    if robust.in_buckets:
        words.append(f"{robust.rule} of {robust.buckets} sub-cohorts")
    return ", ".join(words) or "none"


def _cases(scenario: Scenario) -> Iterable[tuple[float, Any, Robust]]:
    """Return share, kind and defence of every row, clean rows first. Idle devices are never malicious."""
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


def _measured(evaluator: Evaluator, split: str) -> float:
    """Recall on a split at the usual budget."""
    budget = budget_bytes(evaluator.layout, budget_share(evaluator.scenario))
    return overall_recall(evaluator.evaluate([budget], split=split))
