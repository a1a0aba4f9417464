"""What a run leaves for devices that were not there: the model as it ended, and nothing of any device."""

from __future__ import annotations

from pathlib import Path

from fl_peel import __version__
from fl_peel.blocks.ranked import ranking
from fl_peel.disks import item_ids
from fl_peel.model.catalogue import Catalogue
from fl_peel.model.model import save
from strategies.rounds.federation import for_groups
from strategies.rounds.strategy import PeelStrategy
from strategies.run.place import Place
from strategies.run.prepare import Prepared


def save_model(strategy: PeelStrategy, prepared: Prepared, place: Place) -> int:
    """Save tables, orders of blocks and how a device joins, where the place says; returns the bytes."""
    scenario, layout = strategy.scenario, strategy.layout
    return save(
        Path(place.model_dir),
        Catalogue(layout, item_ids(scenario, place.data_dir, place.run_dir)),
        prepared.joining,
        scenario.blocks.precision,
        [ranking(weights) for weights in strategy.weights(scenario.selector)],
        [state.table for state in strategy.states],
        package=__version__,
        base=prepared.global_table,
        each=for_groups,
    )


__all__ = ["save_model"]
