"""Open contents: devices contribute which rows they changed and how, and their validation signals, added up by their
node.
"""

from __future__ import annotations

import numpy as np

from clients.round.contents import DeviceContents
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.exchange.trained_devices import TrainedDevices
from fl_peel.training.group import signals_of_group
from fl_peel.training.update import GroupUpdate, holders_of
from fl_peel.wire import Arrays


class OpenDeviceContents(DeviceContents):
    """Contribution of devices in the clear; arrays as in a :class:`fl_peel.wire.RoundReply`."""

    def contribution(self, ranked: RankedBlocks, trained: TrainedDevices, noise_devices: int | None = None) -> Arrays:
        """Return row updates with their counts and losses; in rounds with signals also hits, shown and exposed."""
        arrays = update_arrays(trained.update)
        if trained.best is None:
            return arrays
        hits, shown = signals_of_group(ranked, trained.cutoffs, trained.users, trained.best, trained.validation)
        return arrays | {"hits": hits, "shown": shown, "exposed": holders_of(trained.cutoffs, len(ranked.blocks))}


def update_arrays(update: GroupUpdate) -> Arrays:
    """The arrays of block updates."""
    changed = update.changed()
    rows = changed["rows"]
    return {
        **changed,
        "touched": update.touched[rows].astype(np.int32),
        "row_loss": update.row_loss[rows],
        "row_examples": update.row_examples[rows].astype(np.int32),
        "holders": update.holders.astype(np.int32),
    }
