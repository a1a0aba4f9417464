"""Growth is measured as it says: planted lines are found, every axis has its figures, points are kept."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from simulations.bench import growth as module
from simulations.bench.growth import FIGURES, Fit, GrowthPlan, Point, axis_figures, growth, growth_text

AXES = ("devices", "items", "groups", "columns", "rounds", "nodes")


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.7, -0.3])
def test_a_planted_exponent_is_found(exponent):
    sizes = [10, 40, 90, 1000]
    fit = Fit.from_figures(sizes, [3 * size**exponent for size in sizes])
    assert fit.exponent == pytest.approx(exponent, abs=1e-12)
    assert fit.factor == pytest.approx(3)
    assert (fit.low, fit.high) == (10, 1000)
    assert fit.largest_ratio == pytest.approx(1)


def test_the_line_is_that_of_least_squares():
    """By hand, of sizes 1, e, e^2: logarithms 0, 1, 1 have the slope 1/2 and are off by a sixth or a third."""
    fit = Fit.from_figures(np.exp([0, 1, 2]).tolist(), np.exp([0, 1, 1]).tolist())
    assert fit.exponent == pytest.approx(0.5)
    assert fit.factor == pytest.approx(np.exp(1 / 6))
    assert fit.largest_ratio == pytest.approx(np.exp(1 / 3))


def figures_of(point: Point) -> dict[str, float]:
    """Seconds grow with devices and the square root of the items, and rounds follow one another."""
    seconds = 1e-4 * point.devices * point.items**0.5
    cpu, memory = {"cpu_seconds": 2 * seconds, "all_cpu_seconds": 2 * seconds * point.rounds}, 1e9 * point.groups**0.25
    return {"seconds": seconds, "all_seconds": seconds * point.rounds, **cpu, "peak_rss_bytes": memory}


def test_every_axis_has_its_table_and_its_line(monkeypatch, tmp_path):
    asked = []

    def measured(point):
        asked.append(point)
        return figures_of(point)

    monkeypatch.setattr(module, "measured", measured)
    result = growth(tmp_path / "out")
    assert tuple(result["axes"]) == AXES
    assert len(set(asked)) == len(asked), "the middle point is of every axis, and measured once"
    wanted = {"devices": 1.0, "items": 0.5, "groups": 0.0, "columns": 0.0, "rounds": 1.0, "nodes": 0.0}
    for axis, part in result["axes"].items():
        assert [row[axis] for row in part["rows"]] == sorted(GrowthPlan().sizes[axis])
        assert {name for row in part["rows"] for name in row} == {axis, *FIGURES}
        assert part["fits"]["seconds"]["exponent"] == pytest.approx(wanted[axis], abs=1e-9)
        assert part["fits"]["cpu_seconds"]["exponent"] == pytest.approx(wanted[axis], abs=1e-9)
    assert result["axes"]["groups"]["fits"]["peak_rss_bytes"]["exponent"] == pytest.approx(0.25)
    assert json.loads((tmp_path / "out" / "growth.json").read_text()) == json.loads(json.dumps(result))
    text = (tmp_path / "out" / "growth.txt").read_text()
    assert text == growth_text(result)
    assert [f"Growth with {axis}" in text for axis in AXES] == [True] * 6
    assert "exponent" in text


def test_points_that_are_done_are_not_measured_again(monkeypatch, tmp_path):
    plan = GrowthPlan(sizes={"devices": (100, 200, 400)})
    asked = []

    def measured(point):
        asked.append(point.devices)
        if asked == [100, 200]:
            raise KeyboardInterrupt
        return figures_of(point)

    monkeypatch.setattr(module, "measured", measured)
    with pytest.raises(KeyboardInterrupt):
        growth(tmp_path / "out", plan=plan)
    result = growth(tmp_path / "out", plan=plan)
    assert asked == [100, 200, 200, 400]
    assert result["axes"] == growth(None, plan=plan)["axes"]
    growth(tmp_path / "out", plan=plan, fresh=True)
    assert asked[-3:] == [100, 200, 400]


def test_one_size_has_no_line():
    assert axis_figures("devices", [(Point(), figures_of(Point()))])["fits"] == {}


@pytest.mark.engine
def test_a_small_growth_has_every_figure(tmp_path):
    middle = Point(devices=200, items=400, groups=2, columns=8, rounds=1, nodes=1)
    plan = GrowthPlan(middle, {"devices": (100, 200), "rounds": (1, 2)})
    result = growth(tmp_path / "out", plan=plan)
    assert result["middle"] == asdict(middle)
    for part in result["axes"].values():
        assert all(row[name] > 0 for row in part["rows"] for name in FIGURES)
        assert all(np.isfinite(fit["exponent"]) for fit in part["fits"].values())
    assert result["axes"]["devices"]["rows"][0]["peak_rss_bytes"] > 100_000_000  # an interpreter with NumPy and Ray
