"""The contract suite of server contents, to be subclassed in your own tests.

::

    from strategies.rounds.contracts import ServerContentsContract
    from my_package import SignOfMean

    class TestSignOfMean(ServerContentsContract):
        contents = SignOfMean

pytest runs the inherited ``test_`` methods; nothing but pytest (or any runner that finds such methods) is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import RowOrder
from fl_peel.exchange.release import sparse
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.scenario import Scenario
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.wire import Arrays, RunSetting
from strategies.groups.state import ServerOptimizer, UserGroupState
from strategies.nodes import Members
from strategies.rounds.contents import ServerContents
from strategies.rounds.federation import Federation, SentRound

NUM_ITEMS, DIM, SLICES, GROUPS = 6, 4, 2, 2


class ServerContentsContract:
    """Contract suite of a contribution on the server side: subclass it and set ``contents``, for contributions in the
    clear; ``keys``: scenario keys that it needs. For others, override :meth:`contribution`, the contribution of nodes
    to a user group.
    """

    contents: ClassVar[type[ServerContents]]
    keys: ClassVar[dict[str, object]] = {}

    def contribution(self, seed: int, blocks: int) -> Arrays:
        """Return one node's sums: in the clear, of two devices that changed some rows."""
        rng = np.random.default_rng(seed)
        rows = RowOrder.from_blocks(self.layout, np.arange(blocks)).items
        shape = (len(rows), DIM)
        touched = rng.integers(0, 3, (len(rows), SLICES))
        moved = rng.normal(0, 0.1, shape) * np.repeat(touched > 0, DIM // SLICES, axis=1)
        values = {
            "sums": np.rint(moved * FIXED_POINT).astype(np.int64),
            "touched": touched,
            "row_loss": rng.integers(0, int(FIXED_POINT), len(rows)),
            "row_examples": touched.max(axis=1),
            "holders": np.full(blocks, 2),
            "hits": rng.integers(0, int(FIXED_POINT), blocks),
            "shown": rng.integers(0, int(FIXED_POINT), blocks),
            "exposed": np.full(blocks, 2),
        }
        return sparse({name: np.asarray(array, np.int64) for name, array in values.items()})

    layout = BlockLayout(np.arange(NUM_ITEMS, dtype=np.int32), DIM, SLICES)

    def federation(self) -> Federation:
        """Return two user groups without nodes."""
        keys = {"name": "contract", "data": {"path": "interactions.csv"}, **self.keys}
        scenario = Scenario.model_validate(keys)
        rng = np.random.default_rng(0)
        states = []
        for _ in range(GROUPS):
            shares = rng.random((5, self.layout.num_blocks)).astype(np.float32)
            optimizer = ServerOptimizer(scenario.refinement.aggregation.optimizer, 1.0)
            table = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
            counted = np.ones(self.layout.num_blocks)
            states.append(
                UserGroupState(
                    table,
                    BlockStatistics(shares[0], shares[1], shares[2], shares[3], shares[4]),
                    optimizer,
                    counted.copy(),
                    counted.copy(),
                )
            )
        groups = np.array([0, 0, 1, 1], np.int32)
        members = Members(np.arange(4), groups, np.full(GROUPS, 10_000, np.int64), ("phone",))
        setting = RunSetting(scenario.to_json(), "", "")
        return Federation(scenario, setting, self.layout, states, members, cast(Any, None), 1.0)

    def after(self, parts: Sequence[Arrays]) -> Federation:
        """Return the federation after a round in which the nodes of the first user group contributed these parts."""
        federation = self.federation()
        contents = self.contents(federation, None)
        blocks = np.arange(self.layout.num_blocks)
        sent = SentRound(1, True, 4, np.array([2, 2]), {0: blocks, 1: blocks})
        contents.take(sent, {0: list(parts)}, {})
        return federation

    def test_nodes_do_not_matter(self) -> None:
        """Parts in any order give the same tables to the last bit."""
        parts = [self.contribution(seed, self.layout.num_blocks) for seed in range(3)]
        one, other = self.after(parts), self.after(parts[::-1])
        for mine, theirs in zip(one.states, other.states, strict=True):
            assert np.array_equal(mine.table, theirs.table), "the order of replies changed a table"
            for name, array in vars(mine.statistics).items():
                assert np.array_equal(array, getattr(theirs.statistics, name)), f"the order of replies changed {name}"

    def test_tables_stay_finite_and_in_shape(self) -> None:
        """Tables stay finite and keep their shape after an ordinary round."""
        for state in self.after([self.contribution(seed, self.layout.num_blocks) for seed in range(3)]).states:
            assert state.table.shape == (NUM_ITEMS, DIM), f"a table of shape {state.table.shape}"
            assert state.table.dtype == np.float32, f"a table of {state.table.dtype}"
            assert np.isfinite(state.table).all(), "a table is no longer finite"

    def test_what_nobody_spoke_of_stays(self) -> None:
        """A user group without sums stays unchanged."""
        before, after = self.federation(), self.after([self.contribution(0, self.layout.num_blocks)])
        assert np.array_equal(before.states[1].table, after.states[1].table), "a user group without sums changed"

    def test_a_round_of_nobody_is_no_mistake(self) -> None:
        """A round without sums is accepted."""
        federation = self.federation()
        sent = SentRound(1, True, 0, np.zeros(GROUPS, np.int64), {})
        self.contents(federation, None).take(sent, {}, {})

    def test_groups_that_are_asked_are_sent_something(self) -> None:
        """Check that every user group with a requested device is among those whose blocks are ranked."""
        contents = self.contents(self.federation(), None)
        assert set(contents.groups(np.array([1, 1, 0], np.int32))) >= {0, 1}
