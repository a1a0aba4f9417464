"""Evaluation of devices under budgets: the requests to all nodes, and the sums of their replies."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.array_specs import MessageContext
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import pack_ranking
from fl_peel.scenario.scenario import Scenario
from fl_peel.scenario.settings import Precision
from strategies.nodes import EVALUATED_BYTES, Content, Members, NodeRequest, bounds_of, packed_batches
from strategies.rounds.federation import Federation
from strategies.rounds.strategy import PeelStrategy

Tables = NDArray[np.float32] | Callable[[int], NDArray[np.float32]]
"""A table (I, d) that serves all devices, whole, or as it serves each user group."""
REACH = 1.25
"""Devices skip blocks they never need, so they reach further down the list than their budget alone would. Where that is
not far enough for one of them, all of its message are asked again with a list twice as long: what a device gets under
a budget depends on that budget alone.
"""


class EvaluationOptions(TypedDict, total=False):
    """The options of an evaluation besides its budgets, see :meth:`Evaluator.evaluate`."""

    precision: Precision | None
    selector: str | None
    split: str
    everybody: Tables | None
    label: str
    artifacts: NDArray[np.int64] | None
    factors: Sequence[float] | None
    rooms: Sequence[float] | None
    per_device: bool
    devices: tuple[int, int]
    on_validation: int
    stored: int


@dataclass(frozen=True)
class BudgetRequest:
    """The budgets of one request, to be sent with others. factors, rooms: one a budget, as in
    :meth:`Evaluator.evaluate`, without them 1 and -1; on_validation: whether validation items are to be found under
    them, not those of the test.
    """

    budgets: tuple[int, ...]
    factors: tuple[float, ...] = ()
    rooms: tuple[float, ...] = ()
    on_validation: bool = False


@dataclass(frozen=True)
class EvaluationParts:
    """The replies about user groups' tables, message by message, and node by node where that is wanted. groups: user
    groups of each message; nodes: partition of the node that each reply is from, -1 for the sum over all nodes.
    """

    groups: tuple[tuple[int, ...], ...]
    replies: tuple[wire.EvaluateReply, ...]
    nodes: tuple[int, ...]

    @property
    def whole(self) -> wire.EvaluateReply:
        return reduce(add, self.replies)

    def only(self, places: slice) -> EvaluationParts:
        return replace(self, replies=tuple(reply.only(places) for reply in self.replies))

    def without(self, changed: Container[int] = (), excluded: Container[int] = ()) -> EvaluationParts:
        """Return the replies of messages about none of the ``changed`` user groups, but of no ``excluded`` node."""
        kept = [
            place
            for place, some in enumerate(self.groups)
            if self.nodes[place] not in excluded and not any(group in changed for group in some)
        ]
        return EvaluationParts(*(tuple(parts[place] for place in kept) for parts in self._columns))

    def __add__(self, other: EvaluationParts) -> EvaluationParts:
        return EvaluationParts(*(mine + theirs for mine, theirs in zip(self._columns, other._columns, strict=True)))

    @property
    def _columns(self) -> tuple[tuple[Any, ...], ...]:
        return self.groups, self.replies, self.nodes


@dataclass(frozen=True)
class Evaluator:
    """Asks all nodes what their devices get from tables as they are now.

    weights: block weights (B,) of every user group under a selector; server_round: of whose budgets OWN_BUDGET is, None
    for the last of refinement.
    """

    federation: Federation
    weights: Callable[[str], list[NDArray[np.float64]]]
    message_bytes: int = EVALUATED_BYTES
    server_round: int | None = None

    @classmethod
    def from_strategy(cls, strategy: PeelStrategy) -> Self:
        """Build an evaluator of the tables and block weights that a strategy has."""
        return cls(strategy.federation, strategy.weights)

    @property
    def scenario(self) -> Scenario:
        return self.federation.scenario

    @property
    def layout(self) -> BlockLayout:
        return self.federation.layout

    @property
    def members(self) -> Members:
        return self.federation.members

    def evaluate(self, budgets: Sequence[int], **asked: Unpack[EvaluationOptions]) -> wire.EvaluateReply:
        """Let every device rank all items under each budget (bytes, UNLIMITED or OWN_BUDGET); return the sums of their
        replies.

        precision, selector: by default the scenario's. factors, rooms: one a budget, see
        :class:`fl_peel.wire.EvaluateRequest`; without them 1 and -1. everybody: what serves all devices instead of
        their user groups' own tables. per_device: tell what single devices get, too, where the scenario
        wants to know. Only the test has replicates: what is chosen on validation needs no interval. devices: numbers of
        the first that counts and the one after the last, -1 for all from there on. on_validation, stored: see
        :class:`fl_peel.wire.EvaluateRequest`.
        """
        return self.in_parts(budgets, **asked).whole

    def together(
        self,
        rows: Sequence[BudgetRequest],
        *,
        precision: Precision | None = None,
        selector: str | None = None,
        label: str = "",
        artifacts: NDArray[np.int64] | None = None,
    ) -> list[wire.EvaluateReply]:
        """Several questions about the same lists, which are sent and looked at once; a reply to each, which has what
        single devices get on the test. artifacts: under the budgets of the first.
        """
        order = sorted(range(len(rows)), key=lambda place: rows[place].on_validation)  # those on validation come last
        asked = [rows[place] for place in order]
        factors = [one.factors or (1.0,) * len(one.budgets) for one in asked]
        rooms = [one.rooms or (-1.0,) * len(one.budgets) for one in asked]
        reply = self.evaluate(
            [budget for one in asked for budget in one.budgets],
            precision=precision,
            selector=selector,
            label=label,
            artifacts=artifacts,
            factors=[factor for some in factors for factor in some],
            rooms=[room for some in rooms for room in some],
            per_device=True,
            on_validation=sum(len(one.budgets) for one in asked if one.on_validation),
            stored=len(rows[0].budgets),
        )
        replies, first = {}, 0
        for place in order:
            last = first + len(rows[place].budgets)
            replies[place], first = reply.only(slice(first, last)), last
        return [replies[place] for place in range(len(rows))]

    def in_parts(
        self,
        budgets: Sequence[int],
        groups: Iterable[int] | None = None,
        *,
        by_node: bool = False,
        **asked: Unpack[EvaluationOptions],
    ) -> EvaluationParts:
        """Evaluate as :meth:`evaluate`, by message. groups: None for all; by_node: replies of nodes kept apart."""
        scenario, layout, split = self.scenario, self.layout, asked.get("split", "test")
        coded, everybody = asked.get("precision") or scenario.blocks.precision, asked.get("everybody")
        factors, rooms, artifacts = asked.get("factors"), asked.get("rooms"), asked.get("artifacts")
        ones = [1.0] * len(budgets)
        as_numbered = np.arange(layout.num_blocks, 0, -1.0)
        if isinstance(everybody, np.ndarray):
            weights = {wire.EVERYBODY: as_numbered}
        elif everybody is not None or set(budgets) == {wire.UNLIMITED}:  # of all blocks, the order says nothing
            weights = dict.fromkeys(range(len(self.federation.states)), as_numbered)
        else:
            weights = dict(enumerate(self.weights(asked.get("selector") or scenario.selector)))

        def request_of(groups: dict[int, wire.Arrays]) -> Content:
            request = wire.EvaluateRequest(
                self.federation.setting,
                scenario.refinement.rounds if self.server_round is None else self.server_round,
                coded,
                split,
                asked.get("label", ""),
                np.array(budgets, np.int64),
                np.array(ones if factors is None else factors, np.float64),
                np.negative(ones) if rooms is None else np.array(rooms, np.float64),
                np.zeros(0, np.int64) if artifacts is None else artifacts,
                groups,
                scenario.evaluation.bootstrap if split == "test" else 0,
                asked.get("per_device", False) and scenario.evaluation.per_device,
                *asked.get("devices", (0, -1)),
                asked.get("on_validation", 0),
                asked.get("stored", -1),
            )
            return lambda partition: NodeRequest(request, self._known(request, partition))

        def served(some: Iterable[int], reach: int | None) -> EvaluationParts:
            def pack(group: int) -> wire.Arrays:
                if everybody is not None:
                    table = everybody if isinstance(everybody, np.ndarray) else everybody(group)
                    return pack_ranking(layout, coded, weights[group], table, reach)
                return self.federation.states[group].packed(layout, coded, weights[group], reach)

            together: list[list[int]] = []

            def questions() -> Iterator[Content]:
                for groups in packed_batches(some, pack, self.message_bytes):
                    together.append(list(groups))
                    yield request_of(groups)

            nodes = self.federation.nodes
            replies = [
                one if by_node else {-1: reduce(add, one.values())}
                for one in nodes.ask_each(wire.EVALUATE, questions())
            ]
            parts = EvaluationParts((), (), ())
            for groups, by_partition in zip(together, replies, strict=True):
                if reach is not None and any(reply.short for reply in by_partition.values()):
                    parts += served(groups, 2 * reach if 2 * reach < whole else None)
                else:
                    many = (tuple(groups),) * len(by_partition)
                    parts += EvaluationParts(many, tuple(by_partition.values()), tuple(by_partition))
            return parts

        whole = int(layout.block_bytes(coded).sum())
        some = list(weights if groups is None else groups)
        return self.federation.nodes.settled(lambda: served(some, self._reach(budgets, rooms)))

    def _known(self, request: wire.EvaluateRequest, partition: int) -> MessageContext:
        """Return what a node's right answer looks like: how many devices it hosts, and the user groups they are in."""
        members, groups = self.members, list(request.groups)
        here = self.federation.nodes.partitions_of(members.devices) == partition
        reached = here if wire.EVERYBODY in groups else here & np.isin(members.groups, groups)
        single = members.devices[reached if request.per_device else np.zeros_like(reached)]
        sizes = {
            "X": len(request.budgets),
            "C": len(members.class_names),
            "G": len(self.federation.states),
            "groups": max(int(members.groups[here].max(initial=-1)), *groups) + 1,
            "B": request.replicates,
            "M": len(single),
            "K": len(self.scenario.evaluation.list_lengths),
            "S": self.scenario.shown_bytes(self.layout.num_items),
            **bounds_of(int(here.sum())),
        }
        return MessageContext(sizes, {"devices": single})

    def own_budgets(self) -> wire.EvaluateReply:
        """Evaluate every device under its own budget of the moment."""
        return self.evaluate([wire.OWN_BUDGET], per_device=True)

    def full_tables(
        self,
        *,
        with_validation: bool = False,
        groups: Iterable[int] | None = None,
        everybody: Tables | None = None,
    ) -> EvaluationParts:
        """Evaluate every device with the whole fp32 table of its user group, or the same for all devices, message by
        message: on the test and also on validation; node by node, so that those of one that is excluded
        later can be left out.
        """
        return self.in_parts(
            [wire.UNLIMITED] * (1 + with_validation),
            precision="fp32",
            per_device=True,
            on_validation=int(with_validation),
            groups=groups,
            everybody=everybody,
            by_node=True,
        )

    def full_table(self, everybody: Tables | None = None) -> wire.EvaluateReply:
        """Evaluate every device with a whole fp32 table: that of its user group, or the same for all devices."""
        return self.evaluate([wire.UNLIMITED], precision="fp32", everybody=everybody, per_device=True)

    def _reach(self, budgets: Sequence[int], rooms: Sequence[float] | None) -> int | None:
        """Bytes of ranked blocks that a device may need; None: of all of them."""
        if wire.UNLIMITED in budgets:
            return None
        most = int(self.members.ceilings.max())
        limits = [] if wire.OWN_BUDGET not in budgets else [most]
        for budget, room in zip(budgets, rooms or [-1.0] * len(budgets), strict=True):
            if budget >= 0:
                limits.append(budget if room < 0 else min(budget, int(room * most)))
        return int(REACH * max(limits))


def overall_recall(reply: wire.EvaluateReply) -> float:
    """Mean recall over all devices with test items, under the first of the budgets asked for."""
    return float(reply.by_budget()[0].mean()[0])
