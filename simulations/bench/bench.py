"""How fast is the engine? Devices per second of federated rounds through Flower, against stock Flower, up to a million.

Every figure is measured here and now, in one go on one machine; ``docs/engine.md`` says what each one covers. A round
is timed from the moment the server starts to choose and pack blocks until its tables are updated, messages included.
"Best" is the best of several rounds after one that is not counted: what else the machine does can only slow a round.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from timeit import repeat
from typing import Any

import numpy as np
import psutil
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from clients.fleet.fleet import Fleet, FleetBudgets, load_fleet
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, pack_ranking, rank_blocks
from fl_peel.data.datasets import Population
from fl_peel.data.interactions import Splits, UserItems
from fl_peel.device_storage import device_splits
from fl_peel.errors import EngineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.kernels import FIXED_POINT
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.packages import own_environment
from fl_peel.pretraining.central_training import PretrainedEmbeddings, pretrain
from fl_peel.pretraining.clusters import UserGroups
from fl_peel.randomness import device_seeds, rng_for
from fl_peel.ranking.top import MetricSums, Ranker
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining, is_gpu, require_device, torch_device
from fl_peel.training.group import train_group
from fl_peel.training.update import LocalWork
from fl_peel.weighting.block_statistics import BlockStatistics
from simulations.bench import stock_flower
from simulations.engine.engine import PeakMemory, simulated
from simulations.engine.inputs import check_out, given_folder, require_dataset, run_folder
from simulations.report.result_files import json_bytes, write_results
from simulations.scenario_files import load_scenario
from strategies.groups.state import ServerOptimizer, UserGroupState, empty_tables, known_bytes, put_once, shelf_for
from strategies.rounds.strategy import PeelStrategy, sample_cohort
from strategies.run.prepare import CentralStage1Outcome
from strategies.run.refinement import Refiner, join, put_together
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths

MAIN_JOB = "ml-100k"
"""The scenario, and the data set, of the run that is timed whole."""
MILLION = 1_000_000


FULL_TABLES = """\
description: Devices that hold the whole table at block precision and are always there, so that every train item counts.
profiles:
  - name: full
    memory: {table_share: 1.0}
    budget: {process: constant}
