"""`fl-peel scenarios`: what is in one, every key, and the schema."""

import json

import yaml
from typer.testing import CliRunner

from clients.fleet.fleet import fleet_schema
from fl_peel.scenario.reference import scenario_schema
from simulations.cli.main import app
from simulations.scenario_files import load_scenario, shipped_scenarios
from tests.helpers.light import loaded_by


def fl_peel(*args):
    result = CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_as_json():
    rows = json.loads(fl_peel("scenarios", "--json"))
    assert [row["scenario"] for row in rows] == list(shipped_scenarios())
    assert all(row["question"].endswith("?") for row in rows)


def test_what_is_shown_reads_back(tmp_path):
    file = tmp_path / "shown.yaml"
    file.write_text(fl_peel("scenarios", "show", "private", "--set", "refinement.rounds=3"), encoding="utf-8")
    assert load_scenario(file) == load_scenario("private", ["refinement.rounds=3"])
    shown = json.loads(fl_peel("scenarios", "show", "private", "--json"))
    assert shown == load_scenario("private").model_dump(mode="json")


def test_keys_have_the_scenarios_own_values():
    lines = fl_peel("scenarios", "show", "ml-100k", "--keys", "--set", "refinement.rounds=3").splitlines()
    at = lines.index("refinement.rounds: 3")
    assert lines[at + 1] == "    whole number; rounds; default 8; >= 0, <= 1_000_000"
    assert "Number of rounds; 0: no refinement." in lines[at + 2]
    keys = {key["path"]: key for key in json.loads(fl_peel("scenarios", "show", "ml-100k", "--keys", "--json"))}
    assert keys["selector"]["value"] == load_scenario("ml-100k").selector
    assert keys["data.timeline.periods"]["value"] is None
    assert keys["privacy.statistics.NAME.share"]["value"] is None


def test_the_schema_is_printed():
    assert json.loads(fl_peel("scenarios", "schema")) == scenario_schema()
    assert json.loads(fl_peel("profiles", "schema")) == fleet_schema()


def test_an_editor_finds_the_schema_beside_a_scenario(tmp_path):
    """The comment is one, and no key."""
    file = tmp_path / "mine.yaml"
    file.write_text("# yaml-language-server: $schema=scenario.schema.json\ndata: {name: ml-100k}\n")
    assert load_scenario(file).name == "mine"
    assert yaml.safe_load(file.read_text()) == {"data": {"name": "ml-100k"}}


def test_keys_answer_at_once():
    """Nothing that computes is loaded, not even NumPy."""
    for args in (("scenarios", "show", "ml-100k", "--keys"), ("scenarios", "schema"), ("scenarios", "--json")):
        code = f"import sys; sys.argv[1:] = {args!r}; from simulations.cli.main import main; main()"
        assert loaded_by(code) == {"fl_peel", "simulations"}


def test_names_of_scenarios_complete(monkeypatch):
    monkeypatch.setenv("_FL_PEEL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fl-peel scenarios show ml")
    monkeypatch.setenv("COMP_CWORD", "3")
    result = CliRunner().invoke(app, [], prog_name="fl-peel")
    assert result.stdout.split() == ["ml-100k"]
