"""What devices of one user group know after local training, before they say anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.data.interactions import UserItems
from fl_peel.training.update import GroupUpdate


@dataclass(frozen=True)
class TrainedDevices:
    """Devices (M,) of one user group, those that count. cutoffs (M,): blocks each holds; users (M, d): new user
    embeddings, which stay on the devices; update: sums over them; best: (M, L) top rows, None in rounds without
    signals; train, validation: their items.
    """

    devices: NDArray[np.int64]
    cutoffs: NDArray[np.int64]
    users: NDArray[np.float32]
    update: GroupUpdate
    best: NDArray[np.int32] | None
    train: UserItems
    validation: UserItems
