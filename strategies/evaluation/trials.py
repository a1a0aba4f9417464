"""Several refinements on the same nodes, each measured at every budget, precision and selector, on both splits.

For comparisons and ablations: nodes are started once, tables pretrained once where they may be, and what a run leaves
out of its report is measured too: validation figures, by which choices are made.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fl_peel import wire
from fl_peel.blocks.layout import budget_bytes
from fl_peel.blocks.ranked_blocks import smallest_budget_bytes
from fl_peel.errors import BudgetError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.json_codec import to_plain
from fl_peel.ranking.bootstrap import REPLICATES
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision
from strategies.evaluation.evaluator import BudgetRequest, Evaluator
from strategies.figures.per_device import qualities
from strategies.figures.schema import Quality
from strategies.rivals.base import Request, empty_row
from strategies.rivals.base import in_json as replicates_in_json
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.strategy import PeelStrategy
from strategies.run.prepare import prepare
from strategies.run.refinement import Refiner
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths, StageTimes
from strategies.run.stage1_outcome import Stage1Outcome

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Trial:
    """A scenario to refine under, and what to measure then. full_tables: also the full fp32 tables."""

    name: str
    scenario: Scenario
    shares: tuple[float, ...]
    precisions: tuple[Precision, ...]
    selectors: tuple[str, ...]
    full_tables: bool = False


def serve_trials(
    grid: Grid,
    trials: Sequence[Trial],
    paths: RunPaths,
    on_event: OnEvent = silent,
    on_done: Callable[[Trial, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Refine and measure one trial after the other; ``on_done`` gets each result as soon as it is there.

    Returns the results by the trials' names: full_table, rows (selector, and as of
    :func:`strategies.rivals.base.compete`), group_sizes, num_blocks, seconds by stage.
    """
    run = Run.connect(grid, trials[0].scenario, paths, on_event)
    results: dict[str, Any] = {}
    for number, trial in enumerate(trials, start=1):
        try:
            results[trial.name] = run_trial(replace(run, on_event=_progress(trial, on_event)), trial)
        except BudgetError as mistake:  # some device can hold no block of this layout: a finding, not a failure
            results[trial.name] = _nothing(trial, str(mistake))
        gc.collect()  # a strategy and what listens to it hold one another, and with them every user group's tables
        on_event(Event("trials", number, len(trials), trial.name))
        if on_done is not None:
            on_done(trial, results[trial.name])
    return results


def _nothing(trial: Trial, why: str) -> dict[str, Any]:
    """The result of a trial in which devices cannot take part."""
    requests = [Request(precision, share, 0) for precision in trial.precisions for share in trial.shares]
    rows = [
        {"selector": selector, **empty_row(request), "note": why}
        for selector in trial.selectors
        for request in requests
    ]
    return {
        "full_table": {},
        "rows": rows,
        "group_sizes": [],
        "num_blocks": 0,
        "devices_trained": [],
        "seconds": {},
        "note": why,
    }


def _progress(trial: Trial, on_event: OnEvent) -> OnEvent:
    """Rounds and evaluations of a trial as steps of one stage that bears its name."""
    rounds = trial.scenario.refinement.rounds
    total = rounds + len(trial.selectors) * len(trial.precisions)

    def on_step(event: Event) -> None:
        if event.stage in ("refinement", "evaluation"):
            done = event.done + (rounds if event.stage == "evaluation" else 0)
            on_event(Event(trial.name, done, total, f"{event.stage} {event.text}"))
        elif event.stage == "pretraining" and event.done == event.total:
            on_event(Event(f"{trial.name}: pretraining", event.done, event.total, event.text))

    return on_step


