"""The same training on a plain Flower app and on pfl, to compare with."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RankedBlocks, pack_ranking
from fl_peel.data.interactions import Splits
from fl_peel.device_storage import device_splits
from fl_peel.errors import EngineError
from fl_peel.events import OnEvent
from fl_peel.randomness import rng_for
from fl_peel.scenario.scenario import Scenario
from simulations.bench import stock_flower
from simulations.bench.bench_context import BenchPlan
from simulations.engine.engine import simulated
from strategies.rounds.strategy import sample_cohort
from strategies.run.run_paths import RunPaths


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
