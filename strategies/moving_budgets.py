"""What happens to trained tables when budgets move: all of them at once, or each in its own way over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.randomness import rng_for
from fl_peel.ranking import SUM_SCALE
from fl_peel.selection import pack_ranking
from fl_peel.wire import StepColumn
from strategies.fairness import Refine, overall_recall
from strategies.peel import PeelStrategy

IntArray = NDArray[np.int64]


def measure_elasticity(
    strategy: PeelStrategy, full: dict[str, wire.EvaluateReply], refine: Refine, traced: IntArray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``report.json["elasticity"]`` and, for the devices ``traced``, ``report.json["elastic_traces"]``."""
    result: dict[str, Any] = {"metric": f"recall@{strategy.scenario.evaluation.top_n}"}
    result["falls"] = falling(strategy, full, refine)
    traces: list[dict[str, Any]] = []
    if strategy.scenario.elasticity.rounds:
        reply = follow(strategy, traced)
        result |= over_time(strategy, reply)
        traces = device_traces(strategy, reply)
    return result, traces


def falling(strategy: PeelStrategy, full: dict[str, wire.EvaluateReply], refine: Refine) -> list[dict[str, Any]]:
    """All budgets fall at once, after the last round: recall of elastic devices, of rigid ones, of the full tables,
    and of tables trained for the fallen budgets.
    """
    scenario = strategy.scenario
    part = scenario.elasticity
    factors = sorted({*part.falls, *part.trained_for}, reverse=True)
    if not factors:
        return []
    own = [wire.OWN_BUDGET] * (2 * len(factors))
    reply = strategy.evaluate(
        own,
        precision=scenario.blocks.precision,
        selector=scenario.selector,
        factors=[*factors, *([1.0] * len(factors))],
        rooms=[*([-1.0] * len(factors)), *factors],
    )
    rows: list[dict[str, Any]] = []
    for i, factor in enumerate(factors):
        elastic = overall_recall(reply, i)
        counts, budgets, stored, violations = reply.owned[i].sum(axis=0).tolist()
        row = {
            "factor": factor,
            "budget_bytes_mean": budgets / max(counts, 1),
            "stored_bytes_mean": stored / max(counts, 1),
            "elastic": elastic,
            "rigid": overall_recall(reply, len(factors) + i),
            **{name: overall_recall(table) for name, table in full.items()},
            "trained_for": None,
            "elastic_to_trained_for": None,
            "budget_violations": violations,
        }
        if factor in part.trained_for:
            own_factor = scenario.budget_factor * factor
            rival = strategy if factor == 1 else refine(scenario.model_copy(update={"budget_factor": own_factor}))
            trained = rival.evaluate([wire.OWN_BUDGET], precision=scenario.blocks.precision, selector=scenario.selector)
            row["trained_for"] = overall_recall(trained)
            row["elastic_to_trained_for"] = elastic / row["trained_for"] if row["trained_for"] else None
        rows.append(row)
    return rows


def follow(strategy: PeelStrategy, traced: IntArray, message_bytes: int = 64 << 20) -> wire.MovingReply:
    """Ask nodes to follow some of their devices from the last round on; groups in batches of about message_bytes."""
    scenario, layout, members = strategy.scenario, strategy.layout, strategy.members
    devices = np.sort(rng_for(scenario.seed, "followed").permutation(members.devices)[: scenario.elasticity.devices])
    groups = members.groups[np.searchsorted(members.devices, devices)]
    weights = strategy.weights(scenario.selector)
    replies: list[wire.MovingReply] = []
    batch: dict[int, wire.Arrays] = {}
    size, last = 0, int(groups.max())
    for group in np.unique(groups).tolist():
        # devices skip blocks they never need, so they reach further down the list than their budget alone would
        reach = int(1.25 * int(members.ceilings[group]))
        packed = pack_ranking(layout, scenario.blocks.precision, weights[group], strategy.states[group].table, reach)
        size += sum(array.nbytes for array in packed.values())
        batch[group] = wire.packed_once(packed)
        if size >= message_bytes or group == last:
            replies += _ask(strategy, devices[np.isin(groups, list(batch))], traced, batch)
            batch, size = {}, 0
    steps = np.sum([reply.steps for reply in replies], axis=0)
    return wire.MovingReply(steps, np.concatenate([reply.traces for reply in replies]), replies[0].step_s)


def _ask(
    strategy: PeelStrategy, devices: IntArray, traced: IntArray, batch: dict[int, wire.Arrays]
) -> list[wire.MovingReply]:
    scenario, setting = strategy.scenario, strategy.setting
    hosts = devices % len(strategy.nodes.ids)

    def request(partition: int) -> wire.MovingRequest | None:
        mine = devices[hosts == partition]
        if not len(mine):
            return None
        return wire.MovingRequest(
            setting.scenario,
            setting.data_dir,
            setting.run_dir,
            scenario.refinement.rounds,
            scenario.elasticity.rounds,
            scenario.blocks.precision,
            mine,
            traced,
            batch,
        )

    return strategy.nodes.ask(wire.MOVING, wire.MovingReply, request)


