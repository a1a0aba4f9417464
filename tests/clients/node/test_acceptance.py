"""What devices say of a refinement by hand: who is asked, under which bytes, by which items, and what it moves."""

from types import SimpleNamespace

import numpy as np
import pytest

from clients.node.evaluate import compare, keep
from fl_peel.array_specs import SUM_SCALE
from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import pack_ranking
from fl_peel.blocks.stored import overhead_bytes
from fl_peel.scenario.scenario import Scenario
from tests.helpers.blocks import rows_of

ITEMS = np.arange(30)
LAYOUT = BlockLayout(ITEMS.astype(np.int32), 1, 1)
TABLE = ITEMS.astype(np.float32)[:, None]
BASE, BESIDE, BLOCK, ID = overhead_bytes(1), 2, 6, 2  # beside the file lies the other user embedding
ALMOST_THREE = BASE + BESIDE + 3 * BLOCK - 1
EVERYTHING = BASE + BESIDE + 30 * BLOCK

FIRST, LAST = (pack_ranking(LAYOUT, "fp32", weights, TABLE, None) for weights in (-ITEMS, ITEMS))
"""Items 0, 1, 2 and so on; items 29, 28, 27 and so on."""


def cohort_of(device="cpu"):
    """Devices 0 and 1 of user group 0, 2 to 4 of group 1, 5 of group 2; 1, 4 and 5 are not available in round 7.

    Device 0 knows item 0, items 3 and 28 count; device 2 has nothing to say; device 3 holds all items, of which the
    best 20 are 0 to 19 for the embedding that it kept, and 10 to 29 for that of now, and item 5 counts.
    """
    up = np.ones((6, 1), np.float32)
    nothing = [[]] * 5
    pretraining = {"embedding_dim": 1, "diversity_slices": 1}
    given = {"name": "k", "data": {"path": "pairs.csv"}, "pretraining": pretraining, "blocks": {"num_slices": 1}}
    return SimpleNamespace(
        scenario=Scenario.model_validate({**given, "engine": {"device": device}}),
        layout=lambda: LAYOUT,
        splits=SimpleNamespace(
            train=rows_of([0], *nothing),
            validation=rows_of([28, 3], [1], [], [5], [], [1]),
            test=rows_of([29], *nothing),
        ),
        budgets=SimpleNamespace(at={7: np.array([ALMOST_THREE] * 3 + [EVERYTHING] + [ALMOST_THREE] * 2)}.get),
        available=lambda places, number: {7: ~np.isin(places, [1, 4, 5])}[number],
        state={
            "r": SimpleNamespace(
                groups=np.array([0, 0, 1, 1, 1, 2]), users=up, kept_users=np.where(ITEMS[:6, None] == 3, -up, up)
            )
        }.__getitem__,
    )


def compared(**changes):
    kept, current = {2: FIRST, 0: FIRST, 1: FIRST}, {2: LAST, 0: LAST, 1: FIRST}
    given = {"server_round": 7, "precision": "fp32", "num_groups": 4, "kept": kept, "current": current}
    return compare(cohort_of(**changes), SimpleNamespace(**given))


def test_who_is_there_and_knows_compares_what_it_has_with_what_it_had():
    """Device 0 has room for two blocks: items 1 and 2 of the first list, 29 and 28 of the last. With one more, or one
    less, there would be no difference.
    """
    reply = compared()
    assert reply.sums.devices.tolist() == [1, 1, 0, 0]
    assert (reply.sums.difference / SUM_SCALE).tolist() == [0.5, -1.0, 0, 0]
    assert (reply.sums.square / SUM_SCALE).tolist() == [0.25, 1.0, 0, 0]


def test_what_a_comparison_moves():
    first = 3 * BLOCK + ID  # item 0, which it knows, is passed over; and the number of the block where it stops
    assert compared().download_bytes == (first + 2 * BLOCK + ID) + 2 * 30 * BLOCK


def test_devices_compare_where_the_scenario_says(monkeypatch):
    monkeypatch.setattr("fl_peel.kernels.top_rows", None)
    assert compared(device="torch-cpu").sums.devices.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("accepted", [[], [1], [0, 2]])
def test_groups_keep_or_go_back(accepted):
    """Whoever keeps has it before anybody goes back."""
    now, before = np.arange(4.0)[:, None], np.arange(10.0, 14.0)[:, None]
    state = SimpleNamespace(groups=np.array([0, 1, 2, 1]), users=now.copy(), kept_users=before.copy())
    reply = keep(
        SimpleNamespace(state={"r+": state}.__getitem__),
        SimpleNamespace(accepted=np.array(accepted, int), restored=np.array([1, 2])),
    )
    taken = np.isin(state.groups, accepted)[:, None]
    assert (reply.accepted, reply.restored) == (taken.sum(), 3)
    assert (state.kept_users == np.where(taken, now, before)).all()
    assert (state.users == np.where(taken | (state.groups == 0)[:, None], now, before)).all()
