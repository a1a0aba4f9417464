"""Quality of each device class, against systems whose tables are not elastic.

- *Fixed tiers*: a few table sizes; every class is given the one that serves it best on validation. A device under
  whose budget of the moment its class's table does not fit serves nothing.
- *Excluding small devices*: one table size; devices whose budget does not hold it neither train nor are served. Also
  with their training excluded but everybody served elastically, which shows what their data was worth.

Rivals use the same groups, blocks, weights and precision, so that elasticity alone makes the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import SUM_SCALE, MessageContext
from fl_peel.blocks.layout import budget_bytes
from fl_peel.exchange.counters import StepCounts
from fl_peel.figures import Estimate
from fl_peel.randomness import rng_for
from fl_peel.ranking.bootstrap import Replicates
from fl_peel.ranking.top import margin_of
from strategies.evaluation.evaluator import REACH, BudgetRequest, Evaluator, overall_recall
from strategies.figures.per_device import MeasuredQuality, cell_recalls, estimate_within
from strategies.figures.schema import (
    EXCLUDING_SMALL,
    FIXED_TIERS,
    FULL_GLOBAL,
    FULL_REFINED,
    PEEL,
    TRAINED_WITHOUT,
    ClassFairness,
    ClassFollowed,
    ClassGap,
    ElasticityResult,
    ElasticTrace,
    ExcludingSmall,
    FairnessResult,
    Fall,
    FixedTiersResult,
    Followed,
    FollowedMoment,
    OverTime,
    Spread,
    WorstClass,
)
from strategies.nodes import EVALUATED_BYTES, Content, NodeRequest, bounds_of, packed_batches
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


# ---- Effect of moving budgets on trained tables: all budgets at once, or each in its own way over time


IntArray = NDArray[np.int64]
FALLS = "falls"
"""Name of what is asked about budgets that fall."""


def measure_elasticity(
    evaluator: Evaluator,
    extra: Mapping[str, wire.EvaluateReply],
    full: dict[str, wire.EvaluateReply],
    refine: Refine,
    traced: IntArray,
) -> tuple[ElasticityResult, tuple[ElasticTrace, ...]]:
    """``report.json["elasticity"]`` and, for the devices ``traced``, ``report.json["elastic_traces"]``. extra: the
    reply to :func:`fall_rows`; full: full tables by name.
    """
    falls = falling(evaluator, extra.get(FALLS), full, refine)
    metric = f"recall@{evaluator.scenario.evaluation.top_n}"
    if not evaluator.scenario.elasticity.rounds:
        return ElasticityResult(metric, falls), ()
    reply, names = follow(evaluator, FollowPlan.from_evaluator(evaluator), traced), evaluator.members.class_names
    return ElasticityResult(metric, falls, over_time(reply, names)), device_traces(reply, names)


def fall_rows(evaluator: Evaluator) -> dict[str, BudgetRequest]:
    """Return the requests about budgets that fall, by name; none where none fall."""
    factors = _factors(evaluator)
    ones = (1.0,) * len(factors)
    own = (wire.OWN_BUDGET,) * (2 * len(factors))
    return {FALLS: BudgetRequest(own, (*factors, *ones), (*(-1.0 for _ in factors), *factors))} if factors else {}


def _factors(evaluator: Evaluator) -> tuple[float, ...]:
    part = evaluator.scenario.elasticity
    return tuple(sorted({*part.falls, *part.trained_for}, reverse=True))


def falling(
    evaluator: Evaluator, reply: wire.EvaluateReply | None, full: dict[str, wire.EvaluateReply], refine: Refine
) -> tuple[Fall, ...]:
    """All budgets fall at once, after the last round: recall of elastic devices, of rigid ones, of the full tables,
    and of tables trained for the fallen budgets. reply: to :func:`fall_rows`, None where none fall.
    """
    part, factors = evaluator.scenario.elasticity, _factors(evaluator)
    if reply is None:
        return ()
    served = reply.owned.total(axis=1)  # (budgets,) each
    tables = {name: overall_recall(table) for name, table in full.items()}
    recalls = _recalls(reply)
    rows = []
    for i, factor in enumerate(factors):
        elastic, devices = recalls[i], max(int(served.devices[i]), 1)
        trained_for = _trained_for(evaluator, factor, refine) if factor in part.trained_for else None
        rows.append(
            Fall(
                factor=factor,
                budget_bytes_mean=int(served.budget_bytes[i]) / devices,
                stored_bytes_mean=int(served.stored_bytes[i]) / devices,
                elastic=elastic,
                rigid=recalls[len(factors) + i],
                full_table_global=tables.get(FULL_GLOBAL),
                full_table_refined=tables.get(FULL_REFINED),
                trained_for=trained_for,
                elastic_to_trained_for=elastic.value / trained_for.value if trained_for and trained_for.value else None,
                budget_violations=int(served.violations[i]),
            )
        )
    return tuple(rows)


def _recalls(reply: wire.EvaluateReply) -> list[Estimate]:
    """Mean recall under each of the budgets asked for; 0 where no device has test items."""
    return [one or Estimate(0.0) for one in cell_recalls(reply.by_budget())]


def _trained_for(evaluator: Evaluator, factor: float, refine: Refine) -> Estimate:
    """Recall of tables that were trained for budgets times the factor, under these budgets."""
    if factor != 1:
        scenario = evaluator.scenario
        fallen = scenario.model_copy(update={"budget_factor": scenario.budget_factor * factor})
        evaluator = Evaluator.from_strategy(refine(fallen))
    return _recalls(evaluator.own_budgets())[0]


@dataclass(frozen=True)
class FollowPlan:
    """Devices (M,), ascending, to follow for so many rounds, and from which; keeps: :class:`wire.MovingRequest`."""

    devices: IntArray
    begin: int
    rounds: int
    keeps: bool = False

    @classmethod
    def from_evaluator(cls, evaluator: Evaluator) -> Self:
        """Plan what a scenario's ``elasticity`` asks for: some devices, from the last round on."""
        scenario, members = evaluator.scenario, evaluator.members
        drawn = rng_for(scenario.seed, "followed").permutation(members.devices)[: scenario.elasticity.devices]
        return cls(np.sort(drawn), scenario.refinement.rounds, scenario.elasticity.rounds)


