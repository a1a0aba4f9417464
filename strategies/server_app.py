"""The server's side of a run, from the scenario to its result: pretrain, group, federate, evaluate."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

import fl_peel
from fl_peel import wire
from fl_peel.blocks import BlockLayout
from fl_peel.cache import pretraining_key, read_tables, write_tables
from fl_peel.config import Scenario
from fl_peel.devices import device_splits
from fl_peel.events import Event, OnEvent, silent
from fl_peel.grouping import UserGroups
from fl_peel.interactions import UserItems, collected
from fl_peel.pretraining import EpochFigures, PretrainedEmbeddings, pretrain
from fl_peel.privacy.plan import Plan, make_plan, report_of
from fl_peel.processor import pretraining_device
from fl_peel.randomness import rng_for
from fl_peel.ranking import MetricSums
from fl_peel.selection import check_budget
from strategies.clock_report import class_costs, round_counts, time_to_recall
from strategies.groups import make_groups, make_layout, starting_states
from strategies.heterogeneity import measure_heterogeneity, refiner
from strategies.nodes import Nodes
from strategies.peel import Members, PeelStrategy
from strategies.poisoning import measure_poisoning
from strategies.sampling import sample_cohort
from strategies.secure_report import secure_report

NUM_TRACED = 6
"""Devices whose budgets and kept blocks the report shows over rounds."""


@dataclass(frozen=True)
class Place:
    """Where a run finds and leaves things. data_dir: data sets ("" for the default places); run_dir: devices' state;
    cache_dir: pretrained tables ("" keeps none).
    """

    data_dir: str
    run_dir: str
    cache_dir: str = ""


@dataclass
class Stages:
    """Wall seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Prepared:
    """What the server has after stage 1."""

    given: UserItems
    has_data: NDArray[np.bool_]
    pretrained: PretrainedEmbeddings
    groups: UserGroups
    layout: BlockLayout


def prepare(scenario: Scenario, place: Place, stages: Stages, on_event: OnEvent = silent) -> Prepared:
    """Stage 1: collected interactions -> pretrained tables -> user groups, item groups, blocks.

    Raises:
        DataError: the data set cannot be had.
        BudgetError: an evaluation budget is below one block.
    """
    with stages("data"):
        splits = device_splits(scenario, place.data_dir, place.run_dir)
        part = scenario.pretraining.collected
        given, has_data = collected(splits.train, seed=scenario.seed, share=part.share, mode=part.mode)
    on_event(Event("data", 1, 1, f"{splits.num_users:,} devices, {splits.num_items:,} items"))
    config = scenario.pretraining.config()

    def show(figures: EpochFigures) -> None:
        on_event(Event("pretraining", figures.epoch, config.epochs, f"loss {figures.loss:.4f}"))

    with stages("pretraining"):
        device = pretraining_device(scenario.engine.device)
        key = pretraining_key(given, splits.num_items, config, scenario.seed, device)
        kept = read_tables(Path(place.cache_dir), key) if place.cache_dir else None
        pretrained = kept or pretrain(given, splits.num_items, config, seed=scenario.seed, device=device, progress=show)
        if place.cache_dir and kept is None:
            write_tables(Path(place.cache_dir), key, pretrained)
    on_event(Event("pretraining", config.epochs, config.epochs, "kept from an earlier run" if kept else ""))
    with stages("grouping"):
        groups = make_groups(scenario, pretrained, has_data)
        layout = make_layout(scenario, pretrained, given)
    on_event(Event("grouping", 1, 1, f"{groups.num_groups} user groups, {layout.num_blocks:,} blocks"))
    for share in scenario.evaluation.budgets:
        for precision in scenario.evaluation.precisions or (scenario.blocks.precision,):
            check_budget(layout, precision, budget_bytes(layout, share), f"evaluation.budgets {share:.4%}")
    return Prepared(given, has_data, pretrained, groups, layout)


