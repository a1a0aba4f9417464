"""The report's figures, from what rounds and evaluations counted."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import product
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks.layout import budget_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.events import Event, OnEvent
from fl_peel.exchange.counters import ClassCounts, DeviceTraces
from fl_peel.figures import Estimate, read_fields
from fl_peel.scenario.method import Poisoning, Robust
from fl_peel.scenario.scenario import Scenario
from strategies.evaluation.evaluator import BudgetRequest, EvaluationParts, Evaluator, overall_recall
from strategies.figures.per_device import (
    OWN_BUDGET,
    MeasuredQuality,
    PerDevice,
    cell_recalls,
    estimate_within,
    qualities,
)
from strategies.figures.schema import (
    BudgetRow,
    BytesPerDevice,
    ComparisonRow,
    DeviceClassRow,
    DeviceTrace,
    FullTableResult,
    HistoryRow,
    PoisoningResult,
    PoisoningRow,
    Quality,
    RefinementResult,
    RoundRow,
    UserGroupRow,
)
from strategies.figures.stage_figures import class_costs, round_clock
from strategies.nodes import Members, some_devices
from strategies.rounds.acceptance import AcceptanceTest, Comparison
from strategies.rounds.federation import RoundRecord
from strategies.rounds.strategy import PeelStrategy
from strategies.run.refinement import Refine


@dataclass(frozen=True)
class BudgetReplies:
    """The replies about every budget of the scenario, under a precision and a selector."""

    precision: str
    selector: str
    reply: wire.EvaluateReply


@dataclass(frozen=True)
class EvaluationReplies:
    """The evaluations after the last round: every budget; every device under its own budget; the full tables as
    refined, None where ``evaluation.full_tables`` is off; extra: replies to other requests about the published tables,
    by name.
    """

    budgets: tuple[BudgetReplies, ...]
    own: wire.EvaluateReply
    refined: wire.EvaluateReply | None
    extra: dict[str, wire.EvaluateReply] = field(default_factory=dict)


def evaluated(
    evaluator: Evaluator,
    on_event: OnEvent,
    extra: Mapping[str, BudgetRequest] | None = None,
    as_begun: EvaluationParts | None = None,
) -> EvaluationReplies:
    """Evaluate refined tables at every budget, precision and selector that the scenario names, on the test.

    extra: further questions by name, about the lists of the scenario's own precision and selector; as_begun: replies
    about full tables that have not changed since, None where all may have.
    """
    scenario, members = evaluator.scenario, evaluator.members
    evaluation = scenario.evaluation
    main = (scenario.blocks.precision, scenario.selector)
    precisions = evaluation.precisions or (scenario.blocks.precision,)
    # what devices are sent is always evaluated, whatever else is
    asked = list(dict.fromkeys([*product(precisions, evaluation.selectors), main])) if evaluation.budgets else []
    stored = some_devices(scenario, members, "artifacts", evaluation.artifacts)
    total = len(asked) + 2
    done = 0

    def step(text: str) -> None:
        nonlocal done
        done += 1
        on_event(Event("evaluation", done, total, text))

    budgets = [budget_bytes(evaluator.layout, share) for share in evaluation.budgets]
    more = {OWN_BUDGET: BudgetRequest((wire.OWN_BUDGET,))} | dict(extra or {})
    replies: dict[str, wire.EvaluateReply] = {}
    by_budget: list[BudgetReplies] = []
    for precision, selector in asked:
        if (precision, selector) == main:  # the lists that devices are sent, which the other questions are about
            reply, *others = evaluator.together(
                [BudgetRequest(tuple(budgets)), *more.values()],
                precision=precision,
                selector=selector,
                label=precision,
                artifacts=stored,
            )
            replies = dict(zip(more, others, strict=True))
        else:
            reply = evaluator.evaluate(
                budgets, precision=precision, selector=selector, label=precision, per_device=True
            )
        by_budget.append(BudgetReplies(precision, selector, reply))
        step(f"{precision}, {selector}")
    if not replies:
        replies = dict(zip(more, evaluator.together(list(more.values())), strict=True))
    own = replies.pop(OWN_BUDGET)
    step("own budgets")
    refined = None
    if evaluation.full_tables:
        refined = _full_tables(evaluator, as_begun)
    step("full tables")
    return EvaluationReplies(tuple(by_budget), own, refined, replies)


def _full_tables(evaluator: Evaluator, known: EvaluationParts | None) -> wire.EvaluateReply:
    """Quality with whole tables of groups, on test and validation items. known: replies about some of them."""
    validated = bool(evaluator.scenario.data.validation_share)
    if known is None:
        return evaluator.full_tables(with_validation=validated).whole
    asked = {group for some in known.groups for group in some}
    others = [group for group in range(len(evaluator.federation.states)) if group not in asked]
    return (known + evaluator.full_tables(with_validation=validated, groups=others)).whole if others else known.whole


@dataclass(frozen=True)
class StartReplies:
    """The replies about full tables before any round, node by node, on the test and, where there are such items, on
    validation: the global table and the groups' tables; None where there is none.
    """

    globally: EvaluationParts | None = None
    groups: EvaluationParts | None = None

    def replies(self, refined: wire.EvaluateReply | None, excluded: Container[int]) -> FullTableReplies:
        """Return the replies about all full tables, of nodes that are not ``excluded``. refined: after all rounds."""
        parts = {"global": self.globally, "start": self.groups}
        whole = {name: one.without(excluded=excluded).whole for name, one in parts.items() if one is not None}
        return FullTableReplies(whole | ({} if refined is None else {"refined": refined}))


@dataclass(frozen=True)
class FullTableReplies:
    """The replies about full tables, on the test and then, where there are such items, on validation, by the names that
    report.json has for the tables: the global one, the groups' tables before refinement and after it.
    """

    by_table: dict[str, wire.EvaluateReply]

    @property
    def on_test(self) -> dict[str, wire.EvaluateReply]:
        return {name: reply.only(slice(0, 1)) for name, reply in self.by_table.items()}

    @property
    def on_validation(self) -> dict[str, Quality]:
        """Return the quality on validation; nothing where no device has validation items."""
        both = {name: qualities(reply) for name, reply in self.by_table.items()}
        return {name: rows[1] for name, rows in both.items() if len(rows) > 1}

    @property
    def best(self) -> str | None:
        """Return the full table of ratios: the best on validation, without such items the last; None: no table."""
        chosen_by = self.on_validation
        if not chosen_by:
            return next(reversed(self.by_table), None)
        return max(chosen_by, key=lambda name: chosen_by[name].recall.value)


def per_device(
    evaluator: Evaluator, evaluation: EvaluationReplies, full: FullTableReplies, test: UserItems
) -> PerDevice:
    """Return what every single device gets from every table. test: test items of all devices."""
    scenario = evaluator.scenario
    replies = {name: (reply, 0) for name, reply in full.on_test.items()}
    for asked in evaluation.budgets:
        for place, share in enumerate(scenario.evaluation.budgets):
            replies[f"{share * 100:.4g}% {asked.precision} {asked.selector}"] = (asked.reply, place)
    replies[OWN_BUDGET] = (evaluation.own, 0)
    return PerDevice.from_replies(
        replies,
        evaluator.members.class_names,
        top_n=scenario.evaluation.top_n,
        seed=scenario.seed,
        test=test,
    )


def list_figures(evaluator: Evaluator, reply: wire.EvaluateReply, place: int = 0) -> dict[str, Estimate]:
    """Return the metrics of all lists under one of the budgets asked for, but for recall and NDCG of the first
    ``evaluation.top_n`` items, which have intervals.
    """
    asked, devices = evaluator.scenario.evaluation, int(reply.by_budget().devices[place])
    means = reply.lists.means(place, asked.list_lengths, devices, evaluator.layout.num_items)
    known = (f"recall@{asked.top_n}", f"ndcg@{asked.top_n}")
    return {name: estimate_within(*one) for name, one in means.items() if name not in known}


def full_table(evaluator: Evaluator, replies: FullTableReplies) -> FullTableResult:
    """The full tables, with intervals, and which is the best on validation."""
    measured = {name: MeasuredQuality.from_reply(reply) for name, reply in replies.on_test.items()}
    base, start, refined = (measured.get(name) for name in ("global", "start", "refined"))
    lists = {name: list_figures(evaluator, reply) for name, reply in replies.on_test.items()}
    on_test = {name: replace(one.quality(base), lists=lists[name]) for name, one in measured.items()}
    on_validation = replies.on_validation
    return FullTableResult(
        bytes=evaluator.layout.full_table_bytes,
        globally=on_test.get("global"),
        global_validation=on_validation.get("global"),
        start=on_test.get("start"),
        start_validation=on_validation.get("start"),
        refined=on_test.get("refined"),
        refined_validation=on_validation.get("refined"),
        gain=None if start is None or refined is None else refined.gain(start),
        strongest=replies.best,
    )


def budget_rows(evaluator: Evaluator, evaluation: EvaluationReplies, full: FullTableReplies) -> tuple[BudgetRow, ...]:
    """Return a row for each budget, precision and selector, compared with the full tables."""
    measured = {name: MeasuredQuality.from_reply(reply) for name, reply in full.on_test.items()}
    best = measured.get(full.best or "")
    rows = []
    for asked in evaluation.budgets:
        for place, share in enumerate(evaluator.scenario.evaluation.budgets):
            one = MeasuredQuality.from_reply(asked.reply, place)
            rows.append(
                read_fields(
                    BudgetRow,
                    asked,
                    one.quality(measured.get("global")),
                    share=share,
                    budget_bytes=budget_bytes(evaluator.layout, share),
                    stored_bytes_max=int(asked.reply.stored_max[place]),
                    devices=one.devices,
                    to_strongest=one.over(best),
                    lists=list_figures(evaluator, asked.reply, place),
                )
            )
    return tuple(rows)


def device_class_rows(
    members: Members, records: Sequence[RoundRecord], own: wire.EvaluateReply
) -> dict[str, DeviceClassRow]:
    """Return every class under its devices' own budgets of the moment, in rounds and in the evaluation ``own``."""
    by_class = own.by_class()
    recalls, ndcgs = cell_recalls(by_class), by_class.mean()[1].tolist()
    served = own.owned[0]  # (C,) each
    trained = reduce(add, (record.classes for record in records), ClassCounts.zeros(len(members.class_names)))
    costs = class_costs(records, served.devices)
    rows = {}
    for i, name in enumerate(members.class_names):
        devices = int(served.devices[i])
        moments = max(int(trained.devices[i]) + devices, 1)
        rows[name] = DeviceClassRow(
            devices=devices,
            recall=recalls[i],
            ndcg=None if recalls[i] is None else ndcgs[i],
            budget_bytes_mean=float((trained.budget_bytes[i] + served.budget_bytes[i]) / moments),
            stored_bytes_mean=float((trained.stored_bytes[i] + served.stored_bytes[i]) / moments),
            reselections=int(trained.reselections[i]),
            budget_violations=int(trained.violations[i] + served.violations[i]),
            peak_bytes_mean=float(trained.peak_bytes[i] / max(int(trained.devices[i]), 1)),
            working_violations=int(trained.working_violations[i]),
            download_bytes=float(trained.download_bytes[i] / max(devices, 1)),
            upload_bytes=float(trained.upload_bytes[i] / max(devices, 1)),
            costs=costs[i],
        )
    return rows


