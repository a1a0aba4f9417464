"""What benchmarks measure, and what they run rounds on: a plan, the scenario that follows from it, devices with drawn
embeddings and planted groups, and a strategy with a clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_peel.blocks.layout import BlockLayout
from fl_peel.data.interactions import UserItems
from fl_peel.data.population import Population
from fl_peel.device_storage import device_splits
from fl_peel.errors import EngineError
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.pretraining.central_training import PretrainedEmbeddings
from fl_peel.pretraining.clusters import UserGroups
from fl_peel.randomness import rng_for
from fl_peel.scenario.scenario import Scenario
from fl_peel.weighting.block_statistics import BlockStatistics
from simulations.bench import stock_flower
from simulations.scenario_files import load_scenario
from strategies.groups.aggregation import ServerOptimizer
from strategies.groups.state import UserGroupState, empty_tables, known_bytes, put_once, shelf_for
from strategies.rounds.strategy import PeelStrategy
from strategies.run.prepare import CentralStage1Outcome
from strategies.run.refinement import Refiner, join, put_together
from strategies.run.run import Run

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
