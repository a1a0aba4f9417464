"""How fast is the engine? Devices per second of federated rounds through Flower, against stock Flower, up to a million.

Every figure is measured here and now, in one go on one machine; ``docs/engine.md`` says what each one covers. A round
is timed from the moment the server starts to choose and pack blocks until its tables are updated, messages included.
"Best" is the best of several rounds after one that is not counted: what else the machine does can only slow a round.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks import BlockLayout
from fl_peel.config import Scenario, load_scenario
from fl_peel.devices import device_splits
from fl_peel.errors import EngineError
from fl_peel.events import Event, OnEvent, silent
from fl_peel.interactions import Splits
from fl_peel.local_training import train_group
from fl_peel.population import Population
from fl_peel.processor import is_gpu, require_device, torch_device
from fl_peel.randomness import device_seeds, rng_for
from fl_peel.roots import own_root
from fl_peel.selection import ElasticEmbedding, RankedBlocks, pack_ranking, rank_blocks
from simulations import stock_flower
from simulations.bench_device import compared_metrics
from simulations.bench_world import World, make_world
from simulations.report_files import json_bytes, write_files
from simulations.runner import PeakMemory, run, run_folder, simulated
from strategies.nodes import Nodes
from strategies.peel import PeelStrategy
from strategies.sampling import sample_cohort
from strategies.server_app import Place, budget_bytes

MILLION = 1_000_000
FREE_BYTES = 10 << 30
"""What must be free for a million devices; with less, Ray would end workers, of other runs too."""
FULL_TABLES = """\
description: Devices that hold the whole table at block precision and are always there, so that every train item counts.
profiles:
  - name: full
    memory: {table_share: 1.0}
    budget: {process: constant}
"""


@dataclass(frozen=True)
class BenchPlan:
    """What is measured. data: a named data set, or a folder that a population was written to; sizes: devices of the
    populations for the scaling figures, over ``num_items`` items; rounds: timed rounds of each kind; device: as
    ``engine.device``.
    """

    data: str = "gowalla"
    embedding_dim: int = 64
    user_groups: int = 16
    rounds: int = 6
    stock_devices: int = 1000
    pfl_devices: int = 500
    sizes: tuple[int, ...] = (10_000, 100_000, MILLION)
    num_items: int = 100_000
    main_job: bool = True
    nodes: int = 2
    device: str = "cpu"


def bench(
    data_dir: str | Path,
    out: str | Path | None,
    *,
    device: str = "cpu",
    million: bool = True,
    stock_devices: int = 1000,
    pfl_python: str | Path | None = None,
    plan: BenchPlan | None = None,
    on_event: OnEvent = silent,
) -> dict[str, Any]:
    """Measure, and write bench.json to ``out`` if given. ``million``: also the populations up to a million devices;
    pfl_python: the interpreter of an environment that pfl and torch are installed in, to measure pfl too;
    device: where our cohorts train and rank, as ``engine.device``; rivals are on the CPU.

    Raises:
        ScenarioError: no such ``device`` here.
        FlPeelError: a data set that is not there, or a failed engine.
    """
    require_device(device)
    plan = replace(plan or BenchPlan(stock_devices=stock_devices), device=device)
    if not million:
        plan = replace(plan, sizes=())
    free = psutil.virtual_memory().available
    if max(plan.sizes, default=0) >= MILLION and free < FREE_BYTES:
        raise EngineError(
            f"bench: a million devices take up to {FREE_BYTES >> 30} GiB of memory, and {free / 2**30:.1f} GiB are "
            "free; stop other programs or use --no-million"
        )
    pfl = None if pfl_python is None else pfl_interpreter(pfl_python)
    found: dict[str, Any] = {"environment": _environment(device), "device": device, "plan": vars(plan)}
    with run_folder() as folder:
        (folder / "full.yaml").write_text(FULL_TABLES)
        base = _scenario(plan, plan.data, str(folder / "full.yaml"))
        place = Place(str(data_dir or ""), str(folder / "main"))

        def server(grid: Grid, scenario: Scenario, place: Place, told: OnEvent) -> dict[str, Any]:
            return _through_flower(grid, scenario, place, plan, folder, told)

        found |= simulated(base, place, on_event, server=server)
        on_event(Event("bench", 1, 3, f"{found['devices_per_second']:,.0f} devices/s"))
        found |= _stock(base, place, plan, folder / "stock", on_event)
        found["speedup_vs_stock"] = found["devices_per_second"] / found["stock_flower_devices_per_second"]
        found["speedup_vs_stock_same_devices"] = (
            found["same_devices_per_second"] / found["stock_flower_devices_per_second"]
        )
        on_event(Event("bench", 2, 3, f"{found['speedup_vs_stock']:,.0f} times stock Flower"))
        if device != "cpu":
            found |= compared_metrics(base, place, device)
        if pfl is not None:
            found |= _pfl(pfl, base, place, plan, folder / "pfl")
            found["speedup_vs_pfl"] = found["devices_per_second"] / found["pfl_devices_per_second"]
    if plan.main_job:
        start = time.perf_counter()
        run("ml-100k", overrides=[f"engine.device={device}"], data_dir=data_dir, on_event=on_event)
        found["main_job_seconds"] = time.perf_counter() - start
    on_event(Event("bench", 3, 3))
    if out is not None:
        write_files(Path(out), {"bench.json": json_bytes(found)})
    return found


def _environment(device: str) -> dict[str, Any]:
    gpu = {"gpu": torch.cuda.get_device_name(torch_device(device))} if is_gpu(device) else {}
    return gpu | {
        "cpus": psutil.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average_before": psutil.getloadavg()[0],
    }


def _scenario(plan: BenchPlan, data: str, fleet: str, *more: str) -> Scenario:
    how = stock_flower.HOW
    path = Path(data)
    source = ["data.name=null", f"data.path={data}"] if path.is_dir() else [f"data.name={data}"]
    return load_scenario(
        "ml-100k",
        [
            *source,
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
            f"engine.nodes={plan.nodes}",
            f"engine.device={plan.device}",
            *more,
        ],
    )


def _through_flower(
    grid: Grid, scenario: Scenario, place: Place, plan: BenchPlan, folder: Path, on_event: OnEvent
) -> dict[str, Any]:
    """All that PEEL's engine does, on one set of nodes."""
    nodes = Nodes.connect(grid, scenario.to_json(), root=str(own_root()), timeout_s=scenario.engine.reply_timeout_s)
    found = _rounds(grid, scenario, place, plan, nodes, on_event)
    found["scaling"] = []
    for number, size in enumerate(sorted(plan.sizes)):
        one = _population(grid, scenario, plan, size, folder, nodes, on_event)
        found["scaling"].append(
            {key: one[key] for key in ("devices", "seconds_per_device", "user_groups", "round_seconds")}
        )
        if number == len(plan.sizes) - 1:
            found["million"] = one
    if found["scaling"]:
        costs = [one["seconds_per_device"] for one in found["scaling"]]
        found["scaling_last_to_first"] = costs[-1] / costs[0]
    return found


