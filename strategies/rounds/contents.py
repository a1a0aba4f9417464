"""Server half of a round's contents: whom it concerns, what becomes of the sums, which figures that leaves.

To add one, subclass :class:`ServerContents` (or one that ships, :class:`strategies.rounds.open.OpenServerContents`),
register it under the entry point group ``fl_peel.server_contents`` and name it in a scenario, ``refinement.contents``.
:class:`strategies.rounds.contracts.ServerContentsContract` tests it; docs/contents.md has examples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked import RowOrder
from fl_peel.exchange.expected import Known
from fl_peel.privacy.plan import Plan
from fl_peel.wire import Arrays
from strategies.rounds.channel import OpenedSum
from strategies.rounds.federation import Federation
from strategies.rounds.record import RoundRecord, SentRound

if TYPE_CHECKING:
    from fl_peel.weighting.controller import Controller


class ServerContents(ABC):
    """Of one refinement. plan: of the noise, None where there is none."""

    def __init__(self, federation: Federation, plan: Plan | None) -> None:
        self.federation = federation
        self.plan = plan

    @property
    def clip_norm(self) -> float:
        """Bound of a device's update in the round to come, what devices are told; infinite for none."""
        clipping = self.federation.scenario.privacy.clipping
        return math.inf if clipping.kind == "none" else clipping.norm

    @property
    def clip_norms(self) -> list[float]:
        """Bounds of the rounds that were, for the report; none where they did not matter."""
        return []

    @property
    def noise_multiplier(self) -> float:
        """What devices that add noise are told; 0 where there is none."""
        return 0.0 if self.plan is None else self.plan.multiplier

    def groups(self, asked: NDArray[np.int32]) -> list[int]:
        """User groups whose blocks are ranked, ascending. asked: (N,) those of the devices that are asked."""
        return [int(group) for group in np.unique(asked)]

    def expects(self, sent: SentRound, group: int, devices: int) -> Known | None:
        """What a node must say of a user group, so many of whose devices it was asked for; None where anything goes.
        What is said otherwise is left out, with all else that the node says.
        """
        return None

    @property
    def takes_each(self) -> bool:
        """Whether :meth:`take` may be told of user groups one after the other, as soon as all has been said of them; so
        the server need not hold a whole round's sums.
        """
        return False

    @abstractmethod
    def take(self, sent: SentRound, sums: Mapping[int, Sequence[Arrays]], opened: Mapping[int, OpenedSum]) -> None:
        """Change the user groups' tables and statistics. sums: what was said of each user group, in parts that add up;
        opened: whose sums these are, where the channel tells.
        """

    def may_change(self, group: int, blocks: NDArray[np.int64], parts: Sequence[Arrays]) -> NDArray[np.integer]:
        """Items (T,) whose rows of a user group's table :meth:`take` may have changed: those of the blocks (K,) that it
        was sent. What a run keeps of tables as it goes is these rows alone. parts: what was said of the user group.
        """
        return RowOrder.of(self.federation.layout, blocks).items

    def outer_step(self, controller: Controller) -> float | None:
        """The controller learns from the signals of a round that had any; returns its loss, if there is one."""
        loss = controller.outer_step([state.statistics for state in self.federation.states])
        return loss if np.isfinite(loss) else None

    def figures(self, sent: SentRound, record: RoundRecord) -> RoundRecord:
        """The round's record, with what the server knows without being told."""
        return record


__all__ = ["ServerContents"]
