"""Estimates in JSON, and rows that know their places from the types of a result."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from fl_peel.figures import SETTING, Beside, Column, Estimate, Figures, SeedsEstimate, read_fields, unit_of
from fl_peel.json_codec import Inline, from_plain, to_plain


@dataclass(frozen=True)
class Part:
    size_bytes: int
    ratio: Estimate | None = None
    moves: Annotated[tuple[int | None, ...], Column("round")] = ()


@dataclass(frozen=True)
class Whole:
    seed: Annotated[int, Column("seed")]
    recall: Annotated[Estimate | None, Beside(float | None)]
    share: Annotated[Estimate, Beside(float, "{key}_margin", "margin")]
    gain: Annotated[Estimate, Beside(float, "gain_{end}", "end", null=True)]
    rows: Annotated[dict[str, Annotated[dict[str, Part], Column("method")]], Column("step", whole=True)]
    inner: Annotated[Part, Inline("in_"), Column("table", "inner")]
    others: Annotated[dict[str, Estimate | None], Inline("o_"), Beside(float | None, form="list")]
    mean: SeedsEstimate
    budgets: Annotated[tuple[int, ...], SETTING] = (3, 4)
    settings: dict[str, Any] = field(default_factory=lambda: {"rounds": 5})


WHOLE = Whole(
    seed=3,
    recall=Estimate(0.5, 0.4, 0.7),
    share=Estimate.from_margin(0.25, 0.125),
    gain=Estimate(-0.1),
    rows={"2": {"a": Part(9, Estimate(1.5, 1.0, 2.0), (7, None))}},
    inner=Part(4),
    others={"x": Estimate(2.0, 1.0, 3.0), "y": None},
    mean=SeedsEstimate(0.2, 0.1, 0.3, seeds_std=0.1, by_seed=(0.1, 0.3)),
)
PLAIN = {
    "seed": 3,
    **{"recall": 0.5, "recall_interval": {"low": 0.4, "high": 0.7}, "share": 0.25, "share_margin": 0.125},
    **{"gain": -0.1, "gain_low": None, "gain_high": None, "o_x": 2.0, "o_x_interval": [1.0, 3.0], "o_y": None},
    "rows": {"2": {"a": {"size_bytes": 9, "ratio": {"value": 1.5, "low": 1.0, "high": 2.0}, "moves": [7, None]}}},
    **{"in_size_bytes": 4, "in_moves": []},
    "mean": {"value": 0.2, "low": 0.1, "high": 0.3, "seeds_std": 0.1, "by_seed": [0.1, 0.3]},
    **{"budgets": [3, 4], "settings": {"rounds": 5}},
}


def test_a_number_and_its_interval_stand_in_json_as_their_layout_says():
    assert to_plain(WHOLE) == PLAIN
    turned = PLAIN | {"recall_interval": {"high": 0.7, "low": 0.4}}  # the order of keys says nothing
    assert from_plain(Whole, turned, "whole") == WHOLE


def test_every_number_is_a_row_that_knows_its_place():
    rows = {
        (r.part, r.name, *(f"{k}={v}" for k, v in r.where.items())): r for r in Figures.from_result(WHOLE, seeds=(8, 9))
    }
    assert {place: row.value for place, row in rows.items()} == {
        ("", "recall", "seed=3"): 0.5,
        ("", "share", "seed=3"): 0.25,
        ("", "gain", "seed=3"): -0.1,
        ("rows", "size_bytes", "seed=3", "step=2", "method=a"): 9,
        ("rows", "ratio", "seed=3", "step=2", "method=a"): 1.5,
        ("rows", "moves", "seed=3", "step=2", "method=a", "round=1"): 7,
        ("", "size_bytes", "seed=3", "table=inner"): 4,
        ("", "x", "seed=3"): 2.0,
        ("", "mean", "seed=3"): 0.2,
        ("", "mean", "seed=8"): 0.1,
        ("", "mean", "seed=9"): 0.3,
    }
    assert rows["", "share", "seed=3"].ends == (0.125, 0.375)
    assert rows["", "gain", "seed=3"].ends is None
    table = Figures.from_result(WHOLE).to_arrow()
    assert table.column_names[:6] == ["part", "name", "value", "low", "high", "unit"]
    assert table.column("step").to_pylist()[3:6] == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("download_bytes", "B"),
        ("growth_bytes_per_device_hour", "B"),
        ("seconds", "s"),
        ("energy_j", "J"),
        ("recall@20", ""),
    ],
)
def test_units_are_those_of_the_name(name, unit):
    assert unit_of(name) == unit


def test_fields_are_given_or_read():
    part = read_fields(Part, Estimate(1.0), Part(5, None, (1,)), ratio=Estimate(2.0))
    assert part == Part(5, Estimate(2.0), (1,))
    with pytest.raises(TypeError, match="size_bytes"):
        read_fields(Part, object())