def privacy_plan(scenario: Scenario, place: Place) -> Plan | None:
    """How much noise the run adds, and what it spends; None where no mechanism is named.

    Raises:
        ScenarioError: a target that cannot be met, or keys under which its epsilon would not be true.
    """
    if not scenario.privacy.noised:
        return None
    splits, part, refinement = (
        device_splits(scenario, place.data_dir, place.run_dir),
        scenario.pretraining,
        scenario.refinement,
    )
    _, has_data = collected(splits.train, seed=scenario.seed, share=part.collected.share, mode=part.collected.mode)
    most = None
    if refinement.sampling == "fixed":  # a schedule that depends on no data: count the rounds of each device
        devices = np.arange(splits.num_users, dtype=np.int64)
        share = refinement.cohort_share * (1 + refinement.over_selection)
        counts = np.zeros(splits.num_users, np.int64)
        for server_round in range(1, refinement.rounds + 1):
            counts[sample_cohort(scenario.seed, server_round, devices, share)] += 1
        most = int(counts.max(initial=0))
    return make_plan(scenario, most_rounds=most, asks_groups=not has_data.all())


def budget_bytes(layout: BlockLayout, share: float) -> int:
    """Bytes of a share of the fp32 full item table."""
    return math.floor(share * layout.full_table_bytes + 1e-6)


def join(scenario: Scenario, place: Place, prepared: Prepared, nodes: Nodes) -> Members:
    """Devices take part: those whose data was collected get their embedding, the others find it locally."""
    num_nodes = len(nodes.ids)
    known = np.flatnonzero(prepared.has_data)
    everybody_known = len(known) == len(prepared.has_data)
    items = prepared.pretrained.items
    table = items[:0] if everybody_known else items

    def request(partition: int) -> wire.JoinRequest:
        mine = known[known % num_nodes == partition].astype(np.int64)
        return wire.JoinRequest(
            scenario.to_json(),
            place.data_dir,
            place.run_dir,
            prepared.layout.item_group,
            prepared.groups.centroids,
            table,
            mine,
            prepared.pretrained.users[mine],
            prepared.groups.assignment[mine],
        )

    replies = nodes.ask(wire.JOIN, wire.JoinReply, request)
    devices = np.concatenate([reply.devices for reply in replies])
    order = np.argsort(devices, kind="stable")
    return Members(
        devices[order],
        np.concatenate([reply.groups for reply in replies])[order],
        np.max([reply.ceilings for reply in replies], axis=0),
        tuple(replies[0].class_names.split("\n")),
    )


def serve(grid: Grid, scenario: Scenario, place: Place, on_event: OnEvent = silent) -> dict[str, Any]:
    """Run a scenario on the nodes of ``grid``; returns the content of report.json."""
    stages = Stages()
    with stages("start"):
        root = os.fspath(Path(fl_peel.__file__).resolve().parent.parent)
        nodes = Nodes.connect(grid, scenario.to_json(), root=root, timeout_s=scenario.engine.reply_timeout_s)
    on_event(Event("start", 1, 1, f"{len(nodes.ids)} nodes"))
    plan = privacy_plan(scenario, place)
    prepared = prepare(scenario, place, stages, on_event)
    with stages("joining"):
        members = join(scenario, place, prepared, nodes)
        states = starting_states(scenario, prepared.layout, prepared.pretrained, prepared.groups, prepared.given)
    on_event(Event("joining", 1, 1, f"{len(members.devices):,} devices joined"))
    strategy = PeelStrategy(
        scenario,
        wire.Setting(scenario.to_json(), place.data_dir, place.run_dir),
        prepared.layout,
        states,
        members,
        nodes,
        temperature=prepared.pretrained.temperature,
        traced=_some(scenario, members, "traced", NUM_TRACED),
        on_event=on_event,
        plan=plan,
    )
    with stages("evaluation"):
        full_global = full_start = None
        if scenario.evaluation.full_tables:
            full_global = strategy.evaluate(
                [wire.UNLIMITED], precision="fp32", selector=scenario.selector, everybody=prepared.pretrained.items
            )
            full_start = strategy.evaluate([wire.UNLIMITED], precision="fp32", selector=scenario.selector)
    with stages("refinement"):
        strategy.start(
            grid, ArrayRecord(), num_rounds=scenario.refinement.rounds, timeout=scenario.engine.reply_timeout_s
        )
    with stages("evaluation"):
        result, own, full_refined = _measure(scenario, strategy, full_global, full_start, on_event)
    with stages("heterogeneity"):
        refine = refiner(grid, place, prepared, nodes, lambda other: join(other, place, prepared, nodes), on_event)
        full = {"full_table_global": full_global, "full_table_refined": full_refined}
        result |= measure_heterogeneity(strategy, own, full, refine, _some(scenario, members, "traced", NUM_TRACED))
    on_event(Event("heterogeneity", 1, 1))
    if scenario.poisoning.largest_share > 0:
        with stages("poisoning"):
            result["poisoning"] = measure_poisoning(strategy, refine)
    if strategy.secure is not None:
        result["secure_aggregation"] = secure_report(scenario, strategy.secure.records)
    result["privacy"] = report_of(scenario, plan, strategy.private.clip_norms)
    result["stages"] = stages.seconds
    result["environment"] = {
        "nodes": len(nodes.ids),
        "user_groups": len(states),
        "blocks": prepared.layout.num_blocks,
        "devices": len(members.devices),
        "items": prepared.layout.num_items,
    }
    return result


