"""Server half of a round's contents: whom it concerns, what becomes of the sums, which figures that leaves.

To add one, subclass :class:`ServerContents` (or one that ships, :class:`strategies.rounds.open.OpenServerContents`),
register it under the entry point group ``fl_peel.server_contents`` and name it as ``refinement.contribution``.
:class:`strategies.rounds.contracts.ServerContentsContract` tests it; docs/contents.md has examples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel.array_specs import MessageContext
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.privacy.noise_plan import Plan
from fl_peel.wire import Arrays
from strategies.rounds.channel import OpenedSum
from strategies.rounds.federation import Federation
from strategies.rounds.record import RoundRecord, SentRound

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller


class ServerContents(ABC):
    """Base class of a contribution on the server side, for one refinement. plan: plan of the noise, None without."""

    def __init__(self, federation: Federation, plan: Plan | None) -> None:
        self.federation = federation
        self.plan = plan

    @property
    def clip_norm(self) -> float:
        """Clipping bound of a device's update in the next round, sent to devices; infinite for none."""
        clipping = self.federation.scenario.privacy.clipping
        return math.inf if clipping.kind == "none" else clipping.norm

    @property
    def clip_norms(self) -> list[float]:
        """Clipping bounds of the rounds so far, for the report; none where they did not apply."""
        return []

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier, sent to devices that add noise; 0 where they add none."""
        return 0.0 if self.plan is None else self.plan.multiplier

    def groups(self, asked: NDArray[np.int32]) -> list[int]:
        """Return the user groups whose blocks are ranked, ascending. asked: (N,) groups of the requested devices."""
        return [int(group) for group in np.unique(asked)]

    def expects(self, sent: SentRound, group: int, devices: int) -> MessageContext | None:
        """Return what a node must contribute for a user group with this many requested devices; None where anything is
        accepted. A reply that differs is ignored, with the rest of the node's reply."""
        return None

    @property
    def aggregates_incrementally(self) -> bool:
        """Whether :meth:`take` may be called for one user group at a time, as soon as its contributions are complete,
        so that the server need not hold the sums of a whole round."""
        return False

    @abstractmethod
    def take(self, sent: SentRound, sums: Mapping[int, Sequence[Arrays]], opened: Mapping[int, OpenedSum]) -> None:
        """Update the user groups' tables and statistics. sums: contributions to each user group, in parts that add up;
        opened: the devices of these sums, where the channel reveals them."""

    def may_change(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> NDArray[np.integer]:
        """Return the items (T,) whose rows of a user group's table :meth:`take` may have changed: among those of the
        blocks (K,) that it was sent. Checkpoints contain only these rows. parts: contributions to the user group."""
        return RowOrder.from_blocks(self.federation.layout, blocks).items

    def outer_step(self, controller: Controller) -> float | None:
        """Update the controller from the signals of a round that had any; return its loss, if there is one."""
        loss = controller.outer_step([state.statistics for state in self.federation.states])
        return loss if np.isfinite(loss) else None

    def figures(self, sent: SentRound, record: RoundRecord) -> RoundRecord:
        """Return the round's record, with what the server knows by itself."""
        return record