def user_group_rows(members: Members, num_groups: int, own: wire.EvaluateReply) -> tuple[UserGroupRow, ...]:
    """Return every user group under its devices' own budgets of the moment."""
    by_group = own.by_group()
    sizes = np.bincount(members.groups, minlength=num_groups)
    return tuple(
        UserGroupRow(
            group=i,
            devices=int(sizes[i]),
            recall=recall,
            ndcg=None if recall is None else ndcg,
        )
        for i, (recall, ndcg) in enumerate(zip(cell_recalls(by_group), by_group.mean()[1].tolist(), strict=True))
        if i < num_groups
    )


def round_rows(records: Sequence[RoundRecord]) -> tuple[RoundRow, ...]:
    """Return what every round moved and which devices it reached."""
    return tuple(read_fields(RoundRow, record, clock=round_clock(record)) for record in records)


def history_rows(records: Sequence[RoundRecord]) -> tuple[HistoryRow, ...]:
    """Return what every round measured, at its time on the virtual clock."""
    elapsed = np.cumsum([record.virtual_seconds for record in records]).tolist()
    pairs = zip(records, elapsed, strict=True)
    return tuple(read_fields(HistoryRow, record, virtual_seconds=seconds) for record, seconds in pairs)


def device_traces(members: Members, records: Sequence[RoundRecord]) -> tuple[DeviceTrace, ...]:
    """The devices that rounds followed, one value a round."""
    seen = [record.traces for record in records]
    classes = {
        device: members.class_names[class_index]
        for traces in seen
        for device, class_index in zip(traces.device.tolist(), traces.device_class.tolist(), strict=True)
    }
    return tuple(
        DeviceTrace(
            device=device,
            device_class=classes[device],
            budget_bytes=tuple(_traced_value(device, traces, traces.budget_bytes) for traces in seen),
            stored_bytes=tuple(_traced_value(device, traces, traces.stored_bytes) for traces in seen),
            kept_blocks=tuple(_traced_value(device, traces, traces.kept_blocks) for traces in seen),
        )
        for device in sorted(classes)
    )