def over_time(strategy: PeelStrategy, reply: wire.MovingReply) -> dict[str, Any]:
    """The part of the report about devices that were followed."""
    steps = reply.steps.sum(axis=1)  # (T, columns)
    hours = (len(steps) - 1) * reply.step_s / 3600  # from the first step to the last
    names = strategy.members.class_names
    by_class = [
        {"class": name, **_figures(reply.steps[:, i], hours)}
        for i, name in enumerate(names)
        if reply.steps[0, i, StepColumn.DEVICES]
    ]
    return {
        "hours": hours,
        **_figures(steps, hours),
        "by_class": by_class,
        "over_time": [_moment(row, step * reply.step_s / 3600) for step, row in enumerate(steps)],
    }


def _figures(steps: IntArray, hours: float) -> dict[str, Any]:
    """Totals over time of one class or all. steps: (T, columns)."""
    total = {column: int(steps[:, column].sum()) for column in StepColumn}
    devices = int(steps[0, StepColumn.DEVICES])
    device_hours = max(devices * hours, 1e-9)
    reselected = total[StepColumn.RESELECTED]
    counted = max(total[StepColumn.COUNTED], 1)
    missing = total[StepColumn.MISSING]
    return {
        "devices": devices,
        "reselections": total[StepColumn.GREW] + total[StepColumn.SHRANK],
        "reselections_per_device_hour": (total[StepColumn.GREW] + total[StepColumn.SHRANK]) / device_hours,
        "grew": total[StepColumn.GREW],
        "shrank": total[StepColumn.SHRANK],
        "missing_block_bytes": missing,
        "growth_bytes": total[StepColumn.MOVED],
        "growth_to_missing": total[StepColumn.MOVED] / missing if missing else None,
        "growth_bytes_per_device_hour": total[StepColumn.MOVED] / device_hours,
        "shrink_bytes": 0,
        "rigid_bytes_per_device_hour": total[StepColumn.RIGID_MOVED] / device_hours,
        "recall_before": total[StepColumn.RECALL_BEFORE] / SUM_SCALE / reselected if reselected else None,
        "recall_after": total[StepColumn.RECALL_AFTER] / SUM_SCALE / reselected if reselected else None,
        "recall": total[StepColumn.RECALL] / SUM_SCALE / counted,
        "rigid_recall": total[StepColumn.RIGID_RECALL] / SUM_SCALE / counted,
        "rigid_empty_share": total[StepColumn.RIGID_EMPTY] / max(total[StepColumn.DEVICES], 1),
        "budget_violations": total[StepColumn.VIOLATIONS],
    }


def _moment(row: IntArray, hours: float) -> dict[str, float]:
    devices, counted = max(int(row[StepColumn.DEVICES]), 1), max(int(row[StepColumn.COUNTED]), 1)
    return {
        "hours": hours,
        "budget_bytes_mean": float(row[StepColumn.BUDGET] / devices),
        "stored_bytes_mean": float(row[StepColumn.STORED] / devices),
        "kept_blocks_mean": float(row[StepColumn.KEPT] / devices),
        "growth_bytes": int(row[StepColumn.MOVED]),
        "recall": float(row[StepColumn.RECALL] / SUM_SCALE / counted),
        "rigid_recall": float(row[StepColumn.RIGID_RECALL] / SUM_SCALE / counted),
        "rigid_empty_share": float(row[StepColumn.RIGID_EMPTY] / devices),
    }


def device_traces(strategy: PeelStrategy, reply: wire.MovingReply) -> list[dict[str, Any]]:
    """Single devices over time, in simulation only: budget, blocks, bytes moved, recall before and after."""
    result = []
    for device in np.unique(reply.traces[:, 0]).tolist():
        rows = reply.traces[reply.traces[:, 0] == device]
        rows = rows[np.argsort(rows[:, 2], kind="stable")]
        columns = rows[:, 3:]
        changed = columns[:, StepColumn.GREW] + columns[:, StepColumn.SHRANK] > 0
        known = changed & bool(columns[0, StepColumn.COUNTED])
        before, after = (
            [
                float(value / SUM_SCALE) if there else None
                for value, there in zip(columns[:, column], known, strict=True)
            ]
            for column in (StepColumn.RECALL_BEFORE, StepColumn.RECALL_AFTER)
        )
        result.append(
            {
                "device": int(device),
                "device_class": strategy.members.class_names[int(rows[0, 1])],
                "hours": [float(step * reply.step_s / 3600) for step in rows[:, 2]],
                "budget_bytes": columns[:, StepColumn.BUDGET].tolist(),
                "stored_bytes": columns[:, StepColumn.STORED].tolist(),
                "kept_blocks": columns[:, StepColumn.KEPT].tolist(),
                "moved_bytes": columns[:, StepColumn.MOVED].tolist(),
                "recall_before": before,
                "recall_after": after,
            }
        )
    return result


__all__ = ["device_traces", "falling", "follow", "measure_elasticity", "over_time"]
