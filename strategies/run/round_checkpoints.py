"""A refinement that goes on after the last round that was kept.

What rounds change is kept as it is, but for item tables: of these, only rows that some round may have changed since the
start, which is made anew. That bounds what a round leaves on the disk by what its devices trained. They go to a file
of their own, table after table, and never are in memory together.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.groups.group_tables import FloatArray
from strategies.rounds.acceptance import AcceptanceTest
from strategies.rounds.strategy import PeelStrategy
from strategies.run.checkpoint_codec import Live
from strategies.run.checkpoints import RunCheckpoints
from strategies.run.row_file import RowFile


class RoundCheckpoints:
    """The rounds of one refinement that is about to begin. keeping: what compares them, if anything does."""

    def __init__(self, checkpoints: RunCheckpoints, strategy: PeelStrategy, acceptance: AcceptanceTest | None) -> None:
        self._checkpoints, self._strategy, self._acceptance = checkpoints, strategy, acceptance
        about = f"{strategy.federation.begin}\n{strategy.scenario.to_json()}"
        self._name = f"rounds-{hashlib.blake2b(about.encode(), digest_size=6).hexdigest()}"
        strategy.changed = np.zeros((len(strategy.states), strategy.layout.num_items), np.bool_)

    def resume(self) -> int:
        """Take up what was kept; returns how many rounds are done."""
        entry = self._checkpoints.read(self._name, self._live(), lambda value, rows: rows.check(value["sums"]))
        if entry is None:
            return 0
        strategy, value = self._strategy, entry.value
        strategy.changed = value["changed"]
        strategy.controller, strategy.contents, strategy.channel, strategy.rounds = value["parts"]
        strategy.states[:] = value["states"]
        for state in strategy.states:
            state.drop_pages()
        if self._acceptance is not None:
            self._acceptance.resume(value["keeping"])
        done: int = value["done"]
        entry.rows.read(self._tables(done), value["sums"])
        return done

    def after(self, server_round: int) -> None:
        """Keep what there is after a round."""
        strategy = self._strategy

        def content(rows: RowFile) -> dict[str, Any]:
            return {
                "done": server_round,
                "changed": strategy.changed,
                "parts": (strategy.controller, strategy.contents, strategy.channel, strategy.rounds),
                "states": list(strategy.states),
                "keeping": self._acceptance.state() if self._acceptance is not None else None,
                "sums": rows.write(self._tables(server_round)),
            }

        self._checkpoints.write(self._name, content, disks=True, number=server_round, live=self._live())

    def _tables(self, done: int) -> list[tuple[FloatArray, NDArray[np.bool_]]]:
        """Tables (I, d) that are not as they began, and which of their rows (I,) may have changed."""
        strategy, keeping = self._strategy, self._acceptance
        assert strategy.changed is not None
        tables = [(state.table, changed) for state, changed in zip(strategy.states, strategy.changed, strict=True)]
        if keeping is not None and done < strategy.scenario.refinement.rounds:  # then nothing is taken back any more
            tables += [
                (keeping.accepted_states[group].table, strategy.changed[group]) for group in keeping.accepted_groups
            ]
        return tables

    def _live(self) -> Live:
        """Return the objects that exist before the first round: parties, and every table as it starts, in which rows
        change.
        """
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
        live |= {"shelf": strategy.states[0].shelf} if strategy.states else {}
        if self._acceptance is not None:
            live |= {f"kept-{group}": state.table for group, state in enumerate(self._acceptance.accepted_states)}
        return live


__all__ = ["RoundCheckpoints"]
