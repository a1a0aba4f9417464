"""A refinement that goes on after the last round that was kept.

What rounds change is kept as it is, but for item tables: of these, only rows that some round may have changed since the
start, which is made anew. That bounds what a round leaves on the disk by what its devices trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.groups.state import UserGroupState
from strategies.rounds.keeping import Keeping
from strategies.rounds.strategy import PeelStrategy
from strategies.run.kept import Kept
from strategies.run.values import Live


class KeptRounds:
    """The rounds of one refinement that is about to begin. keeping: what compares them, if anything does."""

    def __init__(self, kept: Kept, strategy: PeelStrategy, keeping: Keeping | None) -> None:
        self._kept, self._strategy, self._keeping = kept, strategy, keeping
        about = f"{strategy.federation.begin}\n{strategy.scenario.to_json()}"
        self._name = f"rounds-{hashlib.blake2b(about.encode(), digest_size=6).hexdigest()}"
        strategy.changed = np.zeros((len(strategy.states), strategy.layout.num_items), np.bool_)

    def go_on(self) -> int:
        """Take up what was kept; returns how many rounds are done."""
        found = self._kept.read(self._name, self._live())
        if found is None:
            return 0
        strategy, keeping, value = self._strategy, self._keeping, found.value
        strategy.changed = value["changed"]
        strategy.controller, strategy.contents, strategy.channel, strategy.rounds = value["parts"]
        strategy.states[:] = value["states"]
        self._fill(strategy.states, value["rows"])
        if keeping is not None:
            vars(keeping).update(value["keeping"])
            self._fill(keeping.kept, value["kept rows"])
        done: int = value["done"]
        return done

    def after(self, server_round: int) -> None:
        """Keep what there is after a round."""
        strategy, keeping = self._strategy, self._keeping
        value: dict[str, Any] = {
            "done": server_round,
            "changed": strategy.changed,
            "parts": (strategy.controller, strategy.contents, strategy.channel, strategy.rounds),
            "states": list(strategy.states),
            "rows": self._rows(strategy.states),
        }
        if keeping is not None:
            value["keeping"] = {name: part for name, part in vars(keeping).items() if name != "strategy"}
            value["kept rows"] = self._rows(keeping.kept)
        self._kept.write(self._name, value, disks=True, number=server_round, live=self._live())

    def _live(self) -> Live:
        """What is there before the first round: parties, and every table as it starts, in which rows change."""
        strategy, federation = self._strategy, self._strategy.federation
        live: dict[str, object] = {
            "federation": federation,
            "nodes": federation.nodes,
            "members": federation.members,
            "layout": federation.layout,
            "setting": federation.setting,
            "scenario": federation.scenario,
            "plan": strategy.contents.plan,
        }
        live |= {f"table-{group}": state.table for group, state in enumerate(strategy.states)}
        if self._keeping is not None:
            live |= {f"kept-{group}": state.table for group, state in enumerate(self._keeping.kept)}
        return live

    def _rows(self, states: Sequence[UserGroupState]) -> list[NDArray[np.float32]]:
        assert self._strategy.changed is not None
        return [state.table[changed] for state, changed in zip(states, self._strategy.changed, strict=True)]

    def _fill(self, states: Sequence[UserGroupState], rows: Sequence[NDArray[np.float32]]) -> None:
        assert self._strategy.changed is not None
        for state, changed, mine in zip(states, self._strategy.changed, rows, strict=True):
            state.table[changed] = mine


__all__ = ["KeptRounds"]
