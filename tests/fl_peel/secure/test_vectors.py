"""What devices say in masked sums: its words and bytes by hand, in rounds and in stage 1; who vanishes when."""

import math

import numpy as np
import pytest

from fl_peel.errors import SecureAggregationError
from fl_peel.kernels import FIXED_POINT
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.protocol_plan import DeviceBytes, DropoutStage, needed_of, vanishing
from fl_peel.secure.vector import Field, MaskWords, VectorLayout, sum_bits

# ---------------------------------------------------------------- the vector of a round

LAYOUT = VectorLayout(
    (Field("a", (2, 2), 32), Field("b", (2,), 64), Field("c", (1,), 32), Field("d", (3,), 64)), devices=3
)


def test_each_array_has_its_place_among_words_of_its_width():
    values = {"a": np.array([[1, -2], [3, 4]]), "b": np.array([7, -8]), "c": np.array([-5]), "d": np.array([1, 2, 3])}
    words = LAYOUT.words(values)
    assert words.narrow.view(np.int32).tolist() == [1, -2, 3, 4, -5]
    assert words.wide.view(np.int64).tolist() == [7, -8, 1, 2, 3]
    assert (LAYOUT.num_words, LAYOUT.num_bytes) == ((5, 5), 5 * 4 + 5 * 8)
    back = LAYOUT.values(words)
    assert {name: array.tolist() for name, array in back.items()} == {name: v.tolist() for name, v in values.items()}
    assert {array.dtype for array in back.values()} == {np.dtype(np.int64)}


def test_what_is_not_said_is_zero_and_moves_nothing():
    words = LAYOUT.words({"c": np.array([9]), "d": np.array([1, 2, 3])})
    assert words.narrow.tolist() == [0, 0, 0, 0, 9]
    assert words.wide.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("bits", [32, 64])
def test_a_word_is_refused_as_soon_as_the_sum_might_not_fit(bits):
    alone = VectorLayout((Field("x", (1,), bits),), devices=1)
    assert alone.words({"x": np.array([2 ** (bits - 1) - 1])}) is not None  # all that a word holds
    layout = VectorLayout((Field("x", (1,), bits),), devices=3)
    most = (2 ** (bits - 1) - 1) // 3
    for value in (most, -most):
        assert layout.values(layout.words({"x": np.array([value])}))["x"].tolist() == [value]
        with pytest.raises(SecureAggregationError, match=f"x does not fit {bits} bits when 3 devices add up"):
            layout.words({"x": np.array([value + np.sign(value)])})
    empty = VectorLayout((Field("x", (0,), bits), Field("y", (1,), bits)), devices=3)
    assert empty.values(empty.words({"x": np.zeros(0, np.int64), "y": np.array([4])}))["y"].tolist() == [4]


def test_an_array_without_a_place_is_refused_by_its_name():
    with pytest.raises(SecureAggregationError, match="devices send 'extra', which has no place in a masked vector"):
        LAYOUT.words({"c": np.array([1]), "extra": np.array([1])})


def test_vectors_of_another_layout_are_not_read():
    with pytest.raises(AssertionError):
        LAYOUT.values(MaskWords.zeros(5, 6))


def test_words_are_narrow_only_where_no_sum_can_pass_them():
    # n updates of norm 1, a thousandth more and a unit of rounding each: 127 of them are below 2^31, 128 are not
    assert [sum_bits("auto", devices, 1.0) for devices in (1, 127, 128)] == [32, 32, 64]
    assert sum_bits("auto", 1, math.inf) == 64
    assert [sum_bits(bits, 10**6, 1.0) for bits in (32, 64)] == [32, 64]
    for devices, norm in ((127, 1.0), (10, 12.7), (1, 127.8), (3, 42.6)):
        if sum_bits("auto", devices, norm) == 32:  # then each word is within what the layout lets pass
            assert norm * FIXED_POINT <= (2**31 - 1) // devices
    # the edge, by the numbers: room for n words of 1.001 x norm x 2^24 + 1 below 2^31 - 1 - n
    norm = 1.0
    most = (2**31 - 1) / (1.001 * norm * FIXED_POINT + 2)
    assert [sum_bits("auto", math.floor(most), norm), sum_bits("auto", math.floor(most) + 1, norm)] == [32, 64]
    # without norm a word is one unit: two for each of 2^30 - 1 devices are below 2^31 - 1, those of 2^30 are not
    assert [sum_bits("auto", devices, 0.0) for devices in (2**30 - 1, 2**30)] == [32, 64]
    # a norm of one unit, 2^-24: 3.001 for each device
    most = math.floor((2**31 - 1) / 3.001)
    assert [sum_bits("auto", devices, 2.0**-24) for devices in (most, most + 1)] == [32, 64]


# ---------------------------------------------------------------- what a device moves, who must answer, who vanishes


def test_bytes_of_a_device_by_hand():
    # sealed: nonce 12, number 2, two shares of 16, tag 16 = 62
    # down, a neighbour: number 8, keys 64; number 8, sealed 62; number 8, what became of it 1 = 151
    # up: keys 64; a neighbour: number 8, sealed 62; number 8, number of the share 2, share 16 = 96
    assert DeviceBytes.from_sizes(1, 0) == DeviceBytes(151, 64 + 96, 0)
    assert DeviceBytes.from_sizes(10, 1000) == DeviceBytes(1510, 64 + 960 + 1000, 1000)


SCENARIO = {"name": "s", "question": "?", "data": {"name": "ml-100k"}}


def secure_scenario(**keys) -> Scenario:
    return Scenario.model_validate({**SCENARIO, "secure_aggregation": {"enabled": True, **keys}})


def test_who_must_answer_by_hand():
    scenario = secure_scenario(neighbours=10, threshold=0.6)
    assert needed_of(scenario, 100) == (6, 60)
    assert needed_of(scenario, 8) == (5, 5)  # seven neighbours: 4.2 of them, rounded up; 4.8 of eight devices


def test_devices_vanish_by_their_share_at_every_stage_alike():
    devices = np.arange(30_000)
    scenario = secure_scenario(dropout_share=0.3)
    stages = vanishing(scenario, 2, devices)
    counts = np.bincount(stages, minlength=4) / len(devices)
    assert counts == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=5 * math.sqrt(0.21 / len(devices)))
    assert set(stages.tolist()) == {int(stage) for stage in DropoutStage}
    assert (vanishing(scenario, 2, devices[5:9]) == stages[5:9]).all()  # by identity, whoever else is asked
    later = vanishing(scenario, 3, devices)  # anew: others are lost, and those that are lost again at other stages
    assert ((later > 0) & (stages > 0)).mean() == pytest.approx(0.09, abs=0.01)
    again = (later > 0) & (stages > 0)
    assert (later == stages)[again].mean() == pytest.approx(1 / 3, abs=0.05)
    other = scenario.model_copy(update={"seed": scenario.seed + 1})
    assert (vanishing(other, 2, devices) != stages).any()
    assert not vanishing(secure_scenario(dropout_share=0.0), 2, devices).any()
