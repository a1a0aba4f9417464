"""How fast is the engine? Devices per second of federated rounds through Flower, against stock Flower, up to a million.

Every figure is measured here and now, in one go on one machine; ``docs/engine.md`` says what each one covers. A round
is timed from the moment the server starts to choose and pack blocks until its tables are updated, messages included.
"Best" is the best of several rounds after one that is not counted: what else the machine does can only slow a round.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from timeit import repeat
from typing import Any

import numpy as np
import psutil
import torch
from flwr.serverapp import Grid

from clients.fleet.fleet import Fleet, FleetBudgets, load_fleet
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.data.population import Population
from fl_peel.device_storage import device_splits
from fl_peel.errors import EngineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.kernels import FIXED_POINT
from fl_peel.packages import own_environment
from fl_peel.pretraining.central_training import pretrain
from fl_peel.randomness import device_seeds
from fl_peel.ranking.top import MetricSums, Ranker
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining, is_gpu, require_device, torch_device
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from simulations.bench import stock_flower
from simulations.bench.bench_context import (
    FREE_BYTES,
    FULL_TABLES,
    MAIN_JOB,
    MILLION,
    BenchContext,
    BenchPlan,
    bench_scenario,
    flagship_scenario,
    make_context,
    population_scenario,
)
from simulations.bench.rivals import pfl_interpreter, pfl_rate, stock_flower_rate
from simulations.engine.engine import simulated
from simulations.engine.folders import run_folder
from simulations.engine.inputs import check_out, given_folder, require_dataset
from simulations.engine.memory import PeakMemory
from simulations.report.result_files import json_bytes, write_results
from strategies.rounds.strategy import PeelStrategy, sample_cohort
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths


def bench(
    data_dir: str | Path,
    out: str | Path | None,
    plan: BenchPlan,
    *,
    pfl_python: str | Path | None = None,
    on_event: OnEvent = silent,
) -> dict[str, Any]:
    """Measure, and write bench.json to ``out`` if given. pfl_python: the interpreter of an environment that pfl and
    torch are installed in, to measure pfl too.

    Raises:
        ScenarioError: no such device here as the plan names.
        FlPeelError: a data set that is not there, or a failed engine.
    """
    device = plan.device
    require_device(device)
    out = given_folder(out)
    if out is not None:
        check_out(out, writes=["bench.json"])
    free = psutil.virtual_memory().available
    if max(plan.sizes, default=0) >= MILLION and free < FREE_BYTES:
        raise EngineError(
            f"bench: a million devices take up to {FREE_BYTES >> 30} GiB of memory, and {free / 2**30:.1f} GiB are "
            "free; stop other programs or use --quick"
        )
    for name in (*(() if Path(plan.data).is_dir() else (plan.data,)), *((MAIN_JOB,) if plan.main_job_runs else ())):
        require_dataset(name, Path(data_dir) if data_dir else None)
    pfl = None if pfl_python is None else pfl_interpreter(pfl_python)
    figures: dict[str, Any] = {"environment": _environment(device), "device": device, "plan": vars(plan)}
    with run_folder() as folder:
        (folder / "full.yaml").write_text(FULL_TABLES)
        base = bench_scenario(plan, plan.data, str(folder / "full.yaml"))
        paths = RunPaths(str(data_dir or ""), str(folder / "main"))

        def server(grid: Grid, scenario: Scenario, paths: RunPaths, on_server_event: OnEvent) -> dict[str, Any]:
            return _through_flower(grid, scenario, paths, plan, folder, on_server_event)

        figures |= simulated(base, paths, on_event, server=server)
        on_event(Event("bench", 1, 3, f"{figures['devices_per_second']:,.0f} devices/s"))
        figures |= stock_flower_rate(base, paths, plan, folder / "stock", on_event)
        figures["speedup_vs_stock"] = figures["devices_per_second"] / figures["stock_flower_devices_per_second"]
        figures["speedup_vs_stock_same_devices"] = (
            figures["same_devices_per_second"] / figures["stock_flower_devices_per_second"]
        )
        on_event(Event("bench", 2, 3, f"{figures['speedup_vs_stock']:,.0f} times stock Flower"))
        if device != "cpu":
            figures |= compared_metrics(base, paths, device)
        if pfl is not None:
            figures |= pfl_rate(pfl, base, paths, plan, folder / "pfl")
            figures["speedup_vs_pfl"] = figures["devices_per_second"] / figures["pfl_devices_per_second"]
    if plan.main_job_runs:
        with run_folder() as folder:
            words = ["run", MAIN_JOB, "--fresh", "--out", str(folder / "run"), "--set", f"engine.device={device}"]
            words += ["--data-dir", str(data_dir)] if data_dir else []
            figures["main_job_seconds"] = typed_seconds(
                [sys.executable, "-m", "simulations.cli.main", *words], plan.main_job_runs
            )
    on_event(Event("bench", 3, 3))
    if out is not None:
        write_results(out, {"bench.json": json_bytes(figures)})
    return figures


def _environment(device: str) -> dict[str, Any]:
    gpu = {"gpu": torch.cuda.get_device_name(torch_device(device))} if is_gpu(device) else {}
    return gpu | {
        "cpus": psutil.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average_before": psutil.getloadavg()[0],
    }


def _through_flower(
    grid: Grid, scenario: Scenario, paths: RunPaths, plan: BenchPlan, folder: Path, on_event: OnEvent
) -> dict[str, Any]:
    """Measure all that PEEL's engine does, on one set of nodes."""
    run = Run.connect(grid, scenario, paths, on_event)
    figures = _rounds(run, plan)
    if plan.flagship is not None:
        figures["flagship"] = _flagship(run, plan)
    figures["scaling"] = []
    for number, size in enumerate(sorted(plan.sizes)):
        one = _population(run, plan, size, folder)
        figures["scaling"].append(
            {key: one[key] for key in ("devices", "seconds_per_device", "user_groups", "round_seconds")}
        )
        if number == len(plan.sizes) - 1:
            figures["million"] = one
    if figures["scaling"]:
        costs = [one["seconds_per_device"] for one in figures["scaling"]]
        figures["scaling_last_to_first"] = costs[-1] / costs[0]
    return figures