def follow(
    evaluator: Evaluator, who: FollowPlan, traced: IntArray, message_bytes: int = EVALUATED_BYTES
) -> wire.MovingReply:
    """Ask nodes to follow some of their devices; groups in batches of about message_bytes."""
    scenario, members, states = evaluator.scenario, evaluator.members, evaluator.federation.states
    devices, groups = who.devices, members.groups_of(who.devices)
    weights = evaluator.weights(scenario.selector)

    def pack(group: int) -> wire.Arrays:
        reach = int(REACH * int(members.ceilings[group]))
        return states[group].packed(evaluator.layout, scenario.blocks.precision, weights[group], reach)

    def asked(batch: dict[int, wire.Arrays]) -> Content:
        return _asked(evaluator, replace(who, devices=devices[np.isin(groups, list(batch))]), traced, batch)

    together = packed_batches(np.unique(groups).tolist(), pack, message_bytes)
    replies = evaluator.federation.nodes.ask_each(wire.MOVING, map(asked, together))
    return reduce(add, itertools.chain.from_iterable(one.values() for one in replies))


def _asked(evaluator: Evaluator, who: FollowPlan, traced: IntArray, batch: dict[int, wire.Arrays]) -> Content:
    scenario, devices = evaluator.scenario, who.devices
    hosts = evaluator.federation.nodes.partitions_of(devices)

    def request(partition: int) -> NodeRequest | None:
        mine = devices[hosts == partition]
        if not len(mine):
            return None
        payload = wire.MovingRequest(
            evaluator.federation.setting,
            who.begin,
            who.rounds,
            scenario.blocks.precision,
            mine,
            traced,
            batch,
            who.keeps,
            scenario.evaluation.bootstrap,
        )
        known = MessageContext(
            {
                "C": len(evaluator.members.class_names),
                "X": 2,
                "B": scenario.evaluation.bootstrap,
                **bounds_of(len(mine)),
            },
            {"devices": np.intersect1d(mine, traced)},
            agreed=("T", "step_s"),
        )
        return NodeRequest(payload, known)

    return request


def over_time(reply: wire.MovingReply, class_names: Sequence[str]) -> OverTime:
    """The part of the report about devices that were followed."""
    steps = reply.steps  # (T, C) each
    moments = steps.total(axis=1)  # (T,) each
    num_steps = len(moments.devices)
    hours = (num_steps - 1) * reply.step_s / 3600  # from the first step to the last
    by_class = tuple(
        ClassFollowed(name, _followed(steps[:, i], hours)) for i, name in enumerate(class_names) if steps.devices[0, i]
    )
    return OverTime(
        hours=hours,
        figures=_followed(moments, hours),
        to_floor=_to_floor(reply.replicates, moments),
        by_class=by_class,
        moments=tuple(_moment(moments[step], step * reply.step_s / 3600) for step in range(num_steps)),
    )


