"""Small saved models: of made-up tables, and of runs whose messages are answered in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fl_peel.blocks.layout import BlockLayout
from fl_peel.model.device import FittedJoining, Joining, MappedJoining
from fl_peel.model.model import ModelContent, in_turn, save
from fl_peel.model.model_files import Catalogue
from fl_peel.pretraining.spectral import halves
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision
from strategies.figures.schema import RunResult
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.blocks import layout_of, random_table
from tests.helpers.loopback import LoopbackGrid

LAYOUT = layout_of("single", 30, 30, 4, 2, 0)
NOTHING_COLLECTED = (
    *("pretraining.model=spectral", "pretraining.source=devices", "pretraining.collected.share=0"),
    *("pretraining.columns=8", "selector=exposure", "refinement.local.user_learning_rate=0"),
)


def ids_of(layout: BlockLayout, first: int = 0) -> tuple[str, ...]:
    """Names that are no numbers."""
    return tuple(f"item {number + first}" for number in range(layout.num_items))


def fitted(rng: np.random.Generator, layout: BlockLayout, groups: int = 2) -> FittedJoining:
    """Random centroids, a random table, and random maps."""
    dim = layout.embedding_dim
    centroids, table = rng.normal(size=(groups, dim)).astype(np.float32), random_table(rng, layout)
    return FittedJoining(centroids, table, rng.normal(size=(groups, dim, dim)).astype(np.float32))


def mapped(rng: np.random.Generator, layout: BlockLayout, groups: int = 2, columns: int = 6) -> MappedJoining:
    """Random centroids, rows and maps, as stage 1 rounds them."""
    maps = [halves(rng.normal(size=(columns, layout.embedding_dim)).astype(np.float32)) for _ in range(groups)]
    own = halves(rng.normal(size=(layout.num_items, columns)).astype(np.float32))
    return MappedJoining.from_rows(rng.normal(size=(groups, 4)).astype(np.float32), own, np.stack(maps))


def saved(
    folder: Path,
    seed: int = 0,
    *,
    layout: BlockLayout = LAYOUT,
    groups: int = 2,
    precision: Precision = "int8",
    joining: Joining | None = None,
    ids: tuple[str, ...] | None = None,
    **more: Any,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Save a model of random tables; returns the orders and the tables."""
    rng = np.random.default_rng(seed)
    joining = joining or fitted(rng, layout, groups)
    tables = more.pop("tables", None) or [random_table(rng, layout) for _ in range(groups)]
    orders = [rng.permutation(layout.num_blocks) for _ in range(groups)]
    catalogue = Catalogue(layout, ids_of(layout) if ids is None else ids)
    each = more.pop("each", in_turn)
    save(folder, ModelContent(catalogue, joining, precision, orders, tables, **more), each)
    return orders, tables


def ran(scenario: Scenario, run_dir: Path, kept: str = "") -> RunResult:
    """A run, whose model is in ``model`` of its folder."""
    return serve(LoopbackGrid(2), scenario, RunPaths("", str(run_dir), "", kept, str(run_dir / "model")))
