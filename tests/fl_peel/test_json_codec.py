"""Dataclasses as JSON and back."""

from __future__ import annotations

import io
import json
import math
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from fl_peel.errors import ReportError
from fl_peel.events import Event
from fl_peel.json_codec import Inline, JsonKey, from_plain, to_plain
from fl_peel.scenario.scenario import Scenario
from fl_peel.store import from_nodes, to_nodes
from fl_peel.weighting.block_statistics import BlockStatistics
from fl_peel.weighting.controller import Controller
from tests.helpers.settings import CONTROLLER

Part = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Inner:
    share: Part
    best: Annotated[float | None, JsonKey("recall@{n}")]


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: Annotated[str, JsonKey("class")]
    inner: Annotated[Inner, Inline()]
    maybe: int | None
    absent: Inner | None = None
    rows: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    others: Annotated[dict[str, float | None], Inline()]
    ratios: Annotated[dict[str, float], Inline("ratio_")] = field(default_factory=dict)


ONE = Outer(
    name="a",
    inner=Inner(0.5, None),
    maybe=None,
    rows=(Inner(1, 0.25),),
    by_name={"class": Inner(0.0, 2.0)},
    others={"x": 1.5, "share_of_x": None},
    ratios={"x": 3.0},
)
PLAIN = {
    "class": "a",
    "share": 0.5,
    "recall@5": None,
    "maybe": None,
    "rows": [{"share": 1, "recall@5": 0.25}],
    "by_name": {"class": {"share": 0.0, "recall@5": 2.0}},
    "x": 1.5,
    "share_of_x": None,
    "ratio_x": 3.0,
}


def test_there_and_back():
    assert to_plain(ONE, n=5) == PLAIN
    assert list(to_plain(ONE, n=5)) == list(PLAIN)
    assert from_plain(Outer, PLAIN, "it", n=5) == ONE


def test_what_has_a_default_may_be_missing_and_what_nobody_knows_is_passed_over():
    inner = from_plain(Inner, {"share": 1.0, "recall@5": 1.0, "new": 3}, "it", n=5)
    assert inner == Inner(1.0, 1.0)
    outer = from_plain(Outer, {"class": "a", "share": 0.5, "recall@5": 0.1, "maybe": 3}, "it", n=5)
    assert outer == Outer(name="a", inner=Inner(0.5, 0.1), maybe=3, others={})
    with_absent = from_plain(Outer, PLAIN | {"absent": {"share": 0.1, "recall@5": 1.0}}, "it", n=5)
    assert with_absent.absent == Inner(0.1, 1.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"share": 1.5}, "it: share: must be at most 1"),
        ({"share": "1"}, "it: share: must be a number"),
        ({"rows": [{"share": 1.0}]}, "it: rows.0.recall@5: is missing"),
        ({"rows": {}}, "it: rows: must be a list"),
        ({"by_name": {"b": None}}, "it: by_name.b: must be a mapping"),
        ({"x": "1"}, "it: x: must be a number"),
        ({"maybe": 1.5}, "it: maybe: must be a whole number"),
    ],
)
def test_a_mistake_is_named_by_its_path(change, why):
    with pytest.raises(ReportError) as caught:
        from_plain(Outer, PLAIN | change, "it", n=5)
    assert str(caught.value).startswith(why)


def test_what_is_no_dictionary_at_all():
    with pytest.raises(ReportError, match=r"^it: the whole: must be a mapping"):
        from_plain(Outer, [1], "it", n=5)


def again(value: Any, live: Any = None, there: Any = None) -> Any:
    """The value, written and read. live: known when it is written; there: when it is read."""
    plain, arrays = to_nodes(value, live)
    return from_nodes(json.loads(json.dumps(plain)), arrays, there or live)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    plain, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.frozensets(plain)
)


@given(value=trees)
def test_plain_values_come_back(value):
    assert again(value) == value


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.0, 1, True, 0.1 + 0.2, 2**80])
def test_numbers_keep_their_type_and_every_bit(value):
    result = again([value])[0]
    assert result == value
    assert type(result) is type(value)


def test_arrays_and_numbers_of_numpy_come_back():
    array = np.arange(3)
    result = again([array, np.float32(0.1), np.array(7)])
    assert result[0] is array
    assert (result[1], type(result[1])) == (np.float32(0.1), np.float32)
    assert result[2].shape == ()


def test_types_of_arrays_come_back():
    assert again([np.dtype("<u2"), np.dtype(np.float32)]) == [np.dtype("<u2"), np.dtype(np.float32)]


def test_one_thing_stays_one_thing():
    array, other = np.zeros(3), np.zeros(3)
    first, second, third = again([array, array, other])
    assert first is second
    assert first is not third


def test_what_is_live_is_named_and_not_held():
    table, mine = np.ones(1000), np.zeros(1000)
    value = {"table": table, "none": None}
    assert not to_nodes(value, {"it": table, "nothing": None})[1]
    assert again(value, {"it": table, "nothing": None}, {"it": mine})["table"] is mine


def test_objects_of_ours_come_back():
    assert again(Event("a", 1, 2, "b")) == Event("a", 1, 2, "b")
    scenario = Scenario(name="it", data={"name": "ml-100k"})
    assert again(scenario) == scenario


def test_a_controller_goes_on_where_it_was():
    rng = np.random.default_rng(0)
    columns = [[rng.random(50).astype(np.float32) for _ in range(5)] for _ in range(3)]
    groups = [BlockStatistics(*each, rng.integers(0, 5, 50).astype(float), np.full(50, 3.0)) for each in columns]
    one = Controller.for_statistics(groups, CONTROLLER, seed=1)
    one.outer_step(groups)
    other = again(one)
    for _ in range(3):
        assert one.outer_step(groups) == other.outer_step(groups)
    assert np.array_equal(one.weights(groups[0]), other.weights(groups[0]))


Point = namedtuple("Point", "x y")


@dataclass(slots=True)
class Slotted:
    x: int = 0


class Number(int):
    """A number with a name."""


@pytest.mark.parametrize("value", [print, np, io.BytesIO(), Point(1, 2), Slotted(), Number(3), np.array(["a"]), 1j])
def test_what_is_no_value_is_refused(value, monkeypatch):
    monkeypatch.setattr("fl_peel.store._roots", lambda: frozenset({"strategies", "tests"}))
    with pytest.raises(TypeError, match="is not kept"):
        again([value])


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.print", "pathlib.Path", "fl_peel.store.os", "fl_peel.store.locked", "nowhere.It"]
)
def test_nothing_but_objects_of_our_classes_is_made(name):
    node = ["object", *name.rsplit(".", 1), [0]]
    with pytest.raises((TypeError, ImportError)):
        from_nodes({"root": [1], "nodes": [["dict", []], node]}, {})


def test_what_holds_itself_is_refused():
    value: list[Any] = []
    value.append(value)
    with pytest.raises(RecursionError):
        again(value)
