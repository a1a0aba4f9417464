"""Who spoils sums is found by halves, and two sums never differ by fewer devices than they may."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fl_peel.store import from_nodes, to_nodes
from strategies.rounds.masked_exchange import Suspects
from tests.helpers.examples import examples

NODES = 4


def taken(suspects, devices, liars, sums):
    """One sum over those that may be in it; returns whether it is right."""
    there = devices[suspects.may_be_in(0, devices, devices % NODES)]
    if len(there) < suspects.least:
        return None
    sums.append(set(there.tolist()))
    if liars & sums[-1]:
        suspects.spoiled(0, there, there % NODES)
        return False
    suspects.right(0, there, there % NODES)
    return True


@examples(100)
@given(data=st.data(), number=st.integers(8, 70), seed=st.integers(0, 99))
def test_a_liar_is_found_in_as_many_sums_as_halving_takes(data, number, seed):
    devices = np.sort(np.random.default_rng(seed).choice(500, number, replace=False))
    liar = data.draw(st.sampled_from(devices.tolist()))
    suspects, sums, right = Suspects(3), [], []
    while len(sums) < 20 and suspects.devices != {liar}:
        right.append(taken(suspects, devices, {liar}, sums))
    assert suspects.devices == {liar}
    assert right.count(False) <= len(sums) <= np.ceil(np.log2(number)) + 4
    assert taken(suspects, devices, {liar}, sums)
    assert len(sums[-1]) == number - 1


@examples(100)
@given(places=st.sets(st.integers(0, 39), min_size=2, max_size=4), seed=st.integers(0, 99))
@example(places={0, 4, 21, 35}, seed=91)  # those who were cleared are of a node that is left out
def test_of_several_liars_nobody_else_is_left_out(places, seed):
    """Until two of a node were found; then all of that node are."""
    devices = np.sort(np.random.default_rng(seed).choice(500, 40, replace=False))
    liars = {int(devices[place]) for place in places}
    suspects, sums = Suspects(3), []
    while len(sums) < 60 and (len(sums) < 1 or suspects.searching or not taken(suspects, devices, liars, sums)):
        taken(suspects, devices, liars, sums)
    assert suspects.devices <= liars
    assert not suspects.searching
    there = devices[suspects.may_be_in(0, devices, devices % NODES)]
    assert not liars & set(there.tolist())
    assert {device % NODES for device in liars} >= suspects.nodes


@examples(100)
@given(data=st.data(), number=st.integers(12, 70))
def test_of_sums_without_a_device_in_common_one_is_right_in_every_step_but_the_first(data, number):
    """As under a mechanism, where a device is in one sum of a step; what is known of the search is kept between."""
    devices, suspects, steps = np.arange(number), Suspects(3, step=3), 0
    liar = data.draw(st.sampled_from(devices.tolist()))
    while liar not in suspects.devices:
        left, right, more = devices, [], True
        while more and (there := suspects.may_be_in(0, left, left % NODES)).sum() >= suspects.least:
            more = suspects.searching
            one = left[there]
            right.append(liar not in one)
            if right[-1]:
                suspects.right(0, one, one % NODES, apart=len(left) < number)
            else:
                suspects.spoiled(0, one, one % NODES)
            left = left[~there]
        assert any(right) == (steps > 0)
        suspects, steps = from_nodes(*to_nodes(suspects)), steps + 1
    assert steps <= np.ceil(np.log2(number)) + 1
    assert len(suspects.devices) < 6


@pytest.mark.parametrize("silent", [False, True])
def test_no_search_waits_for_devices_that_are_left_out_or_silent(silent):
    """Of node 3, two are found while others of it wait; or a liar is never heard of again."""
    devices = np.sort(np.random.default_rng(25).choice(500, 40, replace=False))
    liars, suspects, sums = {71, 383, 391}, Suspects(3), []
    for _ in range(25):
        if silent and len(sums) == 3:
            devices = devices[~np.isin(devices, list(liars))]
        if taken(suspects, devices, liars, sums) and not suspects.searching:
            break
    assert not suspects.searching
    assert suspects.nodes == (set() if silent else {3})


def test_a_block_is_left_out_whole_and_no_node_shares_one_that_has_enough_devices():
    suspects, devices = Suspects(4, step=4), np.arange(21)
    hosts = np.array([0] * 9 + [1] * 3 + [2] * 2 + [3] * 7)
    suspects.spoiled(0, devices, hosts)
    assert not suspects.failed([1])
    assert suspects.failed([1])
    there = devices[suspects.may_be_in(1, devices, hosts)]
    assert there.tolist() == [*range(9), *range(14, 21)]


@examples(100)
@given(data=st.data(), step=st.integers(3, 9), seed=st.integers(0, 99))
def test_sums_over_the_same_data_differ_by_as_many_devices_as_they_must(data, step, seed):
    devices = np.sort(np.random.default_rng(seed).choice(500, 60, replace=False))
    liars = data.draw(st.sets(st.sampled_from(devices.tolist()), min_size=1, max_size=3))
    suspects, sums = Suspects(step, step=step), []
    while len(sums) < 60 and not (taken(suspects, devices, liars, sums) and not suspects.searching):
        pass
    assert not liars & sums[-1]
    for one in sums:
        for other in sums:
            assert not one ^ other or len(one ^ other) >= step


def test_where_no_device_can_be_spared_all_stay():
    suspects, sums, devices = Suspects(6), [], np.arange(6)
    for _ in range(3):
        assert taken(suspects, devices, {2}, sums) is False
        assert sums[-1] == set(range(6))
    assert not suspects.devices


@pytest.mark.parametrize("answers_between", [False, True])
def test_a_node_that_fails_twice_in_a_row_is_left_out(answers_between):
    suspects, devices = Suspects(3), np.arange(12)
    assert not suspects.failed([1])
    if answers_between:
        suspects.answered([1])
    assert bool(suspects.failed([1])) is not answers_between
    there = suspects.may_be_in(0, devices, devices % NODES)
    assert there.sum() == (12 if answers_between else 9)