def _rounds(run: Run, plan: BenchPlan) -> dict[str, Any]:
    """Measure rounds of all devices, what of them the loop takes alone, and rounds of a few."""
    grid, scenario, paths = run.grid, run.scenario, run.paths
    world = make_context(run)
    strategy = world.strategy()
    num_devices = len(strategy.members.devices)
    best_s, stages, seconds = strategy.timed(grid, plan.rounds)
    figures: dict[str, Any] = {
        "devices": num_devices,
        "devices_per_second": num_devices / best_s,
        "devices_per_second_median": num_devices / float(np.median(seconds)),
        "round_seconds": seconds,
        "message_bytes": strategy.rounds[-1].message_bytes,
        "stages": stages,
        **_beside_training_alone(world, strategy, best_s, stock_flower.HOW, None),
    }
    share = min(1.0, plan.stock_devices / num_devices)
    # as stock Flower has it: the same 1,000 devices, one table for all of them
    alone = bench_scenario(
        plan, plan.data, str(scenario.fleet), f"refinement.cohort_share={share}", "user_groups.count=1"
    )
    other_paths = RunPaths(paths.data_dir, f"{paths.run_dir}-one-table")
    one_table = make_context(replace(run, scenario=alone, paths=other_paths)).strategy()
    alone_s, _, _ = one_table.timed(grid, plan.rounds)
    figures["same_devices_per_second"] = one_table.rounds[-1].devices / alone_s
    return figures