def _traced_value(device: int, traces: DeviceTraces, values: NDArray[np.int64]) -> int | None:
    """A device's value among those of a round; None where the round did not see it."""
    observed = values[traces.device == device]
    return int(observed[0]) if len(observed) else None


def bytes_per_device(records: Sequence[RoundRecord], num_devices: int) -> BytesPerDevice:
    """Bytes over the run by device, on average."""
    return BytesPerDevice(
        download_mean=sum(record.download_bytes for record in records) / max(num_devices, 1),
        upload_mean=sum(record.upload_bytes for record in records) / max(num_devices, 1),
    )


def refinement_result(acceptance: AcceptanceTest, num_devices: int) -> RefinementResult:
    """Return which groups accepted which rounds of a refinement."""
    rounds, groups = np.unique(acceptance.accepted_rounds, return_counts=True)
    moved = sum(one.download_bytes for one in acceptance.comparisons)
    return RefinementResult(
        groups=len(acceptance.accepted_rounds),
        groups_kept=int((acceptance.accepted_rounds > 0).sum()),
        rounds_kept={str(number): int(count) for number, count in zip(rounds, groups, strict=True)},
        bytes_down_mean=moved / max(num_devices, 1),
        comparisons=tuple(_comparison(one) for one in acceptance.comparisons),
    )


def _comparison(one: Comparison) -> ComparisonRow:
    everybody = one.sums.total().reshaped(1)
    return ComparisonRow(
        server_round=one.server_round,
        devices=int(everybody.devices[0]),
        difference=one.mean_gain,
        standard_error=float(np.sqrt(everybody.variance()[0])) if everybody.devices[0] else 0.0,
        accepted=int(one.accepted.sum()),
        download_bytes=one.download_bytes,
    )


# ---- Effect of malicious devices on a run: recall and target hit rate with more and more of them, with and
# without defence
# Every figure is of the devices that are malicious under none of the shares compared, so that rows differ by what was
# done to the tables alone.


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
