"""What a message must hold: every rule by itself, and what it costs."""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_peel.array_specs import MOST, TOTAL, ArrayChecker, ArraySpec, MessageContext, check, summed
from fl_peel.errors import MessageError
from fl_peel.exchange.counters import ClockCounts


@dataclass(frozen=True)
class Letter:
    """One of each kind of field."""

    devices: Annotated[NDArray[np.int64], ArraySpec(("N",), among="devices", ascending=True)]
    groups: Annotated[NDArray[np.int32], ArraySpec(("N",), within="G")]
    share: Annotated[float, ArraySpec(least=0)]
    bound: Annotated[float, ArraySpec(least=0, most=math.inf)]
    name: Annotated[str, ArraySpec(choices=("one", "two"))]
    clock: Annotated[ClockCounts, ArraySpec(("C",), least=0, most=TOTAL)]
    sums: dict[int, dict[str, NDArray[np.int64]]]


def clock(sampled=3, classes=2):
    counts = ClockCounts.zeros(classes)
    counts.sampled[0] = sampled
    return counts


def letter(**changed):
    output = {"first": np.array([1, -5]), "rows": np.array([0, 3])}
    fields = {
        "devices": np.array([3, 7]),
        "groups": np.array([0, 1], np.int32),
        "share": 0.5,
        "bound": math.inf,
        "name": "two",
        "clock": clock(),
        "sums": {4: output},
    }
    return Letter(**(fields | changed))


KNOWN = MessageContext(
    {"G": 2, "C": 2, TOTAL: 100},
    {"devices": np.array([1, 3, 5, 7])},
    groups={
        4: MessageContext(
            {"R": 4}, arrays={"first": summed("T"), "rows": ArraySpec(("T",), within="R", ascending=True)}
        )
    },
    totals={"clock.sampled": 3},
)


def test_a_right_one_is_let_in_and_its_sizes_are_told():
    assert check(letter(), KNOWN) == {"G": 2, "C": 2, TOTAL: 100, "N": 2}
    nobody = {"devices": np.zeros(0, np.int64), "groups": np.zeros(0, np.int32), "sums": {}}
    assert check(letter(**nobody), KNOWN)["N"] == 0


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"devices": np.array([7, 3])}, "Letter.devices: not in ascending order"),
        ({"devices": np.array([3, 3])}, "Letter.devices: not in ascending order"),
        ({"devices": np.array([3, 6])}, "Letter.devices: names some that are not among the devices"),
        ({"devices": np.array([3, 9])}, "Letter.devices: names some that are not among the devices"),
        ({"devices": np.array([3])}, r"Letter.groups: of shape \(2,\), not \(1\)"),
        ({"groups": np.array([0, 2], np.int32)}, "Letter.groups: has 2, which is not in 0..1"),
        ({"groups": np.array([-1, 0], np.int32)}, "Letter.groups: has -1, which is not in 0..1"),
        ({"groups": np.zeros((2, 1), np.int32)}, r"Letter.groups: of shape \(2, 1\)"),
        ({"share": -1e-9}, "Letter.share: -1e-09 is not in"),
        ({"share": math.nan}, "Letter.share: nan is not in"),
        ({"share": math.inf}, "Letter.share: inf is not in"),
        ({"bound": math.nan}, "Letter.bound: nan is not in"),
        ({"name": "three"}, "Letter.name: 'three' is none of one, two"),
        ({"clock": clock(classes=3)}, r"Letter.clock.sampled: of shape \(3,\), not \(2\)"),
        ({"clock": clock(101)}, "Letter.clock.sampled: has 101, which is not in 0..100"),
        ({"clock": clock(-1)}, "Letter.clock.sampled: has -1"),
        ({"clock": clock(2)}, "Letter.clock.sampled: adds up to 2, not 3"),
        ({"sums": {5: {}}}, "Letter.sums: user group 5 was not requested"),
        ({"sums": {4: {"first": np.array([1])}}}, "Letter.sums/4: rows is missing"),
        ({"sums": {4: {"first": np.array([1]), "rows": np.array([4])}}}, "rows: has 4, which is not in 0..3"),
        ({"sums": {4: {"first": np.array([1]), "rows": np.array([0, 1])}}}, r"rows: of shape \(2,\), not \(1\)"),
        ({"sums": {4: {"first": np.array([-101]), "rows": np.array([0])}}}, "first: has -101, which is not in"),
        ({"sums": {4: {"first": np.array([1.0]), "rows": np.array([0])}}}, "first: of type float64, not int32 or"),
        ({"sums": {4: {"more": np.array([1])}}}, "nothing is called 'more'"),
    ],
)
def test_the_first_that_is_wrong_is_named(changed, why):
    with pytest.raises(MessageError, match=why):
        check(letter(**changed), KNOWN)


def test_rows_ascend_within_their_bucket():
    of = ArraySpec(("T",), within="R", ascending=True, by="buckets")
    checked = ArrayChecker.from_context(MessageContext({"R": 4}, arrays={"rows": of, "buckets": ArraySpec(("T",))}))
    checked.group({"buckets": np.array([0, 0, 2]), "rows": np.array([1, 3, 0])}, "x")
    with pytest.raises(MessageError, match=r"buckets: of shape \(2,\), not \(3\)"):
        checked.group({"buckets": np.array([0, 0]), "rows": np.array([1, 3, 0])}, "x")
    for rows, buckets in (([1, 1, 0], [0, 0, 2]), ([1, 3, 0], [0, 0, 0]), ([1, 3, 0], [2, 0, 0])):
        with pytest.raises(MessageError, match="rows: not in ascending order"):
            checked.group({"buckets": np.array(buckets), "rows": np.array(rows)}, "x")


def test_numbers_that_their_type_keeps_in_range_are_not_looked_at():
    """Sums in 32 bits are most of a reply."""

    class Unread(np.ndarray):
        def min(self, *args, **kwargs):
            raise AssertionError("looked at")

        max = min

    sums = np.zeros((3, 2), np.int32).view(Unread)
    ArrayChecker.from_context(MessageContext({TOTAL: MOST // 64})).array(sums, summed("T", "d"), "sums")
    with pytest.raises(AssertionError, match="looked at"):
        ArrayChecker.from_context(MessageContext({TOTAL: 1 << 20})).array(sums, summed("T", "d"), "sums")
