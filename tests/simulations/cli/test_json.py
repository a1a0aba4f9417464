"""`--json`: one document on stdout, the figures of the tables; everything else on stderr."""

import json
import re
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from simulations.cli import console
from simulations.cli.main import app
from simulations.report.table_view import TableView


def fl_peel(*args):
    result = CliRunner().invoke(app, [*map(str, args), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout), result.stderr


def commands(group, path=()):
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name), command
        yield from commands(command, (*path, name))


PRINTS_NO_FIGURES = {
    *(("data",), ("profiles",), ("profiles", "schema"), ("scenarios", "schema"), ("export-onnx",), ("serve-device",)),
    *(("deploy",), ("demo",), ("report",), ("plot",)),
}


def test_every_command_has_it():
    result = dict(commands(typer.main.get_command(app)))
    without = {path for path, command in result.items() if not any("--json" in p.opts for p in command.params)}
    assert without == PRINTS_NO_FIGURES
    assert {("run",), ("compare",), ("audit",), ("profiles", "sample")} <= result.keys() - without


@pytest.fixture
def fleet(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "profiles:\n"
        "  - {name: half, population_share: 1.0, memory: {table_share: 0.5}, network: {uplink_mbps: 3}}\n"
        "  - {name: never, population_share: 0.0, memory: {table_share: 0.1}}\n"
    )
    return file


def test_data_sets(tmp_path):
    rows, err = fl_peel("data", "list", "--data-dir", tmp_path)
    by_name = {row["name"]: row for row in rows}
    assert by_name["gowalla"] == {
        **{"name": "gowalla", "num_users": 29858, "num_items": 40981, "num_interactions": 1027370, "where": None}
    }
    assert err == ""


def test_fleets(fleet):
    rows, _ = fl_peel("profiles", "list")
    assert next(row for row in rows if row["fleet"] == "default")["classes"] == ["low-end", "mid-range", "high-end"]
    shown, _ = fl_peel("profiles", "show", fleet)
    assert shown["classes"] == [
        {"class": "half", "share": 1.0, "precision": None},
        {"class": "never", "share": 0.0, "precision": None},
    ]
    checked, err = fl_peel("profiles", "validate", fleet)
    assert checked == [{"fleet": str(fleet), "classes": ["half", "never"]}]
    assert "2 device classes" in err


def test_a_sample_is_told_in_numbers(fleet, tmp_path):
    out = tmp_path / "fleet.svg"
    result, err = fl_peel(
        *("profiles", "sample", fleet, "--devices", 5, "--rounds", 3, "--full-table-bytes", 4000, "--out", out)
    )
    half, never = result["classes"]
    assert half["budget_bytes"] == {"p10": 2000.0, "median": 2000.0, "p90": 2000.0}
    assert (half["devices"], half["share_of_table"], half["uplink_mbps"], half["available"]) == (5, 0.5, 3.0, 1.0)
    assert never == {"class": "never", "devices": 0, "budget_bytes": None}
    assert err.split() == [str(out)]


def test_figures_or_tables_and_never_both(capsys):
    view = TableView("T", ("a",), (("1",),))

    def show(**how):
        context = click.Context(click.Command("run"))
        context.params = how | {"wide": False}
        with context:
            console.show(lambda: {"a": 1}, lambda: ["It helped.", view], Path("page.html"))
        return capsys.readouterr()

    assert show(quiet=False, as_json=True) == ('{\n  "a": 1\n}\n', "report: page.html\n")
    assert show(quiet=True, as_json=True) == ('{\n  "a": 1\n}\n', "")
    assert show(quiet=True, as_json=False) == ("", "")
    out, err = show(quiet=False, as_json=False)
    assert re.search(r"^It helped.\n\nT(.|\n)*report: page.html\n$", out)
    assert err == ""


def test_the_command_is_what_was_typed_but_for_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("simulations.studies.audit.audit", lambda *args, **options: {"command": options["command"]})
    words = ("--set", "seed=3", "--row", "a: b", "--set", "selector=energy", "--fresh", "--devices", 40, "--quiet")
    shown, _ = fl_peel("audit", "ml-100k", *words, "--out", tmp_path)
    assert shown["command"] == ("fl-peel audit ml-100k --devices 40 --row 'a: b' --set seed=3 --set selector=energy")


@pytest.mark.parametrize("study", ["compare", "ablate", "audit"])
def test_studies(study, tmp_path, monkeypatch):
    """What they measure takes minutes, and is tested where it is made."""
    result = {"rows": [{"recall@20": 0.25}]}
    monkeypatch.setattr(f"simulations.studies.{study}.{study}", lambda *args, **kwargs: result)
    shown, err = fl_peel(study, "ml-100k", "--out", tmp_path)
    assert shown == result
    assert err.splitlines()[-1] == f"report: {tmp_path / study}.html"


def test_a_bench(monkeypatch):
    monkeypatch.setattr("simulations.bench.bench.bench", lambda *args, **kwargs: {"devices_per_s": 3.5})
    assert fl_peel("bench") == ({"devices_per_s": 3.5}, "")