def run_trial(run: Run, trial: Trial) -> dict[str, Any]:
    """Refine under the trial's scenario and measure. run: on whose nodes."""
    # what is measured is the trial's to say; prepare checks only what the scenario would measure by itself
    evaluation = trial.scenario.evaluation.model_copy(
        update={"budgets": (1.0,), "selectors": trial.selectors, "bootstrap": REPLICATES}
    )
    scenario, stages = trial.scenario.model_copy(update={"evaluation": evaluation}), StageTimes()
    run = replace(run, scenario=scenario, stages=stages)
    prepared = prepare(run)
    refiner = Refiner(run, prepared)
    with stages("joining"):
        strategy = refiner.joined()
    evaluator, members, states = Evaluator.from_strategy(strategy), strategy.members, strategy.states
    full: dict[str, Any] = {"bytes": prepared.layout.full_table_bytes}
    with stages("evaluation"):
        if trial.full_tables:
            if prepared.global_tables is not None:
                full["global"] = in_replicates(evaluator.full_table(prepared.global_tables))
            full |= {f"start{suffix}": one for suffix, one in _full_tables(evaluator).items()}
    with stages("refinement"):
        keeping = refiner.refine(strategy)
    with stages("evaluation"):
        if trial.full_tables:
            full |= {f"refined{suffix}": one for suffix, one in _full_tables(evaluator).items()}
        rows = []
        total = len(trial.selectors) * len(trial.precisions)
        for selector in trial.selectors:
            for precision in trial.precisions:
                rows += _rows(evaluator, trial, selector, precision)
                done = len(rows) // max(len(trial.shares), 1)
                run.on_event(Event("evaluation", done, total, f"{precision}, {selector}"))
    return {
        "full_table": full,
        "rows": rows,
        "group_sizes": np.bincount(members.groups, minlength=len(states)).tolist(),
        "num_blocks": prepared.layout.num_blocks,
        "devices_trained": [record.devices for record in strategy.rounds],
        "moved": moved_bytes(prepared, strategy, keeping),
        "seconds": stages.seconds,
    }


def moved_bytes(
    prepared: Stage1Outcome, strategy: PeelStrategy, acceptance: AcceptanceTest | None
) -> dict[str, dict[str, float]]:
    """Bytes down and up of a device on average: in stage 1; in rounds, with what is compared after them."""
    devices = max(len(strategy.members.devices), 1)
    stage1 = [step.counts.classes.total() for step in prepared.steps]
    compared = 0 if acceptance is None else sum(one.download_bytes for one in acceptance.comparisons)
    return {
        "stage1": {
            "down": sum(int(step.download_bytes) for step in stage1) / devices,
            "up": sum(int(step.upload_bytes) for step in stage1) / devices,
        },
        "rounds": {
            "down": (sum(record.download_bytes for record in strategy.rounds) + compared) / devices,
            "up": sum(record.upload_bytes for record in strategy.rounds) / devices,
        },
    }


def _full_tables(evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Measure every device with the whole fp32 table of its user group, on test and on validation items."""
    both = evaluator.full_tables(with_validation=True).whole
    test, validation = both.only(slice(0, 1)), both.only(slice(1, 2))
    return {"": in_replicates(test), "_validation": in_json(qualities(validation)[0])}


def in_replicates(reply: wire.EvaluateReply) -> dict[str, Any]:
    """Means on the test of the one table that was asked for, and under ``replicates`` those of the bootstrap."""
    return {**in_json(qualities(reply)[0]), "replicates": replicates_in_json(reply.replicates)}


def in_json(quality: Quality) -> dict[str, float]:
    """Return qualities as studies keep them; studies measure at 20 alone."""
    plain: dict[str, float] = to_plain(quality, top_n=20)
    return plain


def _rows(evaluator: Evaluator, trial: Trial, selector: str, precision: Precision) -> list[dict[str, Any]]:
    layout = evaluator.layout
    requests = [Request(precision, share, budget_bytes(layout, share)) for share in trial.shares]
    least = smallest_budget_bytes(layout, precision)
    served = [request for request in requests if request.budget_bytes >= least]
    rows = {request: empty_row(request) for request in requests}
    if served:
        budgets = [request.budget_bytes for request in served]
        asked = [BudgetRequest(tuple(budgets), on_validation=split == "validation") for split in SPLITS]
        replies = dict(zip(SPLITS, evaluator.together(asked, precision=precision, selector=selector), strict=True))
        start = time.perf_counter()
        for state, weights in zip(evaluator.federation.states, evaluator.weights(selector), strict=True):
            state.packed(layout, precision, weights, max(budgets))
        seconds = time.perf_counter() - start
        for i, request in enumerate(served):
            rows[request] |= {
                "stored_bytes_max": max(int(reply.stored_max[i]) for reply in replies.values()),
                "seconds": seconds,
                "note": "",
                "trials": 1,
                **{split: in_json(qualities(reply)[i]) for split, reply in replies.items()},
                "replicates": replicates_in_json(replies["test"].replicates, i),
            }
    return [{"selector": selector, **rows[request]} for request in requests]
