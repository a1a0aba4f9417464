"""What the server knows about blocks, before anybody has said anything and after."""

import numpy as np
import pytest

from fl_peel.weighting.block_statistics import BlockStatistics


def test_what_is_not_known_is_shared_until_a_group_learns():
    unknown = BlockStatistics.unknown(3)
    one, other = (BlockStatistics(*np.ones((3, 3), np.float32), energy=np.ones(3, np.float32), **unknown) for _ in "ab")
    assert one.hits is other.hits
    assert (one.loss.dtype, one.hits.dtype, one.exposure.dtype) == (np.float32, np.float64, np.float64)
    for _ in range(2):
        one.add_signals(np.array([1.0, 0, 2]), np.array([4.0, 4, 4]), 0.5)
    assert (one.hits.tolist(), one.exposure.tolist()) == ([1.5, 0, 3], [6, 6, 6])
    assert other.loss.tolist() == other.hits.tolist() == other.exposure.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        other.loss[0] = 1
