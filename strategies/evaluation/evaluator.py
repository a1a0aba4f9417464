"""Every device ranks under budgets: the question to all nodes, and what their sums say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked import pack_ranking
from fl_peel.blocks.settings import Precision
from fl_peel.exchange.expected import Known
from fl_peel.ranking.top import SUM_SCALE, MetricSums
from fl_peel.scenario.scenario import Scenario
from strategies.figures.schema import Quality
from strategies.nodes.batches import packed_batches
from strategies.nodes.members import Members
from strategies.nodes.nodes import Content, Query
from strategies.rounds.federation import Federation
from strategies.rounds.strategy import PeelStrategy

MESSAGE_BYTES = 32 << 20
"""Of blocks, in one message to a node."""
REACH = 1.25
"""Devices skip blocks they never need, so they reach further down the list than their budget alone would. Where that is
not far enough for one of them, all of its message are asked again with a list twice as long: what a device gets under
a budget depends on that budget alone.
"""


@dataclass(frozen=True)
class Evaluator:
    """Asks all nodes what their devices get from tables as they are now.

    weights: block weights (B,) of every user group under a selector; server_round: of whose budgets OWN_BUDGET is, None
    for the last of refinement.
    """

    federation: Federation
    weights: Callable[[str], list[NDArray[np.float64]]]
    message_bytes: int = MESSAGE_BYTES
    server_round: int | None = None

    @classmethod
    def of(cls, strategy: PeelStrategy) -> Self:
        """Of the tables and weights that a strategy has."""
        return cls(strategy.federation, strategy.weights)

    @property
    def scenario(self) -> Scenario:
        """What tables are refined under."""
        return self.federation.scenario

    @property
    def layout(self) -> BlockLayout:
        """Of the tables."""
        return self.federation.layout

    @property
    def members(self) -> Members:
        """Who is asked."""
        return self.federation.members

    def evaluate(
        self,
        budgets: Sequence[int],
        *,
        precision: Precision | None = None,
        selector: str | None = None,
        split: str = "test",
        everybody: NDArray[np.float32] | None = None,
        label: str = "",
        artifacts: NDArray[np.int64] | None = None,
        factors: Sequence[float] | None = None,
        rooms: Sequence[float] | None = None,
        per_device: bool = False,
        devices: tuple[int, int] = (0, -1),
    ) -> wire.EvaluateReply:
        """Every device ranks all items under each budget (bytes, UNLIMITED or OWN_BUDGET).

        precision, selector: by default the scenario's. factors, rooms: one a budget, see
        :class:`fl_peel.wire.EvaluateRequest`; without them 1 and -1. everybody: a table (I, d) that serves all devices,
        whole, instead of their user groups' own. per_device: tell what single devices get, too, where the scenario
        wants to know. Only the test has replicates: what is chosen on validation needs no interval. devices: numbers of
        the first that counts and the one after the last, -1 for all from there on.
        """
        scenario, layout = self.scenario, self.layout
        coded = precision or scenario.blocks.precision
        as_numbered = np.arange(layout.num_blocks, 0, -1.0)
        if everybody is not None:
            weights = {wire.EVERYBODY: as_numbered}
        elif list(budgets) == [wire.UNLIMITED]:  # where all blocks are there, their order says nothing
            weights = dict.fromkeys(range(len(self.federation.states)), as_numbered)
        else:
            weights = dict(enumerate(self.weights(selector or scenario.selector)))

        def asked(groups: dict[int, wire.Arrays]) -> Content:
            request = wire.EvaluateRequest(
                self.federation.setting,
                scenario.refinement.rounds if self.server_round is None else self.server_round,
                coded,
                split,
                label,
                np.array(budgets, np.int64),
                np.array([1.0] * len(budgets) if factors is None else factors, np.float64),
                np.array([-1.0] * len(budgets) if rooms is None else rooms, np.float64),
                np.zeros(0, np.int64) if artifacts is None else artifacts,
                groups,
                scenario.evaluation.bootstrap if split == "test" else 0,
                per_device and scenario.evaluation.per_device,
                *devices,
            )
            return lambda partition: Query(request, self._known(request, partition))

        def served(some: Iterable[int], reach: int | None) -> wire.EvaluateReply:
            def pack(group: int) -> wire.Arrays:
                if everybody is not None:
                    return pack_ranking(layout, coded, weights[group], everybody, reach)
                return self.federation.states[group].packed(layout, coded, weights[group], reach)

            together: list[list[int]] = []

            def questions() -> Iterator[Content]:
                for groups in packed_batches(some, pack, self.message_bytes):
                    together.append(list(groups))
                    yield asked(groups)

            nodes = self.federation.nodes
            said = [reduce(add, one) for one in nodes.ask_each(wire.EVALUATE, wire.EvaluateReply, questions())]
            replies = []
            for groups, reply in zip(together, said, strict=True):
                replies.append(served(groups, 2 * reach) if reach is not None and reply.short else reply)
            return reduce(add, replies)

        return served(weights, self._reach(budgets))

    def _known(self, request: wire.EvaluateRequest, partition: int) -> Known:
        """What is known of a node's answer: how many devices it hosts, and in which user groups they are."""
        members, groups = self.members, list(request.groups)
        here = self.federation.nodes.partitions_of(members.devices) == partition
        reached = here if wire.EVERYBODY in groups else here & np.isin(members.groups, groups)
        single = members.devices[reached if request.per_device else np.zeros_like(reached)]
        hosted = int(here.sum())
        sizes = {
            "X": len(request.budgets),
            "C": len(members.class_names),
            "G": len(self.federation.states),
            "groups": max(int(members.groups[here].max(initial=-1)), *groups) + 1,
            "B": request.replicates,
            "M": len(single),
            "hosted": hosted,
            "metrics": hosted * int(SUM_SCALE),
        }
        return Known(sizes, {"devices": single})

    def own_budgets(self) -> wire.EvaluateReply:
        """Every device under its own budget of the moment."""
        return self.evaluate([wire.OWN_BUDGET], per_device=True)

    def full_table(self, everybody: NDArray[np.float32] | None = None, *, split: str = "test") -> wire.EvaluateReply:
        """Every device with a whole fp32 table: that of its user group, or the same (I, d) for everybody."""
        return self.evaluate(
            [wire.UNLIMITED], precision="fp32", split=split, everybody=everybody, per_device=split == "test"
        )

    def _reach(self, budgets: Sequence[int]) -> int | None:
        """Bytes of ranked blocks that a device may need; None: of all of them."""
        if wire.UNLIMITED in budgets:
            return None
        limits = [budget for budget in budgets if budget >= 0]
        if wire.OWN_BUDGET in budgets:
            limits.append(int(self.members.ceilings.max()))
        return int(REACH * max(limits))


def overall_recall(reply: wire.EvaluateReply, place: int = 0) -> float:
    """Mean recall over all devices with test items, under one of the budgets asked for."""
    return float(reply.by_budget()[place].mean()[0])


def qualities(reply: wire.EvaluateReply) -> list[Quality]:
    """Means over devices, for each of the budgets asked for."""
    recall, ndcg = reply.by_budget().mean()
    return [Quality(float(r), float(n)) for r, n in zip(recall, ndcg, strict=True)]


def margins_of(sums: MetricSums) -> list[float | None]:
    """Half the width of the 95 % interval of the mean recall of every cell; None where less than two devices count."""
    return [None if np.isnan(margin) else float(margin) for margin in sums.margin().tolist()]


__all__ = ["MESSAGE_BYTES", "REACH", "Evaluator", "margins_of", "overall_recall", "qualities"]