def _to_floor(replicates: Replicates, moments: StepCounts) -> Estimate | None:
    """Return recall over time relative to that at the floor, paired by device. moments: (T,) each."""
    totals = float(moments.recall.sum()), float(moments.floor_recall.sum())
    recalls, ndcgs = replicates.means()
    following, floor = (
        MeasuredQuality(total, 0.0, recalls[i], ndcgs[i], int(moments.counted[0])) for i, total in enumerate(totals)
    )
    return following.over(floor)


def _followed(steps: StepCounts, hours: float) -> Followed:
    """Totals over time of one class or all. steps: (T,) each."""
    devices, device_steps = int(steps.devices[0]), int(steps.devices.sum())
    grew, shrank, missing = int(steps.grew.sum()), int(steps.shrank.sum()), int(steps.missing_bytes.sum())
    moved, reselected = int(steps.moved_bytes.sum()), int(steps.reselected.sum())
    counted, device_hours = max(int(steps.counted.sum()), 1), max(devices * hours, 1e-9)
    return Followed(
        devices=devices,
        reselections=grew + shrank,
        reselections_per_device_hour=(grew + shrank) / device_hours,
        grew=grew,
        shrank=shrank,
        missing_block_bytes=missing,
        growth_bytes=moved,
        growth_to_missing=moved / missing if missing else None,
        growth_bytes_per_device_hour=moved / device_hours,
        shrink_bytes=0,
        recall_before=int(steps.recall_before.sum()) / SUM_SCALE / reselected if reselected else None,
        recall_after=int(steps.recall_after.sum()) / SUM_SCALE / reselected if reselected else None,
        recall=int(steps.recall.sum()) / SUM_SCALE / counted,
        stored_bytes_mean=int(steps.stored_bytes.sum()) / max(device_steps, 1),
        floor_recall=int(steps.floor_recall.sum()) / SUM_SCALE / counted,
        floor_bytes_mean=int(steps.floor_bytes.sum()) / max(device_steps, 1),
        budget_violations=int(steps.violations.sum()),
    )


def _moment(step: StepCounts, hours: float) -> FollowedMoment:
    devices = max(int(step.devices), 1)
    return FollowedMoment(
        hours=hours,
        budget_bytes_mean=float(step.budget_bytes / devices),
        stored_bytes_mean=float(step.stored_bytes / devices),
        kept_blocks_mean=float(step.kept_blocks / devices),
        growth_bytes=int(step.moved_bytes),
        recall=_mean(step.recall, step.recall_square, step.counted),
        floor_recall=_mean(step.floor_recall, step.floor_square, step.counted),
    )


def _mean(recall: IntArray, square: IntArray, counted: IntArray) -> Estimate:
    mean = float(recall / SUM_SCALE / max(int(counted), 1))
    return estimate_within(mean, float(margin_of(recall, square, counted)))


def device_traces(reply: wire.MovingReply, class_names: Sequence[str]) -> tuple[ElasticTrace, ...]:
    """Single devices over time, in simulation only: budget, blocks, bytes moved, recall before and after."""
    whose, values = reply.traced, reply.trace_steps
    result = []
    for device in np.unique(whose.device).tolist():
        mine = np.flatnonzero(whose.device == device)
        mine = mine[np.argsort(whose.step[mine], kind="stable")]
        own, steps = whose[mine], values[mine]
        known = (steps.grew + steps.shrank > 0) & bool(steps.counted[0])
        result.append(
            ElasticTrace(
                device=device,
                device_class=class_names[int(own.device_class[0])],
                hours=tuple(step * reply.step_s / 3600 for step in own.step.tolist()),
                budget_bytes=tuple(steps.budget_bytes.tolist()),
                stored_bytes=tuple(steps.stored_bytes.tolist()),
                kept_blocks=tuple(steps.kept_blocks.tolist()),
                moved_bytes=tuple(steps.moved_bytes.tolist()),
                recall_before=_where(known, steps.recall_before),
                recall_after=_where(known, steps.recall_after),
            )
        )
    return tuple(result)


def _where(known: NDArray[np.bool_], sums: IntArray) -> tuple[float | None, ...]:
    """Recall (T,) where a device re-selected; None elsewhere. sums: fixed point."""
    return tuple(value / SUM_SCALE if there else None for value, there in zip(sums.tolist(), known, strict=True))
