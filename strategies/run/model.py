"""The model that a run leaves for new devices, as it ended; it holds no data of any device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import ranking
from fl_peel.device_storage import item_ids, item_titles
from fl_peel.errors import ReportError
from fl_peel.model.model import ModelContent, save
from fl_peel.model.model_files import Catalogue
from strategies.groups.state import FloatArray, UserGroupState
from strategies.rounds.federation import for_groups
from strategies.rounds.strategy import PeelStrategy
from strategies.run.run_paths import RunPaths
from strategies.run.stage1_outcome import Stage1Outcome

AT_ONCE = 4
"""Tables that are in memory while they are saved; two are at work."""


def save_model(strategy: PeelStrategy, prepared: Stage1Outcome, paths: RunPaths) -> int:
    """Save tables, orders of blocks and how a device joins, into the folder of the run's paths; returns the bytes.

    Raises:
        ReportError: they cannot be written there.
    """
    scenario, layout = strategy.scenario, strategy.layout
    ids = item_ids(scenario, paths.data_dir, paths.run_dir)
    named = ids or tuple(map(str, range(layout.num_items)))
    catalogue = Catalogue(layout, ids, item_titles(scenario, named, paths.data_dir))
    weights = strategy.weights(scenario.selector)

    def order(group: int) -> NDArray[np.integer]:
        """Return a group's blocks, ranked by weight; its weights are released, as they are not needed again."""
        blocks = ranking(weights[group]).astype(layout.id_dtype)
        weights[group] = np.zeros(0)
        return blocks

    orders = for_groups(order, range(len(weights)))
    try:
        tables, precision = _Tables(strategy.states), scenario.blocks.precision
        content = ModelContent(catalogue, prepared.joining, precision, orders, tables, prepared.global_table)
        return save(Path(paths.model_dir), content, for_groups)
    except OSError as error:
        raise ReportError(
            f"{paths.model_dir}: the model cannot be written ({error}); free some space there, or give another --out"
        ) from error


class _Tables(Sequence[FloatArray]):
    """Tables (I, d) of user groups, to be looked at one after the other: those before them rest."""

    def __init__(self, states: Sequence[UserGroupState]) -> None:
        self._states = states
        self._looked_at = deque[UserGroupState]()

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, group: int) -> FloatArray:  # type: ignore[override]
        state = self._states[group]
        self._looked_at.append(state)
        if len(self._looked_at) > AT_ONCE:
            self._looked_at.popleft().drop_pages()
        return state.table
