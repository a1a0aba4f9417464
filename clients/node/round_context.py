"""Context of a round: what its devices share, which of them are reached, and the memory that each holds.

A device chooses blocks for the budget it reads when the round reaches it: it reads its user group's list from the front
and stores block after block, so that choosing takes a block's bytes and no more. It trains the first of them, as many
as its working memory allows. When the budget falls below what it holds, it drops its last blocks on the spot, without
asking anybody, and trains anew if it lost some that it trained; its update is that of a device which held only these.
When not one block is left to train, it drops out: nothing of it is counted. Budgets that rise within a round change
nothing until the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clients.node.cohort import Cohort, DeviceState
from clients.node.contents import BoundedDeviceContents, BucketedDeviceContents, DeviceContents, OpenDeviceContents
from fl_peel.blocks.ranked_blocks import RankedBlocks
from fl_peel.blocks.stored import overhead_bytes, user_bytes
from fl_peel.data.interactions import IntArray
from fl_peel.exchange.counters import ClockCounts
from fl_peel.privacy.sources import source_of
from fl_peel.randomness import device_seeds
from fl_peel.scenario import settings
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import LocalTraining
from fl_peel.training.update import TrainingMemory
from fl_peel.wire import RoundRequest


@dataclass(frozen=True)
class WorkingMemory:
    """Memory (N,) for training besides what is stored: allowed; interactions; takes: what training takes."""

    allowed: IntArray
    interactions: IntArray
    takes: TrainingMemory

    def cutoffs(self, ranked: RankedBlocks) -> IntArray:
        """Blocks (N,) that each can train."""
        held = self.takes.most_held(self.allowed, self.interactions)
        return np.searchsorted(ranked.row_pieces, held, side="right").astype(np.int64) - 1

    def most_bytes(self, ranked: RankedBlocks, cutoffs: IntArray) -> IntArray:
        """Bytes (N,) that choosing blocks, and training ``cutoffs`` (N,) of them, never exceed."""
        held = ranked.row_pieces[cutoffs]
        training = np.where(cutoffs > 0, self.takes.most_bytes(held, self.interactions), 0)
        return np.maximum(training, ranked.largest_bytes)

    def taken_bytes(self, ranked: RankedBlocks, cutoffs: IntArray, touched: IntArray) -> IntArray:
        """The same of devices that touched so many row pieces (N,)."""
        held = ranked.row_pieces[cutoffs]
        return np.maximum(self.takes.taken_bytes(held, touched, self.interactions), ranked.largest_bytes)


@dataclass(frozen=True)
class RoundMemory:
    """The memory that devices hold in a round, (N,) each.

    budgets: bytes when the round begins; first: blocks chosen then; last: blocks still held when it ends (a prefix of
    the first); stored: bytes of the first and what lies beside them; violations: steps at which a device held more than
    its budget. started: blocks whose training began; trained: those whose training ended, all that the update covers.
    """

    budgets: IntArray
    first: IntArray
    last: IntArray
    stored: IntArray
    violations: IntArray
    started: IntArray
    trained: IntArray

    @staticmethod
    def from_budgets(ranked: RankedBlocks, budgets: IntArray, trainable: IntArray, extra_bytes: int = 0) -> RoundMemory:
        """budgets: (T, N) bytes at every step of the round; trainable: (N,) blocks that working memory is enough for.

        extra_bytes: bytes that every device holds besides its blocks' file.
        """
        lowest = np.minimum.accumulate(budgets, axis=0)  # (T, N): nothing dropped comes back within the round
        held = ranked.cutoffs(lowest - extra_bytes)
        stored = stored_bytes(ranked, held, lowest, extra_bytes)
        over = (stored > budgets).sum(axis=0).astype(np.int64)
        started, trained = (np.minimum(blocks, trainable) for blocks in (held[0], held[-1]))
        return RoundMemory(budgets[0], held[0], held[-1], stored[0], over, started, trained)

    @property
    def dropped_blocks(self) -> NDArray[np.bool_]:
        """Devices (N,) that lost blocks during the round."""
        return self.last < self.first

    @property
    def interrupted(self) -> NDArray[np.bool_]:
        """Devices (N,) that lost blocks which they trained."""
        return self.trained < self.started

    @property
    def dropped_out(self) -> NDArray[np.bool_]:
        """Devices (N,) that end the round without a single block to train."""
        return np.asarray(self.trained == 0)

    def working_bytes(
        self, ranked: RankedBlocks, working: WorkingMemory, kept: IntArray, touched: IntArray
    ) -> IntArray:
        """Bytes (N,) that the round took besides what is stored. touched: row pieces (M,) of the devices at positions
        ``kept`` (M,), which ended it; the others, and those that were interrupted, count what they may have touched.
        """
        taken = working.most_bytes(ranked, self.started)
        pieces = np.zeros(len(taken), np.int64)
        pieces[kept] = touched
        ended = np.zeros(len(taken), np.bool_)
        ended[kept] = True
        known = ended & ~self.interrupted
        return np.where(known, working.taken_bytes(ranked, self.trained, pieces), taken)


def stored_bytes(ranked: RankedBlocks, cutoffs: IntArray, budgets: IntArray, extra_bytes: int) -> IntArray:
    """Bytes held with these cutoffs; nothing at all where the budget does not hold what every device holds."""
    fits = budgets >= overhead_bytes(ranked.layout.embedding_dim) + extra_bytes
    return np.where(fits, ranked.stored_bytes(cutoffs) + extra_bytes, 0)


def extra_bytes(scenario: Scenario) -> int:
    """Return the bytes that a device holds beside its file: the user embedding that it may go back to."""
    goes_back = scenario.refinement.acceptance.rule != "always"
    return user_bytes(scenario.pretraining.embedding_dim) if goes_back else 0


def contents_kind(scenario: Scenario) -> type[DeviceContents]:
    """Return the class of a scenario's contents; see :func:`fl_peel.scenario.settings.contents_kind`."""
    kinds = DeviceContents, OpenDeviceContents, BoundedDeviceContents, BucketedDeviceContents
    return cast(type[DeviceContents], settings.contents_kind(scenario, settings.DEVICE_CONTENTS, *kinds))


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
        cohort, layout = self.cohort, self.cohort.layout()
        takes = TrainingMemory(layout.embedding_dim, layout.num_slices, self.how, self.list_length or 0)
        return WorkingMemory(cohort.budgets.working()[places], cohort.splits.train.counts()[places], takes)

    def memory(self, ranked: RankedBlocks, places: IntArray, working: WorkingMemory) -> RoundMemory:
        """Return the memory that the devices at ``places`` hold in the round."""
        extra = extra_bytes(self.cohort.scenario)
        return RoundMemory.from_budgets(ranked, self.budgets[:, places], working.cutoffs(ranked), extra)

    def reached(self, places: IntArray) -> tuple[IntArray, ClockCounts]:
        """Return which sampled devices at ``places`` are available with enough memory, and counts of all."""
        return reached_devices(self.cohort, places, self.budgets[0], self.request.server_round)


def reached_devices(
    cohort: Cohort, places: IntArray, budgets: IntArray, server_round: int
) -> tuple[IntArray, ClockCounts]:
    """Return which sampled devices are available with the memory, and counts of all. budgets: (N,) of hosted ones."""
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
    """Return which devices at ``places`` (N,) are available and answer, (N,); see ``privacy.answer_share``."""
    available = cohort.available(places, server_round)
    share = cohort.scenario.privacy.answer_share
    if share is None:
        return available
    coin = source_of(cohort.scenario).uniforms(("answers", server_round), cohort.devices[places])
    return available & (coin * cohort.usual_availability[places] < share)