def _some(scenario: Scenario, members: Members, what: str, count: int) -> NDArray[np.int64]:
    """A few devices, always the same for a seed."""
    return np.sort(rng_for(scenario.seed, what).permutation(members.devices)[:count])


def _measure(
    scenario: Scenario,
    strategy: PeelStrategy,
    full_global: wire.EvaluateReply | None,
    full_start: wire.EvaluateReply | None,
    on_event: OnEvent,
) -> tuple[dict[str, Any], wire.EvaluateReply, wire.EvaluateReply | None]:
    """The report's figures, and of those: everybody under their own budgets, with the full refined table."""
    evaluation, layout, members = scenario.evaluation, strategy.layout, strategy.members
    names = (f"recall@{evaluation.top_n}", f"ndcg@{evaluation.top_n}")
    precisions = evaluation.precisions or (scenario.blocks.precision,)
    total = len(precisions) * len(evaluation.selectors) + 2
    done = 0

    def step(text: str) -> None:
        nonlocal done
        done += 1
        on_event(Event("evaluation", done, total, text))

    budgets = [budget_bytes(layout, share) for share in evaluation.budgets]
    rows = []
    for precision in precisions:
        for selector in evaluation.selectors:
            main = precision == scenario.blocks.precision and selector == scenario.selector
            reply = strategy.evaluate(
                budgets,
                precision=precision,
                selector=selector,
                label=precision,
                artifacts=_some(scenario, members, "artifacts", evaluation.artifacts) if main else None,
            )
            sums = MetricSums(*(values.sum(axis=(1, 2)) for values in (reply.recall, reply.ndcg, reply.devices)))
            recall, ndcg = sums.mean()
            for i, share in enumerate(evaluation.budgets):
                rows.append(
                    {
                        "share": share,
                        "budget_bytes": budgets[i],
                        "precision": precision,
                        "selector": selector,
                        names[0]: float(recall[i]),
                        names[1]: float(ndcg[i]),
                        "stored_bytes_max": int(reply.stored_max[i]),
                        "devices": int(sums.devices[i]),
                    }
                )
            step(f"{precision}, {selector}")
    own = strategy.evaluate([wire.OWN_BUDGET], precision=scenario.blocks.precision, selector=scenario.selector)
    step("own budgets")
    result: dict[str, Any] = {"budgets": rows, **_by_class_and_group(strategy, own, names)}
    full: dict[str, Any] = {"bytes": layout.full_table_bytes}
    refined = None
    if full_global is not None and full_start is not None:
        refined = strategy.evaluate([wire.UNLIMITED], precision="fp32", selector=scenario.selector)
        full |= {
            "global": _overall(full_global, names),
            "start": _overall(full_start, names),
            "refined": _overall(refined, names),
        }
    step("full tables")
    result["full_table"] = full
    result |= _rounds(strategy)
    devices = own.owned[0, :, 0]
    for name, costs in zip(members.class_names, class_costs(strategy.rounds, devices), strict=True):
        result["device_classes"][name] |= costs
    result["time_to_recall"] = time_to_recall(strategy.rounds, members.class_names, devices)
    return result, own, refined


def _overall(reply: wire.EvaluateReply, names: tuple[str, str]) -> dict[str, float]:
    recall, ndcg = MetricSums(reply.recall[:1].sum(), reply.ndcg[:1].sum(), reply.devices[:1].sum()).mean()
    return {names[0]: float(recall), names[1]: float(ndcg)}


