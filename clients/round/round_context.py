"""Context of a round: what its devices share, and which of them are reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort
from clients.node.state import DeviceState
from clients.round.contents import BoundedDeviceContents, BucketedDeviceContents, DeviceContents, OpenDeviceContents
from clients.round.memory import RoundMemory, WorkingMemory, extra_bytes
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClockCounts
from fl_peel.privacy.sources import source_of
from fl_peel.randomness import device_seeds
from fl_peel.scenario import registered
from fl_peel.scenario.scenario import Scenario
from fl_peel.training.memory import TrainingMemory
from fl_peel.training.settings import LocalTraining
from fl_peel.wire import RoundRequest


def contents_kind(scenario: Scenario) -> type[DeviceContents]:
    """Return the class of a scenario's contents; see :func:`fl_peel.scenario.registered.contents_kind`."""
    kinds = DeviceContents, OpenDeviceContents, BoundedDeviceContents, BucketedDeviceContents
    return cast(type[DeviceContents], registered.contents_kind(scenario, registered.DEVICE_CONTENTS, *kinds))


@dataclass(frozen=True)
class RoundContext:
    """The context that a round's devices share, whatever their user group. state: state before the round, for reading
    (files, opened once and not for every group). For all N hosted devices: budgets (T, N) bytes at T steps of the
    round; seeds (N,). list_length: length of the top lists for signals, None where none are wanted.
    """

    cohort: Cohort
    state: DeviceState
    request: RoundRequest
    contents: DeviceContents
    budgets: IntArray
    seeds: NDArray[np.uint64]
    how: LocalTraining
    list_length: int | None

    @staticmethod
    def from_request(cohort: Cohort, request: RoundRequest) -> RoundContext:
        """The world of one request."""
        scenario = cohort.scenario
        contents = contents_kind(scenario)(scenario, request)
        return RoundContext(
            cohort,
            cohort.state("r"),
            request,
            contents,
            cohort.budgets.during(request.server_round),
            device_seeds(scenario.seed, "local-training", request.server_round, devices=cohort.devices),
            contents.local(scenario.refinement.local.config(request.temperature)),
            scenario.controller.signal_length if request.signals else None,
        )

    def working(self, places: IntArray) -> WorkingMemory:
        """Working memory of the devices at these places."""
        cohort, layout = self.cohort, self.cohort.layout()
        takes = TrainingMemory(layout.embedding_dim, layout.num_slices, self.how, self.list_length or 0)
        return WorkingMemory(cohort.budgets.working()[places], cohort.splits.train.counts()[places], takes)

    def memory(self, ranked: RankedBlocks, places: IntArray, working: WorkingMemory) -> RoundMemory:
        """Return the memory that the devices at ``places`` hold in the round."""
        extra = extra_bytes(self.cohort.scenario)
        return RoundMemory.from_budgets(ranked, self.budgets[:, places], working.cutoffs(ranked), extra)

    def reached(self, places: IntArray) -> tuple[IntArray, ClockCounts]:
        """Return which of the sampled devices at ``places`` are available and have enough memory, and the counts of all
        of them.
        """
        return reached_devices(self.cohort, places, self.budgets[0], self.request.server_round)


def reached_devices(
    cohort: Cohort, places: IntArray, budgets: IntArray, server_round: int
) -> tuple[IntArray, ClockCounts]:
    """Return which of the sampled devices are available and have enough memory, and the counts of all of them. budgets:
    memory (N,) in bytes of every hosted device.
    """
    available = answering(cohort, places, server_round)
    smallest = cohort.scenario.refinement.min_budget_share * cohort.layout().full_table_bytes
    too_small = available & (budgets[places] < smallest)
    counts = ClockCounts.from_columns(
        cohort.classes[places],
        len(cohort.fleet.names),
        sampled=np.ones(len(places), np.int64),
        unavailable=~available,
        excluded=too_small,
    )
    return places[available & ~too_small], counts


def answering(cohort: Cohort, places: IntArray, server_round: int) -> NDArray[np.bool_]:
    """Return which of the devices at ``places`` (N,) are available and answer, as a mask (N,); see
    ``privacy.answer_share``.
    """
    available = cohort.available(places, server_round)
    share = cohort.scenario.privacy.answer_share
    if share is None:
        return available
    coin = source_of(cohort.scenario).uniforms(("answers", server_round), cohort.devices[places])
    return available & (coin * cohort.usual_availability[places] < share)