def _rounds(
    grid: Grid, scenario: Scenario, place: Place, plan: BenchPlan, nodes: Nodes, on_event: OnEvent
) -> dict[str, Any]:
    """Rounds of all devices, of a few and of the default fleet; evaluation; one device by itself."""
    world = make_world(scenario, place, nodes, on_event)
    strategy = world.strategy()
    num_devices = len(strategy.members.devices)
    best_s, stages, seconds = strategy.timed(grid, plan.rounds)
    found: dict[str, Any] = {
        "devices": num_devices,
        "devices_per_second": num_devices / best_s,
        "devices_per_second_median": num_devices / float(np.median(seconds)),
        "round_seconds": seconds,
        "message_bytes": strategy.rounds[-1].message_bytes,
        "stages": stages,
    }
    budget = budget_bytes(world.prepared.layout, 0.01)
    found["evaluation_seconds"] = _best(lambda: strategy.evaluate([budget], precision="int8", selector="popularity"), 3)
    found["evaluation_full_tables_seconds"] = _best(
        lambda: strategy.evaluate([wire.UNLIMITED], precision="fp32", selector="popularity"), 1
    )
    found |= _on_device(world, strategy, budget)
    found["stages"] |= _training_alone(world, strategy)
    share = min(1.0, plan.stock_devices / num_devices)
    few = world.strategy(_scenario(plan, plan.data, str(scenario.fleet), f"refinement.cohort_share={share}"))
    few_s, _, _ = few.timed(grid, plan.rounds)
    found["same_devices_in_groups_per_second"] = few.rounds[-1].devices / few_s
    usual = world.strategy(_scenario(plan, plan.data, "default"))
    usual_s, _, _ = usual.timed(grid, plan.rounds)
    found["default_fleet_devices_per_second"] = usual.rounds[-1].devices / usual_s
    # as stock Flower has it: the same 1,000 devices, one table for all of them
    alone = _scenario(plan, plan.data, str(scenario.fleet), f"refinement.cohort_share={share}", "user_groups.count=1")
    one_table = make_world(alone, Place(place.data_dir, f"{place.run_dir}-one-table"), nodes, on_event).strategy()
    alone_s, _, _ = one_table.timed(grid, plan.rounds)
    found["same_devices_per_second"] = one_table.rounds[-1].devices / alone_s
    return found


