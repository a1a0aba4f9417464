"""What devices start with is the same, however many join at a time."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from clients.node.cohort import NAMES, DeviceState
from clients.node.joining import PreviousHoldings, staying
from fl_peel.errors import EngineError
from fl_peel.wire import OWN_BUDGET


def some(count):
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 4, count).astype(np.int32)


@pytest.mark.parametrize("ends", [(0, 4, 8, 10), (0, 1, 10, 10), (0, 10)])
def test_parts_are_the_whole(ends, tmp_path):
    users, groups = some(10)
    DeviceState.begin(tmp_path / "whole", 10, 0, users, groups)
    for first, stop in itertools.pairwise(ends):
        DeviceState.begin(tmp_path / "parts", 10, first, users[first:stop], groups[first:stop])
    for name in NAMES:
        assert (np.load(tmp_path / "whole" / f"{name}.npy") == np.load(tmp_path / "parts" / f"{name}.npy")).all()


def test_a_part_without_those_before_it_is_refused(tmp_path):
    users, groups = some(4)
    with pytest.raises(EngineError, match="devices with smaller numbers have not joined"):
        DeviceState.begin(tmp_path, 10, 4, users, groups)
    DeviceState.begin(tmp_path, 4, 0, users, groups)  # of another population
    with pytest.raises(EngineError, match="devices with smaller numbers have not joined"):
        DeviceState.begin(tmp_path, 10, 4, users, groups)


def before(groups):
    count = len(groups)
    return PreviousHoldings(
        np.array(groups), np.zeros((count, 2), np.int64), np.zeros((0, 0), np.int32), np.array([9, OWN_BUDGET])
    )


def test_groups_have_the_numbers_of_now():
    """Of groups 0 to 3, 1 was dissolved and a new one came."""
    assert before([0, 1, 2, 3, -1]).current_groups(np.array([0, 2, 3, -1])).tolist() == [0, -1, 1, 2, -1]
    assert before([2, -1]).current_groups(np.array([-1, -1])).tolist() == [-1, -1], "before there were any"
    assert before([-1, -1]).current_groups(np.array([0, 1])).tolist() == [-1, -1]


def test_it_is_remembered_for_more_devices_than_there_were(tmp_path):
    def cohort(devices):
        return SimpleNamespace(devices=np.arange(devices), held_file=tmp_path / "nodes" / "held.npz")

    first = PreviousHoldings.read(cohort(2), np.array([9, OWN_BUDGET]))
    assert first.groups.tolist() == [-1, -1]
    assert first.cutoffs.shape == (2, 2)
    PreviousHoldings(np.array([3, 1]), np.array([[5, 6], [7, 8]]), np.ones((4, 3), np.int32), first.budgets).save(
        cohort(2)
    )
    later = PreviousHoldings.read(cohort(3))
    assert later.groups.tolist() == [3, 1, -1]
    assert later.cutoffs.tolist() == [[5, 6], [7, 8], [0, 0]]
    assert later.own == 1
    assert PreviousHoldings.read(cohort(1)).groups.tolist() == [3, 1], "those that are not there now keep theirs"


def test_a_group_is_changed_where_it_is_worth_the_download():
    """Vectors of length 1 at 0, 37 and 90 degrees; centroids at 0 and 90: squared distances of the second are 0.4 to
    the first centroid and 0.8 to the second.
    """
    vectors = np.array([[2, 0], [4, 3], [0, 1], [4, 3]], np.float32)
    centroids = np.array([[1, 0], [0, 1]], np.float32)
    nearest, last = np.array([0, 0, 1, 0], np.int32), np.array([1, 1, 1, -1])
    for share, groups in ((0.0, [0, 0, 1, 0]), (0.49, [0, 0, 1, 0]), (0.51, [0, 1, 1, 0]), (0.99, [0, 1, 1, 0])):
        assert staying(vectors, centroids, nearest, last, share).tolist() == groups, share
