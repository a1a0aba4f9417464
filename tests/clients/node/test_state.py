"""What devices start with is the same, however many join at a time."""

import itertools

import numpy as np
import pytest

from clients.node.state import NAMES, DeviceState
from fl_peel.errors import EngineError


def some(count):
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 4, count).astype(np.int32)


@pytest.mark.parametrize("ends", [(0, 4, 8, 10), (0, 1, 10, 10), (0, 10)])
def test_parts_are_the_whole(ends, tmp_path):
    users, groups = some(10)
    DeviceState.create(tmp_path / "whole", users, groups)
    for first, stop in itertools.pairwise(ends):
        DeviceState.begin(tmp_path / "parts", 10, first, users[first:stop], groups[first:stop])
    for name in NAMES:
        assert (np.load(tmp_path / "whole" / f"{name}.npy") == np.load(tmp_path / "parts" / f"{name}.npy")).all()


def test_a_part_without_those_before_it_is_refused(tmp_path):
    users, groups = some(4)
    with pytest.raises(EngineError, match="devices with smaller numbers have not joined"):
        DeviceState.begin(tmp_path, 10, 4, users, groups)
    DeviceState.create(tmp_path, users, groups)  # of another population
    with pytest.raises(EngineError, match="devices with smaller numbers have not joined"):
        DeviceState.begin(tmp_path, 10, 4, users, groups)
