"""Dataclasses as JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
from pydantic import Field

from fl_peel.errors import ReportError
from fl_peel.json_codec import Inline, JsonKey, from_plain, to_plain

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
