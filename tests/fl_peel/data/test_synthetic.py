import numpy as np
import pytest

from fl_peel.data.synthetic import planted_interactions
from fl_peel.errors import DataError


def rows_of(data):
    return [data.pairs.row(user).tolist() for user in range(data.num_users)]


def test_worlds_are_disjoint_without_noise():
    data = planted_interactions(1, users_per_group=5, items_per_group=8, groups=3, per_user=4)
    assert (data.num_users, data.num_items, data.timestamps) == (15, 24, None)
    assert data.pairs.counts().tolist() == [4] * 15
    assert (data.pairs.items // 8 == data.pairs.users() // 5).all()
    assert all(len(set(row)) == 4 for row in rows_of(data))


def test_interleaved_numbers():
    data = planted_interactions(1, 5, 8, 3, 4, interleaved=True)
    assert (data.pairs.items % 3 == data.pairs.users() % 3).all()


def test_same_seed_same_data_and_more_users_change_nobody():
    small = planted_interactions(3, 4, 10, 2, 5, interleaved=True)
    assert rows_of(small) == rows_of(planted_interactions(3, 4, 10, 2, 5, interleaved=True))
    assert rows_of(small) == rows_of(planted_interactions(3, 9, 10, 2, 5, interleaved=True))[:8]
    assert rows_of(small) != rows_of(planted_interactions(4, 4, 10, 2, 5, interleaved=True))


def test_popularity_follows_the_power_law():
    # One item per user: probability (r + 1) ** -1 / H_4, H_4 = 1 + 1/2 + 1/3 + 1/4 = 25/12: .48 .24 .16 .12.
    # 3000 users: 5 standard deviations of the largest are 5 * sqrt(3000 * .48 * .52) = 137.
    data = planted_interactions(0, 3000, 4, 1, 1)
    expected = 3000 * np.array([0.48, 0.24, 0.16, 0.12])
    assert (np.abs(data.pairs.popularity(4) - expected) < 137).all()
    flat = planted_interactions(0, 3000, 4, 1, 1, exponent=0.0).pairs.popularity(4)
    assert (np.abs(flat - 750) < 119).all()  # 5 * sqrt(3000 * .25 * .75) = 118.6


def test_noise_is_the_share_from_other_worlds():
    # 2 * 200 users with 10 items: 4000 draws, a quarter foreign: 1000 +- 5 * sqrt(4000 * .25 * .75) = 137.
    data = planted_interactions(0, 200, 30, 2, 10, noise=0.25)
    foreign = (data.pairs.items // 30 != data.pairs.users() // 200).sum()
    assert abs(foreign - 1000) < 137
    assert data.pairs.counts().tolist() == [10] * 400


@pytest.mark.parametrize("kwargs", [{"per_user": 9}, {"per_user": 0}, {"noise": 1.5}, {"groups": 1, "noise": 0.1}])
def test_impossible_plans_are_refused(kwargs):
    plan = {"users_per_group": 2, "items_per_group": 8, "groups": 2, "per_user": 3} | kwargs
    with pytest.raises(DataError, match="planted data: "):
        planted_interactions(0, **plan)
