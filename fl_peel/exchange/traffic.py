"""Bytes that a device moves in a round whose requests and updates do not depend on its data or its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.exchange.bounded_statistic import GroupShape
from fl_peel.exchange.release import Part, shapes
from fl_peel.scenario.scenario import Scenario

NUMBER_BYTES = 4
"""Bytes of a number in an update or a noised part: fp32, as without privacy."""


@dataclass(frozen=True)
class TrafficPadding:
    """Padding that makes traffic independent of a device's data.

    all_rows: updates cover every row that was downloaded; group_prefix: every device downloads all ranked blocks;
    dense: the parts other than updates that are sent for all blocks or rows.
    """

    all_rows: bool
    group_prefix: bool
    dense: tuple[Part, ...]

    @staticmethod
    def from_scenario(scenario: Scenario, parts: tuple[Part, ...]) -> TrafficPadding:
        """Return the padding of a scenario; parts: released in this round, none where no mechanism adds noise."""
        privacy = scenario.privacy
        dense = tuple(part for part in parts if part != "updates") if privacy.noised else ()
        return TrafficPadding(privacy.rows == "all-sent", privacy.requests == "group-prefix", dense)

    def download_bytes(self, ranked: RankedBlocks, cutoffs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bytes (N,) of the list that devices download, if they want the first ``cutoffs`` (N,) blocks."""
        wanted = np.full_like(cutoffs, len(ranked.blocks)) if self.group_prefix else cutoffs
        return ranked.read_bytes(np.zeros_like(wanted), wanted)

    def update_bytes(
        self, ranked: RankedBlocks, cutoffs: NDArray[np.int64], touched_pieces: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Block updates (N,). Those of all rows need no numbers: their order is that of the ranked list."""
        layout = ranked.layout
        if not self.all_rows:
            return touched_pieces * (layout.id_dtype.itemsize + NUMBER_BYTES * layout.slice_dim)
        wanted = np.full_like(cutoffs, len(ranked.blocks)) if self.group_prefix else cutoffs
        return ranked.row_pieces[wanted] * NUMBER_BYTES * layout.slice_dim

    def part_bytes(self, ranked: RankedBlocks) -> int:
        """The other parts, dense."""
        return NUMBER_BYTES * sum(
            math.prod(shape) for shape in shapes(GroupShape.from_ranked(ranked), self.dense).values()
        )

    def is_public(self) -> bool:
        """Return whether a device's traffic is independent of its data, so that the server can compute it without a
        report.
        """
        return self.all_rows and self.group_prefix
