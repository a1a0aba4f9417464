"""Plan of a benchmark: what it measures, and the scenario it does it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl_peel.data.population import Population
from fl_peel.scenario.scenario import Scenario
from simulations.bench import stock_flower
from simulations.scenario_files import load_scenario

MAIN_JOB = "ml-100k"
"""The scenario, and the data set, of the run that is timed whole."""
MILLION = 1_000_000


FREE_BYTES = 10 << 30
"""Bytes that must be free for a million devices; with less, Ray would end workers, of other runs too."""


FULL_TABLES = """\
description: Devices that hold the whole table at block precision and are always there, so that every train item counts.
profiles:
  - name: full
    memory: {table_share: 1.0}
    budget: {process: constant}
"""


@dataclass(frozen=True)
class BenchPlan:
    """The plan of a benchmark. data: a named data set, or a folder that a population was written to; sizes: devices of
    the populations for the scaling figures, over ``num_items`` items; rounds: timed rounds of each kind; flagship: the
    scenario whose own rounds are timed too, on the same data; device: as ``engine.device``.
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
    flagship: str | None = "gowalla"
    nodes: int = 2
    device: str = "cpu"


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


def population_scenario(plan: BenchPlan, folder: Path, population: Population) -> Scenario:
    """The same on a population, which is written to ``folder``, with full tables."""
    data, fleet = folder / "population", folder / "full.yaml"
    fleet.write_text(FULL_TABLES)
    population.write(data)
    return bench_scenario(plan, str(data), str(fleet))


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