"""


QUICK_ROUNDS, QUICK_MAIN_JOB_RUNS, QUICK_STOCK_DEVICES = 2, 2, 200
"""Timed rounds of each kind, runs of the main job, and nodes of the plain Flower app, where figures need not be the
best there are."""


@dataclass(frozen=True)
class BenchPlan:
    """The plan of a benchmark. data: a named data set, or a folder that a population was written to; sizes: devices of
    the populations for the scaling figures, over ``num_items`` items; rounds: timed rounds of each kind; flagship: the
    scenario whose own rounds are timed too, on the same data; main_job_runs: runs of the main job,
    typed as a user types it; device: as ``engine.device``.
    """

    data: str = "gowalla"
    embedding_dim: int = 64
    user_groups: int = 16
    rounds: int = 6
    stock_devices: int = 1000
    pfl_devices: int = 500
    sizes: tuple[int, ...] = (10_000, 100_000, MILLION)
    num_items: int = 100_000
    main_job_runs: int = 3
    flagship: str | None = "gowalla"
    nodes: int = 2
    device: str = "cpu"

    def quick(self) -> BenchPlan:
        """Return a plan without synthetic populations, with fewer rounds and a plain Flower app of fewer devices."""
        stock_devices = min(self.stock_devices, QUICK_STOCK_DEVICES)
        runs = min(self.main_job_runs, QUICK_MAIN_JOB_RUNS)
        return replace(self, sizes=(), rounds=QUICK_ROUNDS, main_job_runs=runs, stock_devices=stock_devices)


def bench_scenario(plan: BenchPlan, data: str, fleet: str, *more: str) -> Scenario:
    """The scenario that rounds are timed on. data: a named data set or a folder; more: overrides."""
    how = stock_flower.HOW
    return load_scenario(
        "ml-100k",
        [
            *_source(data),
            f"fleet={fleet}",
            f"pretraining.embedding_dim={plan.embedding_dim}",
            "pretraining.epochs=0",
            f"user_groups.count={plan.user_groups}",
            "selector=popularity",
            "controller.every=1000000",
            f"refinement.rounds={plan.rounds + 1}",
            f"refinement.local.loss={how.loss}",
            f"refinement.local.num_negatives={how.num_negatives}",
            f"refinement.local.batch_size={how.batch_size}",
            f"refinement.local.epochs={how.epochs}",
            f"refinement.local.learning_rate={how.learning_rate}",
            f"refinement.local.user_learning_rate={how.user_learning_rate}",
            "refinement.local.temperature=1",
            "evaluation.budgets=[0.01]",
            "evaluation.selectors=[popularity]",
            "evaluation.bootstrap=0",
            f"engine.nodes={plan.nodes}",
            f"engine.device={plan.device}",
            *more,
        ],
    )


def flagship_scenario(plan: BenchPlan) -> Scenario:
    """Rounds as a scenario that ships has them: its user groups, fleet, losses, negatives. Tables are drawn."""
    assert plan.flagship is not None
    return load_scenario(
        plan.flagship,
        [
            *_source(plan.data),
            f"pretraining.embedding_dim={plan.embedding_dim}",
            "pretraining.epochs=0",
            "selector=popularity",
            f"refinement.rounds={plan.rounds + 1}",
            "refinement.acceptance.rule=always",
            f"engine.nodes={plan.nodes}",
            f"engine.device={plan.device}",
        ],
    )


def _source(data: str) -> list[str]:
    path = Path(data)
    return ["data.name=null", f"data.path={data}"] if path.is_dir() else [f"data.name={data}"]


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
    out = _checked_out(out, "bench.json")
    if plan.sizes:
        _require_room(max(plan.sizes))
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
    scenario, paths = run.scenario, run.paths
    figures = _timed_rounds(run, plan, stock_flower.HOW, None)
    share = min(1.0, plan.stock_devices / figures["devices"])
    # as stock Flower has it: the same 1,000 devices, one table for all of them
    alone = bench_scenario(
        plan, plan.data, str(scenario.fleet), f"refinement.cohort_share={share}", "user_groups.count=1"
    )
    other_paths = RunPaths(paths.data_dir, f"{paths.run_dir}-one-table")
    one_table = make_context(replace(run, scenario=alone, paths=other_paths)).strategy()
    alone_s, _, _ = one_table.timed(run.grid, plan.rounds)
    figures["same_devices_per_second"] = one_table.rounds[-1].devices / alone_s
    return figures


def _timed_rounds(run: Run, plan: BenchPlan, how: LocalTraining | None, fleet: Fleet | None) -> dict[str, Any]:
    """Measure rounds of the run's scenario, and what of them the training loop takes alone. how: None for the
    scenario's own; fleet: as for :func:`_beside_training_alone`.
    """
    context = make_context(run)
    strategy = context.strategy()
    num_devices = len(strategy.members.devices)
    best_s, stages, seconds = strategy.timed(run.grid, plan.rounds)
    how = how or run.scenario.refinement.local.config(strategy.federation.temperature)
    return {
        "devices": num_devices,
        "user_groups": run.scenario.user_groups.count,
        "devices_per_second": num_devices / best_s,
        "devices_per_second_median": num_devices / float(np.median(seconds)),
        "round_seconds": seconds,
        "message_bytes": strategy.rounds[-1].message_bytes,
        "stages": stages,
        **_beside_training_alone(context, strategy, best_s, how, fleet),
    }


def _population(run: Run, plan: BenchPlan, size: int, folder: Path) -> dict[str, Any]:
    """Write a population, have it join, and run rounds. ``seconds``: everything up to the end of the first round."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        data = folder / f"population-{size}"
        Population(0, size, plan.num_items, plan.user_groups).write(data)
        written = time.perf_counter()
        run.on_event(Event("bench", 1, 3, f"{size:,} devices written"))
        # user groups of one size, so that a larger population has more of them
        num_groups = max(1, round(plan.user_groups * size / max(plan.sizes)))
        scenario = bench_scenario(plan, str(data), str(run.scenario.fleet), f"user_groups.count={num_groups}")
        paths = RunPaths("", str(folder / f"run-{size}"))
        strategy = make_context(replace(run, scenario=scenario, paths=paths)).strategy()
        joined = time.perf_counter()
        rounds = min(plan.rounds, max(1, 200_000 // size))
        best_s, stages, _ = strategy.timed(run.grid, rounds)
        seconds = [record.seconds for record in strategy.rounds]
    best_s = min(best_s, seconds[0])
    run.on_event(Event("bench", 1, 3, f"{size:,} devices: {size / best_s:,.0f} devices/s"))
    return {
        "devices": strategy.rounds[-1].devices,
        "devices_per_second": size / best_s,
        "seconds_per_device": best_s / size,
        "round_seconds": seconds,
        "seconds": joined - start + seconds[0],
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
    figures = _timed_rounds(replace(run, scenario=scenario, paths=paths), plan, None, load_fleet(scenario.fleet))
    run.on_event(Event("bench", 1, 3, f"{scenario.name}: {figures['devices_per_second']:,.0f} devices/s"))
    return {"scenario": scenario.name, **figures}


# ---- The same training on a plain Flower app and on pfl, to compare with


def stock_flower_rate(
    base: Scenario, paths: RunPaths, plan: BenchPlan, folder: Path, on_event: OnEvent
) -> dict[str, Any]:
    """The same training as a plain Flower app, on Flower's own engine: a node per device, a message per device."""
    splits = device_splits(base, paths.data_dir, paths.run_dir)
    chosen, table = rivals_devices(base, splits, plan, folder, plan.stock_devices)
    layout = BlockLayout(np.arange(splits.num_items, dtype=np.int32), plan.embedding_dim, 1)
    blocks = pack_ranking(layout, "int8", splits.train.popularity(splits.num_items).astype(np.float64), table, None)
    ranked = RankedBlocks.unpack(layout, "int8", blocks)

    def server(grid: Grid, scenario: Scenario, paths: RunPaths, on_server_event: OnEvent) -> dict[str, Any]:
        def one_round(server_round: int, nodes: list[int]) -> float:
            start = time.perf_counter()
            content = stock_flower.train_content(folder, base.seed, server_round, splits.num_items, blocks)
            messages = [Message(content, dst_node_id=node, message_type="train") for node in nodes]
            replies = list(grid.send_and_receive(messages, timeout=base.engine.reply_timeout_s))
            failed = [reply for reply in replies if reply.has_error()]
            if failed or len(replies) < len(nodes):
                raise EngineError(f"stock Flower: {len(nodes) - len(replies) + len(failed)} of {len(nodes)} failed")
            stock_flower.mean_of(splits.num_items, ranked, replies)
            return time.perf_counter() - start

        while len(nodes := list(grid.get_node_ids())) < len(chosen):
            time.sleep(0.1)
        one_round(1, nodes[: 2 * plan.nodes])  # loads the compiled loops
        seconds = one_round(2, nodes)
        return {
            "stock_flower_devices_per_second": len(nodes) / seconds,
            "stock_flower_devices": len(nodes),
            "stock_flower_seconds": seconds,
        }

    engine = base.engine.model_copy(update={"nodes": len(chosen), "device": "cpu", "backend": "ray"})
    scenario = base.model_copy(update={"engine": engine})
    return simulated(scenario, paths, on_event, server=server, client=f"{stock_flower.__name__}:app")


def rivals_devices(
    base: Scenario, splits: Splits, plan: BenchPlan, folder: Path, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Lay ``count`` sampled devices where a rival finds them: their numbers (N,), and a drawn item table (I, d)."""
    chosen = sample_cohort(base.seed, 1, np.arange(splits.num_users), min(1.0, count / splits.num_users))
    rng = rng_for(0, "bench", "stock")
    users = rng.standard_normal((len(chosen), plan.embedding_dim), np.float32) * np.float32(0.2)
    table = rng.standard_normal((splits.num_items, plan.embedding_dim), np.float32) * np.float32(0.2)
    stock_flower.save_devices(folder, users, splits.train.select(chosen))
    return chosen, table


def pfl_interpreter(python: str | Path) -> str:
    """The interpreter itself.

    Raises:
        EngineError: it cannot be started, or has no pfl with torch.
    """
    try:
        process = subprocess.run([str(python), "-c", "import pfl.model.pytorch"], capture_output=True, text=True)
    except OSError as error:
        raise EngineError(f"--pfl-python {python}: cannot be started ({error.strerror}); name a Python") from error
    if process.returncode:
        last = _last_line(process.stderr)
        raise EngineError(f"--pfl-python {python}: {last}; install pfl and torch there: pip install 'pfl[pytorch]'")
    return str(python)


def _last_line(text: str) -> str:
    """Return the last line of a failed Python process: its error."""
    return (text.strip().splitlines() or ["no message"])[-1]


def pfl_rate(python: str, base: Scenario, paths: RunPaths, plan: BenchPlan, folder: Path) -> dict[str, Any]:
    """The same training under pfl, in its own environment; see :mod:`simulations.bench.pfl_app`.

    Raises:
        EngineError: it failed there.
    """
    splits = device_splits(base, paths.data_dir, paths.run_dir)
    _, table = rivals_devices(base, splits, plan, folder, plan.pfl_devices)
    np.save(folder / "table.npy", table)
    how = stock_flower.HOW
    script = Path(__file__).with_name("pfl_app.py")
    command = [python, str(script), str(folder), str(how.batch_size), str(how.learning_rate)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise EngineError(f"pfl: {_last_line(done.stderr)}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "pfl_devices_per_second": answer["devices"] / answer["seconds"],
        "pfl_devices": answer["devices"],
        "pfl_version": answer["version"],
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


def large(size: int, out: str | Path | None = None, *, on_event: OnEvent = silent) -> dict[str, Any]:
    """Write a population, have it join, and run one round; population.json goes to ``out`` if given.

    Raises:
        EngineError: memory or disk is short, or the engine failed.
        FlPeelError: ``out`` cannot be written.
    """
    out = _checked_out(out, "population.json")
    _require_room(size)
    plan = BenchPlan(user_groups=max(1, round(size / DEVICES_PER_GROUP)), rounds=0, sizes=(size,))
    with run_folder() as folder:
        (folder / "full.yaml").write_text(FULL_TABLES)
        base = bench_scenario(plan, MAIN_JOB, str(folder / "full.yaml"))

        def server(grid: Grid, scenario: Scenario, paths: RunPaths, on_server_event: OnEvent) -> dict[str, Any]:
            return _population(Run.connect(grid, scenario, paths, on_server_event), plan, size, folder)

        figures = simulated(base, RunPaths("", str(folder / "main")), on_event, server=server)
    figures["environment"] = {"cpus": psutil.cpu_count(), "load_average_after": psutil.getloadavg()[0]}
    if out is not None:
        write_results(out, {"population.json": json_bytes(figures)})
    return figures


def _checked_out(out: str | Path | None, name: str) -> Path | None:
    """Return the folder that a file of this name is written to, None where it is not."""
    folder = given_folder(out)
    if folder is not None:
        check_out(folder, writes=[name])
    return folder


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


# ---- What rounds are run on: devices with drawn embeddings and planted groups, and a strategy with a clock


DRAWN = 50_000
"""Embeddings that are drawn at a time."""
MOST_IN_MEMORY = 64 << 20
"""Bytes of all devices' embeddings that the server keeps in memory until they have joined."""


class TimedStrategy(PeelStrategy):
    """PeelStrategy with a clock at the seams of a round."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.marks: list[dict[str, float]] = []
        self._mark = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Time what the server does before nodes have all they need."""
        mark = dict.fromkeys(("server_select_and_pack", "nodes_and_messages", "server_aggregate"), 0.0)
        self.marks.append(mark)
        self._mark = time.perf_counter()
        yield from _timed(super().configure_train(server_round, arrays, config, grid), mark, "server_select_and_pack")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Time the nodes, messages included, and what the server does then; packing and adding up are left out."""
        mark, before = self.marks[-1], time.perf_counter()
        waited = {"s": 0.0}
        answer = super().aggregate_train(server_round, _timed(replies, waited, "s"))
        end = time.perf_counter()
        mark["server_aggregate"] = end - before - waited["s"]
        mark["nodes_and_messages"] = end - self._mark - mark["server_aggregate"] - mark["server_select_and_pack"]
        return answer

    def run_whole(self, grid: Grid, num_rounds: int) -> None:
        """Run so many rounds.

        Raises:
            EngineError: a node failed, and so a round was not whole.
        """
        self.start(grid, ArrayRecord(), num_rounds=num_rounds, timeout=self.scenario.engine.reply_timeout_s)
        if any(record.failures for record in self.rounds):
            raise EngineError("bench: a node failed in a timed round; look for its error in the log above")

    def timed(self, grid: Grid, rounds: int) -> tuple[float, dict[str, float], list[float]]:
        """Run one round that is not counted and then ``rounds``: best seconds, its stages, all seconds. With none, the
        first one counts.

        Raises:
            EngineError: as for :meth:`run_whole`.
        """
        self.run_whole(grid, rounds + 1)
        seconds = [record.seconds for record in self.rounds]
        first = min(1, rounds)
        best = first + int(np.argmin(seconds[first:]))
        return seconds[best], self.marks[best], seconds[first:]


@dataclass
class BenchContext:
    """A population of devices at work: what the server needs to run rounds on them."""

    run: Run
    prepared: CentralStage1Outcome
    popularity: NDArray[np.float32]
    """(G, I), what ranks blocks."""

    def strategy(self) -> TimedStrategy:
        """Have the devices join; a strategy to run rounds with."""
        run = self.run
        members = join(run, self.prepared)
        layout, table = self.prepared.layout, self.prepared.pretrained.items
        shelf = shelf_for(len(self.popularity) * known_bytes(layout.num_blocks), run.paths.run_dir)
        energy = {"energy": np.einsum("id,id->i", table, table)}
        shared = put_once(shelf, energy | BlockStatistics.unknown(layout.num_blocks))
        tables = empty_tables(len(self.popularity), (layout.num_items, layout.embedding_dim), run.paths.run_dir)
        states = []
        for mine, popularity in zip(tables, self.popularity, strict=True):
            mine[:] = table
            state = UserGroupState(
                mine,
                BlockStatistics(popularity, popularity, popularity, **shared),
                ServerOptimizer("sgd", 1.0),
                popularity.astype(np.float64),
                np.ones(layout.num_blocks),
                shelf,
            )
            state.drop_pages()
            states.append(state)
        federation = Refiner(run, self.prepared).federation(members, states)
        return put_together(TimedStrategy, federation, None, on_event=run.on_event)


def make_context(run: Run) -> BenchContext:
    """Devices of a data set with drawn embeddings and planted groups."""
    scenario, paths = run.scenario, run.paths
    splits = device_splits(scenario, paths.data_dir, paths.run_dir)
    num_users, num_items, dim = splits.num_users, splits.num_items, scenario.pretraining.embedding_dim
    num_groups = scenario.user_groups.count
    rng = rng_for(0, "bench", num_users)
    centroids = rng.standard_normal((num_groups, dim), np.float32) * np.float32(0.2)
    # of a population, its own groups; of a data set, groups drawn in the same way
    assignment = Population(0, num_users, num_items, num_groups, noise=0.0).groups(np.arange(num_users))
    Path(paths.run_dir).mkdir(parents=True, exist_ok=True)
    (users,) = empty_tables(1, (num_users, dim), paths.run_dir, most_in_memory=MOST_IN_MEMORY)
    for start in range(0, num_users, DRAWN):
        part = users[start : start + DRAWN]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= np.float32(0.05)
        part += centroids[assignment[start : start + DRAWN]]
        drop_pages_now(users)
    items = rng.standard_normal((num_items, dim), np.float32) * np.float32(0.2)
    layout = BlockLayout(np.arange(num_items, dtype=np.int32), dim, 1)
    popularity = np.stack(
        [_popularity(splits.train, np.flatnonzero(assignment == group), num_items) for group in range(num_groups)]
    )
    splits.drop_pages()
    nothing = UserItems(np.zeros(num_users + 1, np.int64), np.zeros(0, np.int32))
    prepared = CentralStage1Outcome(
        layout,
        1.0,
        nothing,
        np.ones(num_users, np.bool_),
        PretrainedEmbeddings(users, items, 1.0),
        UserGroups(assignment, centroids),
    )
    return BenchContext(run, prepared, popularity)


def _popularity(train: UserItems, members: NDArray[np.int64], num_items: int) -> NDArray[np.float32]:
    """Interactions per device and item in a group, (I,), from at most 5,000 of its devices."""
    devices = members[:5000]
    return (train.select(devices).popularity(num_items) / max(len(devices), 1)).astype(np.float32)


def _timed(messages: Iterable[Message], seconds: dict[str, float], name: str) -> Iterator[Message]:
    """Messages as they come, and how long they take to come."""
    source = iter(messages)
    while True:
        start = time.perf_counter()
        message = next(source, None)
        seconds[name] += time.perf_counter() - start
        if message is None:
            return
        yield message
