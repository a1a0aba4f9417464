"""What devices say in masked sums: its words and bytes by hand, in rounds and in stage 1; who vanishes when."""

import dataclasses
import math

import numpy as np
import pytest

from fl_peel.errors import SecureAggregationError
from fl_peel.exchange.counters import ClassCounts, ClockCounts
from fl_peel.kernels import FIXED_POINT
from fl_peel.pretraining.spectral_steps import Moments
from fl_peel.scenario.scenario import Scenario
from fl_peel.secure.masks import MaskWords
from fl_peel.secure.protocol_plan import DeviceBytes, DropoutStage, needed_of, vanishing
from fl_peel.secure.stage1_vector import StepVector, answer_of, moment_words, moments_of, words_of
from fl_peel.secure.vector import CHECK, Field, VectorLayout, sum_bits

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


# ---------------------------------------------------------------- the vector of a step of stage 1

CLASSES = 2
COUNTERS = CLASSES * (len(ClassCounts.names()) + len(ClockCounts.names()))


def step(name: str, **keys) -> StepVector:
    """Three columns, two user groups, four filters, five items; nothing counted unless asked for."""
    given = {"columns": 3, "groups": 2, "shapes": 4, "items": 5, "classes": 0, "devices": 7} | keys
    return StepVector(name, **given)


MOMENTS = 1 + 3 + 6 + 5
"""Words of one user group's: size, three sums, half of a symmetric 3 x 3, five counts."""
SAID = {"counts": 5, "pass": 3 * 5, "choice": 4 + 1, "groups": 2 + 2 * 3, "moments": 2 * MOMENTS}
"""Words of each step."""


@pytest.mark.parametrize("name", SAID)
def test_words_of_a_step_by_hand(name):
    assert step(name).contribution_bytes == 8 * SAID[name]
    assert step(name).num_bytes == 8 * (SAID[name] + 1)  # and the word that proves the masks gone
    assert step(name, classes=CLASSES).num_bytes == 8 * (SAID[name] + 1 + COUNTERS)
    narrow = step(name, bits=32, classes=CLASSES)
    width = 8 if name == "choice" else 4  # what is chosen is counted in full words
    assert narrow.contribution_bytes == width * SAID[name]
    assert narrow.num_bytes == 8 * (1 + COUNTERS) + width * SAID[name]
    whole = step(name, classes=CLASSES).part((0, step(name).units))
    assert whole.devices == 7
    assert [field.name for field in whole.fields[:3]] == [CHECK, "classes", "clock"]
    assert step(name).part((0, 1)).fields[0] == Field(CHECK, (1,), 64)


def test_arrays_of_a_step_have_names_and_shapes():
    named = {name: {f.name: f.shape for f in step(name).part((0, step(name).units)).fields[1:]} for name in SAID}
    assert named == {
        "counts": {"items": (5,)},
        "pass": {"columns": (3, 5)},
        "choice": {"won": (4,), "answered": (1,)},
        "groups": {"sizes": (2,), "sums": (2, 3)},
        "moments": {"moments": (2, MOMENTS)},
    }
    assert step("pass", buckets=2).part((0, 3)).fields[1].shape == (3, 2)
    counted = {field.name: field.shape for field in step("counts", classes=CLASSES).part((0, 1)).fields}
    assert counted["classes"] == (CLASSES, len(ClassCounts.names()))
    assert counted["clock"] == (CLASSES, len(ClockCounts.names()))
    with pytest.raises(AssertionError, match="say nothing in step"):
        _ = step("vectors").num_bytes


def test_units_are_columns_groups_or_one():
    assert {name: step(name).units for name in SAID} == {
        "counts": 1, "pass": 3, "choice": 1, "groups": 1, "moments": 2,
    }  # fmt: skip


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("name", ["pass", "moments", "counts"])
def test_parts_follow_one_another_and_are_the_whole(name, classes):
    vector = step(name, classes=classes)
    for most in (1, 8 * 12, 8 * 40, 10**6):
        parts = vector.parts(most)
        assert [first for first, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
        assert parts[-1][1] == vector.units
        sizes = [vector.part(part).num_bytes for part in parts]
        assert sum(sizes) == vector.num_bytes
        assert [vector.start(part) for part in parts] == [0, *np.cumsum(sizes[:-1]).tolist()]
    assert vector.parts(1) == [(place, place + 1) for place in range(vector.units)]  # at least one unit
    assert vector.parts(vector.num_bytes) == [(0, vector.units)]
    assert CHECK not in {field.name for field in vector.part((1, 2)).fields}


def test_parts_hold_as_many_units_as_fit():
    vector = step("pass", columns=10, items=99)  # 10 x 99 words and one: 7,928 bytes, 793 a column
    assert vector.parts(3 * 800) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert vector.parts(2 * 792) == [(column, column + 1) for column in range(10)]


def test_what_an_answer_moves():
    answer = answer_of(step("counts"), 10)
    assert dataclasses.astuple(answer) == (48, 1510, 64 + 960, 4)


def test_moments_come_back_from_their_words():
    second = np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    moments = Moments(9, np.array([7, 8, 9]), second, np.array([5, 4, 3, 2]))
    words = words_of(moments)
    assert len(words) == moment_words(3, 4) == 1 + 3 + 6 + 4
    again = moments_of(words, 3)
    assert again.size == 9
    assert (again.first.tolist(), again.second.tolist(), again.items.tolist()) == (
        [7, 8, 9],
        second.tolist(),
        [5, 4, 3, 2],
    )
    words[:] = 0  # what was read is not a view of the message
    assert (again.first.tolist(), again.items.tolist()) == ([7, 8, 9], [5, 4, 3, 2])
