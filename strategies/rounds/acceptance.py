"""Acceptance of rounds by user groups, by paired comparisons on devices' validation items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_peel import wire
from fl_peel.mmap_arrays import drop_pages_now
from fl_peel.ranking.bootstrap import Effects, PairedSums
from strategies.groups.state import UserGroupState, copied_states
from strategies.nodes import EVALUATED_BYTES, Content, batches
from strategies.rounds.strategy import PeelStrategy

Lists = Callable[[int], wire.Arrays]


@dataclass(frozen=True)
class Comparison:
    """One comparison. sums: (G,) over devices; effects: (G,) what groups gain; accepted: (G,)."""

    server_round: int
    sums: PairedSums
    effects: Effects
    accepted: NDArray[np.bool_]
    download_bytes: int

    @property
    def mean_gain(self) -> float:
        """Return the mean difference over all devices that compared; 0 where none did."""
        return float(self.sums.total().reshaped(1).mean()[0])


@dataclass
class AcceptanceTest:
    """Compares a strategy's groups with what they kept last, every so many rounds, and takes back what is not better.

    folder: where large tables may lie; accepted_rounds: (G,) of each group so far; comparisons: their results.
    """

    strategy: PeelStrategy
    folder: InitVar[str] = ""
    accepted_rounds: NDArray[np.int64] = field(init=False)
    comparisons: list[Comparison] = field(default_factory=list)
    _accepted_states: list[UserGroupState] = field(init=False, repr=False)
    _weights: list[NDArray[np.float64]] = field(init=False, repr=False)

    def __post_init__(self, folder: str) -> None:
        strategy = self.strategy
        self.accepted_rounds = np.zeros(len(strategy.states), np.int64)
        self._accepted_states = copied_states(strategy.states, folder)
        weights = strategy.weights(strategy.scenario.selector)
        self._weights = [state.shelved(mine) for state, mine in zip(self._accepted_states, weights, strict=True)]

    def __getstate__(self) -> dict[str, object]:
        """Return the outcome; the strategy and its tables are not part of it."""
        return {"accepted_rounds": self.accepted_rounds, "comparisons": self.comparisons}

    def state(self) -> dict[str, Any]:
        """Return the outcome so far, with every user group whose rounds were kept; its table is not part of it."""
        kept = {group: (self._accepted_states[group], self._weights[group]) for group in self.accepted_groups}
        return {"rounds_kept": self.accepted_rounds, "comparisons": self.comparisons, "kept": kept}

    def resume(self, saved: dict[str, Any]) -> None:
        self.accepted_rounds, self.comparisons = saved["rounds_kept"], saved["comparisons"]
        for group, (state, weights) in saved["kept"].items():
            self._accepted_states[group], self._weights[group] = state, weights

    @property
    def accepted_groups(self) -> list[int]:
        """User groups that have kept some round; the others are as they began."""
        return np.flatnonzero(self.accepted_rounds).tolist()

    @property
    def accepted_states(self) -> list[UserGroupState]:
        """Return every user group as it was kept last."""
        return self._accepted_states

    def after(self, server_round: int) -> None:
        """Compare if it is time; after the last round, groups go back to what they kept. Where no group has kept any
        round, and devices have gained nothing on average, this round is the last one.
        """
        refinement = self.strategy.scenario.refinement
        every, last = refinement.acceptance.every or refinement.rounds, server_round == refinement.rounds
        if server_round % every == 0 or last:
            self._compare(server_round)
            last = last or (not self.accepted_rounds.any() and self.comparisons[-1].mean_gain <= 0)
        if last:
            self._restore()
            self.strategy.completed_rounds = refinement.rounds

    def forget(self) -> None:
        """All rounds are done: what was kept is the strategy's, and how it turned out stays."""
        self._accepted_states, self._weights = [], []

    def _compare(self, server_round: int) -> None:
        strategy = self.strategy
        scenario, states = strategy.scenario, strategy.states
        weights = strategy.weights(scenario.selector)
        kept = self._lists(self._weights, self._accepted_states)
        sums, moved = self._compared(server_round, kept, self._lists(weights, states))
        effects = Effects.from_sums(sums)
        accepted = effects.better(scenario.refinement.acceptance.confidence)
        self.comparisons.append(Comparison(server_round, sums, effects, accepted, moved))
        for group in np.flatnonzero(accepted).tolist():
            self._accepted_states[group] = states[group].copied_to(self._accepted_states[group].table)
            self._weights[group] = states[group].shelved(weights[group])
        self.accepted_rounds[accepted] = server_round
        self._send_decisions(accepted=np.flatnonzero(accepted))

    def _compared(self, server_round: int, kept: Lists, current: Lists) -> tuple[PairedSums, int]:
        """Let devices compare two lists of their user group; return the sums (G,), and bytes that devices fetched."""
        strategy = self.strategy
        count, ceilings = len(strategy.states), strategy.members.ceilings
        sums, moved = PairedSums.zeros(count), 0

        def asked(some: list[int]) -> Content:
            request = wire.CompareRequest(
                strategy.setting,
                strategy.federation.begin + server_round,
                strategy.scenario.blocks.precision,
                count,
                {group: kept(group) for group in some},
                {group: current(group) for group in some},
            )
            return strategy.federation.to_all(request)

        together = batches(range(count), lambda group: 2 * int(ceilings[group]), EVALUATED_BYTES)
        for replies in strategy.nodes.ask_each(wire.COMPARE, map(asked, together)):
            for reply in replies.values():
                sums += reply.sums
                moved += reply.download_bytes
        return sums, moved

    def _lists(self, weights: Sequence[NDArray[np.float64]], states: Sequence[UserGroupState]) -> Lists:
        """Return the function that gives each user group, by number, its ranked blocks for the wire, as many as its
        largest budget holds. weights: (B,) of each group.
        """
        strategy = self.strategy

        def packed(group: int) -> wire.Arrays:
            ceiling, precision = int(strategy.members.ceilings[group]), strategy.scenario.blocks.precision
            blocks = states[group].packed(strategy.layout, precision, weights[group], ceiling)
            drop_pages_now(weights[group])
            return wire.packed_once(blocks)

        return packed

    def _restore(self) -> None:
        back = np.flatnonzero(self.accepted_rounds < self.strategy.scenario.refinement.rounds)
        for group in back.tolist():
            self.strategy.states[group] = self._accepted_states[group]
        if self.strategy.changed is not None:  # those that keep no round are as they began
            self.strategy.changed[self.accepted_rounds == 0] = False
        self._send_decisions(restored=back)

    def _send_decisions(self, **groups: NDArray[np.int64]) -> None:
        nobody = np.zeros(0, np.int64)
        decisions = {"accepted": nobody, "restored": nobody} | groups
        request = wire.KeepRequest(self.strategy.setting, **decisions)
        self.strategy.nodes.ask(wire.KEEP, self.strategy.federation.to_all(request))
