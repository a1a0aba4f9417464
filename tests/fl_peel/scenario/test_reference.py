"""Every key is described, and the schema that editors use takes what the program takes."""

import pytest
import yaml
from jsonschema import Draft202012Validator

from fl_peel.scenario.reference import keys_of, parts_of, scenario_schema
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import shipped_scenarios
from tests.helpers.root import ROOT

SCHEMA = scenario_schema()
KEYS = {key.path: key for key in keys_of(SCHEMA)}


def problems(content):
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in Draft202012Validator(SCHEMA).iter_errors(content)]


def with_key(path, value):
    content = {"data": {"name": "ml-100k"}}
    *parts, last = path.split(".")
    node = content
    for part in parts:
        node = node.setdefault(part, {})
    node[last] = value
    return content


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", shipped_scenarios().values(), ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(path):
    assert problems(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("refinement.roundz", 3),
        ("refinement.rounds", -3),
        ("refinement.rounds", "many"),
        ("evaluation.budgets", ["half%"]),
        ("evaluation.budgets", ["100KB"]),
        ("evaluation.budgets", [1.5]),
        ("evaluation.budgets", [0]),
        ("selector", "popularty"),
        ("privacy.mechanism", "gaussian"),
        ("blocks.precision", "int2"),
        ("pretraining.collected.shares", 1),
        ("poisoning.compare", [1]),
    ],
)
def test_mistakes_are_marked(path, value):
    assert len(problems(with_key(path, value))) >= 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evaluation.budgets", ["0.1%", "2.5 %", 0.01, 1.0]),
        ("fairness.exclude_below", "0.5%"),
        ("fairness.exclude_below", None),
        ("refinement.cohort_share", "100%"),
        ("refinement.aggregation.robust.trim", "20%"),
        ("poisoning.compare", ["10%", 0.2]),
        ("privacy.statistics", {"steps": {"share": 0.1}}),
        ("fleet", ["phones", "mine.yaml"]),
        ("fleet", "phones"),
    ],
)
def test_what_is_right_is_not(path, value):
    assert problems(with_key(path, value)) == []


def test_data_must_be_there():
    assert problems({"name": "x"}) == [": 'data' is a required property"]


def test_every_key_says_what_it_is():
    assert [key.path for key in KEYS.values() if not key.description or not key.type] == []
    assert len(KEYS) > 150


def test_every_number_has_a_unit():
    numbers = ("number", "whole number", "percentage")
    assert [key.path for key in KEYS.values() if any(kind in key.type for kind in numbers) and not key.unit] == []


def test_the_keys_are_those_of_the_models():
    """Of every scenario written out; what it leaves null or out, such as a timeline, has keys besides."""

    def flat(content, path=""):
        for name, value in content.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{path}{name}.")
            elif value != {}:
                yield f"{path}{name}"

    scenario = Scenario.model_validate({"name": "x", "data": {"name": "ml-100k"}})
    written = set(flat(scenario.model_dump(mode="json"))) - {"data.timeline"}
    others = {path for path in KEYS if path.startswith(("data.timeline.", "privacy.statistics.", "stages"))}
    assert written == KEYS.keys() - others
    assert len(others) > 14


def test_defaults_limits_and_units_are_the_models():
    rounds = KEYS["refinement.rounds"]
    assert (rounds.type, rounds.unit, rounds.default) == ("whole number", "rounds", "8")
    assert rounds.limits == ">= 0, <= 1_000_000"
    trim = KEYS["refinement.aggregation.robust.trim"]
    assert (trim.type, trim.unit, trim.default, trim.limits) == ("number or percentage", "share", "0.2", ">= 0, < 0.5")
    assert KEYS["name"].default == ""  # the file's own
    share = KEYS["privacy.statistics.NAME.share"]
    assert (share.limits, share.default) == ("> 0", None)
    assert KEYS["evaluation.budgets"].default == "[0.01, 0.025, 0.05, 0.1, 0.25]"


def test_parts_are_described():
    assert [part.path for part in parts_of(SCHEMA) if not part.description] == []


def test_defaults_that_are_shown_are_read_back():
    others = ("data.name", "data.timeline.", "privacy.statistics.")
    for path, key in KEYS.items():
        if key.default and not path.startswith(others):
            Scenario.model_validate({"name": "x"} | with_key(path, yaml.safe_load(key.default)))


def test_names_of_roles_are_written_as_code():
    assert not any(":mod:" in key.description or "``" in key.description for key in KEYS.values())


def test_a_shipped_scenario_names_the_pages_there_are():
    pages = {word for part in parts_of(SCHEMA) for word in part.description.split() if word.startswith("docs/")}
    assert len(pages) > 5
    assert [page for page in pages if not (ROOT / page.rstrip(".;,")).is_file()] == []