def _population(run: Run, plan: BenchPlan, size: int, folder: Path) -> dict[str, Any]:
    """Write a population, have it join, and run rounds. ``seconds``: everything up to the end of the first round."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        data = folder / f"population-{size}"
        Population(0, size, plan.num_items, plan.user_groups).write(data)
        written = time.perf_counter()
        # user groups of one size, so that a larger population has more of them
        num_groups = max(1, round(plan.user_groups * size / max(plan.sizes)))
        scenario = bench_scenario(plan, str(data), str(run.scenario.fleet), f"user_groups.count={num_groups}")
        paths = RunPaths("", str(folder / f"run-{size}"))
        world = make_context(replace(run, scenario=scenario, paths=paths))
        strategy = world.strategy()
        joined = time.perf_counter()
        rounds = max(1, min(plan.rounds, 200_000 // size))
        best_s, stages, seconds = strategy.timed(run.grid, rounds)
        first_s = strategy.rounds[0].seconds
    best_s = min(best_s, first_s)
    run.on_event(Event("bench", 1, 3, f"{size:,} devices: {size / best_s:,.0f} devices/s"))
    return {
        "devices": strategy.rounds[-1].devices,
        "seconds_per_device": best_s / size,
        "round_seconds": [first_s, *seconds],
        "seconds": joined - start + first_s,
        "peak_rss_bytes": memory.peak_bytes,
        "items": plan.num_items,
        "user_groups": num_groups,
        "train_interactions": device_splits(scenario, "", "").train.num_interactions,
        "stages": {"write_population": written - start, "join": joined - written, **stages},
    }


def _beside_training_alone(
    context: BenchContext, strategy: PeelStrategy, round_s: float, how: LocalTraining, fleet: Fleet | None
) -> dict[str, float]:
    """Measure what of a round the compiled loop takes by itself, without messages, on as many cores as there are nodes:
    over all devices, group after group, the best of two each. fleet: with budgets; None: every device has the whole
    table.
    """
    train = device_splits(context.run.scenario, context.run.paths.data_dir, context.run.paths.run_dir).train
    table, users = context.prepared.pretrained.items, context.prepared.pretrained.users
    devices, seconds = strategy.members.devices, 0.0
    scenario, layout = strategy.scenario, context.prepared.layout
    whole = np.full(len(devices), np.iinfo(np.int64).max)
    budgets = FleetBudgets(fleet, scenario.seed, devices, layout.full_table_bytes).at(1) if fleet else whole
    for group, popularity in enumerate(context.popularity):
        here = np.flatnonzero(strategy.members.groups == group)
        if not len(here):
            continue
        members, ceiling = devices[here], int(strategy.members.ceilings[group])
        ranked = rank_blocks(layout, "int8", popularity, table, ceiling)
        work = LocalWork(
            ranked,
            ranked.cutoffs(budgets[here]),
            users[members],
            train.select(members),
            device_seeds(0, "bench", devices=members),
            how,
        )
        seconds += min(repeat(partial(train_group, work), number=1, repeat=2))
    alone_s = seconds / scenario.engine.nodes
    return {"training_alone_seconds": alone_s, "round_to_training_alone": round_s / alone_s}


def _flagship(run: Run, plan: BenchPlan) -> dict[str, Any]:
    """Rounds of a scenario that ships, and what of them the training loop takes alone."""
    scenario = flagship_scenario(plan)
    paths = replace(run.paths, run_dir=f"{run.paths.run_dir}-flagship")
    Path(paths.run_dir).mkdir()
    world = make_context(replace(run, scenario=scenario, paths=paths))
    strategy = world.strategy()
    best_s, stages, seconds = strategy.timed(run.grid, plan.rounds)
    devices = strategy.members.devices
    how = scenario.refinement.local.config(strategy.federation.temperature)
    run.on_event(Event("bench", 1, 3, f"{scenario.name}: {len(devices) / best_s:,.0f} devices/s"))
    return {
        "scenario": scenario.name,
        "devices": len(devices),
        "user_groups": scenario.user_groups.count,
        "devices_per_second": len(devices) / best_s,
        "devices_per_second_median": len(devices) / float(np.median(seconds)),
        "round_seconds": seconds,
        "stages": stages,
        **_beside_training_alone(world, strategy, best_s, how, load_fleet(scenario.fleet)),
    }


# ---- Does a GPU give the figures of the processor? The same round on both, and what devices then recommend


TOP_N = 20
MOST_DEVICES = 4000
"""Devices of the comparison, drawn where there are more: it is no measure of speed."""


def compared_metrics(scenario: Scenario, paths: RunPaths, device: str) -> dict[str, Any]:
    """One round of devices, from tables that know something of their tastes, on ``cpu`` and on ``device``.

    All are one user group and hold the whole table in int8. ``metrics``: means over devices with test items, by where;
    ``metrics_difference``: the largest absolute difference between the two.
    """
    splits = device_splits(scenario, paths.data_dir, paths.run_dir)
    everybody = np.arange(splits.num_users)
    share = min(1.0, MOST_DEVICES / max(splits.num_users, 1))
    devices = sample_cohort(scenario.seed, 1, everybody, share)
    splits = splits.select(devices)
    num_devices, num_items, train = len(devices), splits.num_items, splits.train
    pretrained = pretrain(train, num_items, scenario.pretraining.config(), seed=scenario.seed)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), scenario.pretraining.embedding_dim, 1)
    weights = train.popularity(num_items).astype(np.float64)
    sent = rank_blocks(layout, "int8", weights, pretrained.items)
    everything = np.full(num_devices, len(sent.blocks), np.int64)
    seeds = device_seeds(scenario.seed, "bench", devices=devices)
    how = scenario.refinement.local.config(pretrained.temperature)
    seen = train.merged(splits.validation)
    metrics: dict[str, dict[str, float]] = {}
    for where in ("cpu", device):
        users, update = train_group(LocalWork(sent, everything, pretrained.users, train, seeds, how, where))
        table = pretrained.items.copy()
        table[sent.items] += (update.sums / np.maximum(update.touched, 1) / FIXED_POINT).astype(np.float32)
        new = rank_blocks(layout, "int8", weights, table)
        per_device = Ranker(new, TOP_N, where).evaluate(everything[:, None], users, seen, splits.test)
        recalls, ndcgs = (metric[:, 0] for metric in per_device)
        counted = splits.test.counts() > 0
        recall, ndcg = MetricSums.from_devices(np.zeros(num_devices, np.int64), 1, recalls, ndcgs, counted).mean()
        metrics[where] = {f"recall@{TOP_N}": float(recall[0]), f"ndcg@{TOP_N}": float(ndcg[0])}
    differences = [abs(metrics[device][name] - value) for name, value in metrics["cpu"].items()]
    return {"metrics": metrics, "metrics_difference": max(differences)}


# ---- Time that a user waits


def typed_seconds(words: Sequence[str], times: int) -> dict[str, float]:
    """Best seconds of a command typed as a user types it: until its nodes answer, and until it has ended. times: runs
    of which the best counts, as what else the machine does can only slow one, and the first may have to pretrain.

    Raises:
        EngineError: it fails, or ends before nodes answer.
    """
    runs = [_typed(words) for _ in range(times)]
    return {"first_answer": min(first for first, _ in runs), "report": min(whole for _, whole in runs)}


def _typed(words: Sequence[str]) -> tuple[float, float]:
    start, first_s = time.perf_counter(), None
    with subprocess.Popen(
        words,
        env=own_environment() | {"COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as running:
        assert running.stderr is not None, "it was asked for"
        line = ""
        for line in running.stderr:
            if first_s is None and re.search(r"start: \d+ nodes", line):
                first_s = time.perf_counter() - start
    if running.returncode or first_s is None:
        raise EngineError(f"bench: a run ended with exit code {running.returncode}: {line.strip()}")
    return first_s, time.perf_counter() - start


DEVICES_PER_GROUP = 62_500
"""Devices per user group, as for a million in 16 groups: what a node holds at a time is of one group, whatever the
population.
"""
BASE_BYTES, DEVICE_BYTES, DISK_BYTES = 3 << 30, 550, 1700
"""Memory that must be free, besides and for each device; disk for each device. With less, Ray would end workers, of
other runs too."""


@dataclass
class _Clock:
    """Seconds between two looks."""

    before: float

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self.before = now - self.before, now
        return passed


def large(size: int, out: str | Path | None = None, *, on_event: OnEvent = silent) -> dict[str, Any]:
    """Write a population, have it join, and run one round; population.json goes to ``out`` if given.

    Raises:
        EngineError: memory or disk is short, or the engine failed.
        FlPeelError: ``out`` cannot be written.
    """
    out = given_folder(out)
    if out is not None:
        check_out(out, writes=["population.json"])
    _require_room(size)
    groups = max(1, round(size / DEVICES_PER_GROUP))
    plan = BenchPlan(user_groups=groups, rounds=1, sizes=())
    clock = _Clock(time.perf_counter())
    with run_folder() as folder, PeakMemory() as memory:
        scenario = population_scenario(plan, folder, Population(0, size, plan.num_items, groups))
        stages = {"write_population": clock.lap()}
        on_event(Event("bench", 1, 3, f"{size:,} devices written"))
        paths = RunPaths("", str(folder / "run"))
        round_s, devices = simulated(scenario, paths, on_event, server=partial(_round, clock, stages))
    figures = {
        "devices": devices,
        "items": plan.num_items,
        "user_groups": groups,
        "seconds": sum(stages[name] for name in ("write_population", "join", "round")),
        "round_seconds": round_s,
        "devices_per_second": devices / round_s,
        "peak_rss_bytes": memory.peak_bytes,
        "stages": stages,
        "environment": {"cpus": psutil.cpu_count(), "load_average_after": psutil.getloadavg()[0]},
    }
    if out is not None:
        write_results(out, {"population.json": json_bytes(figures)})
    return figures


def _round(
    clock: _Clock, stages: dict[str, float], grid: Grid, scenario: Scenario, paths: RunPaths, on_event: OnEvent
) -> tuple[float, int]:
    stages["engine"] = clock.lap()
    strategy = make_context(Run.connect(grid, scenario, paths, on_event)).strategy()
    stages["join"] = clock.lap()
    on_event(Event("bench", 2, 3, f"{len(strategy.members.devices):,} devices joined"))
    strategy.run_whole(grid, 1)
    stages["round"] = clock.lap()
    (record,) = strategy.rounds
    on_event(Event("bench", 3, 3, f"{record.devices / record.seconds:,.0f} devices/s"))
    return record.seconds, record.devices


def _require_room(size: int) -> None:
    """Refuse to start what memory or the temporary folder cannot hold.

    Raises:
        EngineError: naming what is needed and what is there.
    """
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free
    for what, needed, free, remedy in (
        ("memory", BASE_BYTES + DEVICE_BYTES * size, memory, "stop other programs, or make the population smaller"),
        (f"disk in {tempfile.gettempdir()}", DISK_BYTES * size, disk, "set TMPDIR to where there is more"),
    ):
        if free < needed:
            raise EngineError(
                f"bench: {size:,} devices take up to {needed / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are "
                f"free; {remedy}"
            )