def _by_class_and_group(strategy: PeelStrategy, own: wire.EvaluateReply, names: tuple[str, str]) -> dict[str, Any]:
    """Under each device's own budget of the moment: per device class and per user group."""
    members = strategy.members
    per_class = MetricSums(own.recall[0].sum(axis=1), own.ndcg[0].sum(axis=1), own.devices[0].sum(axis=1))
    per_group = MetricSums(own.recall[0].sum(axis=0), own.ndcg[0].sum(axis=0), own.devices[0].sum(axis=0))
    totals = np.sum(
        [record.classes for record in strategy.rounds]
        or [np.zeros((len(own.owned[0]), len(wire.ClassColumn)), np.int64)],
        axis=0,
    )
    classes = {}
    for i, name in enumerate(members.class_names):
        counted = per_class.devices[i] > 0
        recall, ndcg = per_class.mean()
        moments = max(int(totals[i, 0] + own.owned[0, i, 0]), 1)
        classes[name] = {
            "devices": int(own.owned[0, i, 0]),
            names[0]: float(recall[i]) if counted else None,
            names[1]: float(ndcg[i]) if counted else None,
            "budget_bytes_mean": float((totals[i, 1] + own.owned[0, i, 1]) / moments),
            "stored_bytes_mean": float((totals[i, 6] + own.owned[0, i, 2]) / moments),
            "reselections": int(totals[i, 4]),
            "budget_violations": int(totals[i, 5] + own.owned[0, i, 3]),
            "download_bytes": float(totals[i, 2] / max(int(own.owned[0, i, 0]), 1)),
            "upload_bytes": float(totals[i, 3] / max(int(own.owned[0, i, 0]), 1)),
        }
    sizes = np.bincount(members.groups, minlength=len(strategy.states))
    recall, ndcg = per_group.mean()
    groups = [
        {
            "group": i,
            "devices": int(sizes[i]),
            names[0]: float(recall[i]) if per_group.devices[i] else None,
            names[1]: float(ndcg[i]) if per_group.devices[i] else None,
        }
        for i in range(len(strategy.states))
    ]
    return {"device_classes": classes, "user_groups": groups}


def _rounds(strategy: PeelStrategy) -> dict[str, Any]:
    records = strategy.rounds
    num_devices = max(len(strategy.members.devices), 1)
    traces = np.concatenate([record.traces for record in records]) if records else np.zeros((0, 5), np.int64)
    by_device: dict[int, dict[str, Any]] = {}
    for number, record in enumerate(records):
        for device, class_index, budget, stored, kept in record.traces.tolist():
            trace = by_device.setdefault(
                device,
                {
                    "device": device,
                    "device_class": strategy.members.class_names[class_index],
                    **{key: [None] * len(records) for key in ("budget_bytes", "stored_bytes", "kept_blocks")},
                },
            )
            trace["budget_bytes"][number], trace["stored_bytes"][number], trace["kept_blocks"][number] = (
                budget,
                stored,
                kept,
            )
    elapsed = np.cumsum([record.virtual_seconds for record in records]).tolist()
    assert len(by_device) == len(set(traces[:, 0].tolist()))
    return {
        "rounds": [
            {
                "server_round": record.server_round,
                "download_bytes": record.download_bytes,
                "upload_bytes": record.upload_bytes,
                "message_bytes": record.message_bytes,
                "devices": record.devices,
                "failures": record.failures,
                "seconds": record.seconds,
                **round_counts(record),
            }
            for record in records
        ],
        "history": [
            {
                "server_round": record.server_round,
                "virtual_seconds": virtual,
                "loss": record.loss,
                "validation recall@20": record.recall,
                "validation ndcg@20": record.ndcg,
                "controller loss": record.controller_loss,
            }
            for record, virtual in zip(records, elapsed, strict=True)
        ],
        "traces": [by_device[device] for device in sorted(by_device)],
        "bytes_per_device": {
            "download_mean": sum(record.download_bytes for record in records) / num_devices,
            "upload_mean": sum(record.upload_bytes for record in records) / num_devices,
        },
    }