def _population(
    grid: Grid, base: Scenario, plan: BenchPlan, size: int, folder: Path, nodes: Nodes, on_event: OnEvent
) -> dict[str, Any]:
    """Write a population, have it join, and run rounds. ``seconds``: everything up to the end of the first round."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        data = folder / f"population-{size}"
        Population(0, size, plan.num_items, plan.user_groups).write(data)
        written = time.perf_counter()
        # user groups of one size, so that a larger population has more of them
        num_groups = max(1, round(plan.user_groups * size / max(plan.sizes)))
        scenario = _scenario(plan, str(data), str(base.fleet), f"user_groups.count={num_groups}")
        world = make_world(scenario, Place("", str(folder / f"run-{size}")), nodes, on_event)
        strategy = world.strategy()
        joined = time.perf_counter()
        rounds = max(1, min(plan.rounds, 200_000 // size))
        best_s, stages, seconds = strategy.timed(grid, rounds)
        first_s = strategy.rounds[0].seconds
    best_s = min(best_s, first_s)
    on_event(Event("bench", 1, 3, f"{size:,} devices: {size / best_s:,.0f} devices/s"))
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


def _on_device(world: World, strategy: PeelStrategy, budget: int) -> dict[str, float]:
    """What one device does by itself at 1% of the bytes: choose its blocks; rank all items with what it stored."""
    layout = world.prepared.layout
    ceiling = int(strategy.members.ceilings[0])
    ranked = rank_blocks(layout, "int8", world.popularity[0], world.prepared.pretrained.items, ceiling)
    train = device_splits(world.scenario, world.place.data_dir, world.place.run_dir).train
    elastic = ElasticEmbedding(ranked, world.prepared.pretrained.users[0], train.row(0))
    stored = elastic.at(budget)
    seen = layout.row_in_catalogue[elastic.seen]
    return {
        "select_ms": 1000 * _best(lambda: elastic.kept(budget), 50),
        "rank_ms": 1000 * _best(lambda: stored.top_n(20, seen), 50),
    }


def _training_alone(world: World, strategy: PeelStrategy) -> dict[str, float]:
    """The compiled loop by itself on one core, without messages: all devices, all groups, as in a round."""
    train = device_splits(world.scenario, world.place.data_dir, world.place.run_dir).train
    table, users = world.prepared.pretrained.items, world.prepared.pretrained.users
    seconds = 0.0
    for group, popularity in enumerate(world.popularity):
        members = np.flatnonzero(strategy.members.groups == group)
        ceiling = int(strategy.members.ceilings[group])
        ranked = rank_blocks(world.prepared.layout, "int8", popularity, table, ceiling)
        arguments = (
            ranked,
            np.full(len(members), len(ranked.blocks), np.int64),
            users[members],
            train.select(members),
            device_seeds(0, "bench", devices=members),
            stock_flower.HOW,
        )
        seconds += _best(lambda arguments=arguments: train_group(*arguments), 2)  # type: ignore[misc]
    return {"training_alone_on_one_core": seconds}


def _stock(base: Scenario, place: Place, plan: BenchPlan, folder: Path, on_event: OnEvent) -> dict[str, Any]:
    """The same training as a plain Flower app: a node per device, a message per device."""
    splits = device_splits(base, place.data_dir, place.run_dir)
    chosen, table = _rivals_devices(base, splits, plan, folder, plan.stock_devices)
    layout = BlockLayout(np.arange(splits.num_items, dtype=np.int32), plan.embedding_dim, 1)
    blocks = pack_ranking(layout, "int8", splits.train.popularity(splits.num_items).astype(np.float64), table, None)
    ranked = RankedBlocks.unpack(layout, "int8", blocks)

    def server(grid: Grid, scenario: Scenario, place: Place, told: OnEvent) -> dict[str, Any]:
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

    engine = base.engine.model_copy(update={"nodes": len(chosen), "device": "cpu"})
    scenario = base.model_copy(update={"engine": engine})
    return simulated(scenario, place, on_event, server=server, client=stock_flower.app)


def _rivals_devices(
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
        found = subprocess.run([str(python), "-c", "import pfl.model.pytorch"], capture_output=True, text=True)
    except OSError as error:
        raise EngineError(f"--pfl-python {python}: cannot be started ({error.strerror}); name a Python") from error
    if found.returncode:
        last = _last_line(found.stderr)
        raise EngineError(f"--pfl-python {python}: {last}; install pfl and torch there: pip install 'pfl[pytorch]'")
    return str(python)


def _last_line(text: str) -> str:
    """What a failed Python says last: its error."""
    return (text.strip().splitlines() or ["no message"])[-1]


def _pfl(python: str, base: Scenario, place: Place, plan: BenchPlan, folder: Path) -> dict[str, Any]:
    """The same training under pfl, in its own environment; see :mod:`simulations.pfl_app`.

    Raises:
        EngineError: it failed there.
    """
    splits = device_splits(base, place.data_dir, place.run_dir)
    _, table = _rivals_devices(base, splits, plan, folder, plan.pfl_devices)
    np.save(folder / "table.npy", table)
    how = stock_flower.HOW
    script = own_root() / "simulations" / "pfl_app.py"
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


def _best(work: Callable[[], object], times: int) -> float:
    """Least wall seconds of several."""
    return min(_seconds(work) for _ in range(times))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
