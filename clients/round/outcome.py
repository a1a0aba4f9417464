"""Outcome of a round of some devices of one user group: their contribution, their counts, their new state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.node.state import DeviceState
from fl_peel.blocks.stored import stored_user
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import RoundCounts
from fl_peel.mmap_arrays import put_rows
from fl_peel.wire import Arrays


@dataclass(frozen=True)
class StateUpdate:
    """The state that stays on the devices. places (M,) of those that count, users (M, d) their new user embeddings;
    reached: places (N,) of all that were reached, blocks (N,) how many they hold in the end.
    """

    places: IntArray
    users: NDArray[np.float32]
    reached: IntArray
    blocks: IntArray

    @staticmethod
    def joined(parts: Sequence[StateUpdate]) -> StateUpdate:
        """Join the updates of disjoint sets of devices, one set at least."""
        names = ("places", "users", "reached", "blocks")
        return StateUpdate(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def remember(self, state: DeviceState) -> None:
        """Let the devices keep what they learned."""
        put_rows(state.users, self.places, stored_user(self.users))
        state.kept_blocks[self.reached] = self.blocks


@dataclass(frozen=True)
class MembersReply:
    """The reply of some devices. arrays: their contribution; no arrays mean no contribution."""

    arrays: Arrays
    counts: RoundCounts
    state_update: StateUpdate
