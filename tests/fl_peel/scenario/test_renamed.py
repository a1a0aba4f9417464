"""Former names of keys and values: read as the present ones, with a warning of one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_peel import Scenario
from fl_peel.errors import ScenarioError
from fl_peel.scenario import scenario as renamed
from simulations.scenario_files import load_scenario, validated
from simulations.sweep_space import settings_of

OTHERS: dict[str, Any] = {"evaluation.selectors": ["shown", "popularity"], "controller.features": ["shown", "energy"]}
"""Values of keys that are lists."""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    renamed._warn.cache_clear()
    yield
    renamed._warn.cache_clear()


def mapping(path: str, value: Any) -> dict[str, Any]:
    """A scenario with one key more."""
    content: dict[str, Any] = {"name": "x", "data": {"name": "ml-100k"}}
    *places, last = path.split(".")
    node = content
    for place in places:
        node = node.setdefault(place, {})
    node[last] = value
    return content


def value_at(scenario: Scenario, path: str) -> Any:
    node: Any = scenario.model_dump(mode="json")
    for part in path.split("."):
        node = node[part]
    return node


NUMBERS: dict[str, Any] = {
    "data.timeline.recency_exponents": [0.0, 0.5], "pretraining.filter_devices": 7, "pretraining.open_rounds": 7,
    "refinement.contribution": None,
}  # fmt: skip
"""Values of present keys; 0.25 of all others."""


@pytest.mark.parametrize("former", renamed.FORMER_KEYS)
def test_former_keys_are_read_as_present_ones(former: str, caplog: pytest.LogCaptureFixture) -> None:
    present = renamed.FORMER_KEYS[former]
    value = NUMBERS.get(present, 0.25)
    scenario = Scenario.model_validate(mapping(former, value))
    assert scenario == Scenario.model_validate(mapping(present, value))
    assert value_at(scenario, present) == value
    assert [record.getMessage() for record in caplog.records] == [
        f"scenario: key {former} is now called {present}; the former name works in this version"
    ]


def test_an_override_by_a_former_key_replaces_the_present_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {name: ml-100k}\npretraining: {filter_devices: 5}\n")
    assert load_scenario(file, ["pretraining.panel=7"]).pretraining.filter_devices == 7
    file.write_text("data: {name: ml-100k}\npretraining: {panel: 5}\n")
    assert load_scenario(file, ["pretraining.filter_devices=7"]).pretraining.filter_devices == 7


def test_a_former_key_beside_its_present_one_is_refused() -> None:
    content = mapping("pretraining.panel", 5)
    content["pretraining"]["filter_devices"] = 7
    with pytest.raises(ScenarioError, match=r"unknown key pretraining\.panel"):
        validated(Scenario, content, "x")


@pytest.mark.parametrize("path", renamed.FORMER_VALUES)
def test_former_values_are_read_as_present_ones(path: str, caplog: pytest.LogCaptureFixture) -> None:
    for former, present in renamed.FORMER_VALUES[path].items():
        given = OTHERS.get(path, former)
        wanted = [present if one == former else one for one in given] if isinstance(given, list) else present
        with caplog.at_level(logging.WARNING, "fl_peel"):
            scenario = Scenario.model_validate(mapping(path, given))
        assert value_at(scenario, path) == wanted
        assert [record.getMessage() for record in caplog.records] == [
            f"scenario: {path}: {former} is now called {present}; the former name works in this version"
        ]


def test_present_names_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for path, names in renamed.FORMER_VALUES.items():
        for present in names.values():
            given = OTHERS.get(path, present)
            Scenario.model_validate(mapping(path, [present, "popularity"] if isinstance(given, list) else present))
    assert caplog.records == []


def test_a_former_name_in_an_override_and_in_a_sweep(caplog: pytest.LogCaptureFixture) -> None:
    assert load_scenario("ml-100k", ["selector=shown"]).selector == "exposure"
    (one, _) = settings_of(["selector=shown,popularity"])
    assert load_scenario("ml-100k", one.overrides).selector == "exposure"
    assert len(caplog.records) == 1, "a process warns once"


def test_a_former_name_is_told_from_a_wrong_one() -> None:
    with pytest.raises(ScenarioError, match=r"selector: unknown selector 'showed'; known: .*exposure"):
        validated(Scenario, mapping("selector", "showed"), "x")
