"""What the README says to type works, and every command exists that it and the pages of results and commands name.

On the engine, as it stands: tests/test_first_hour.py."""

import re
import shlex

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from simulations import runner
from simulations.cli.main import app
from simulations.scenario_files import load_scenario
from simulations.sweep.grid import settings_of
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.root import ROOT

README = ROOT / "README.md"


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    """The scenarios of the quickstart on made-up data: small, but with room for a block in 1% of the table."""
    from simulations.scenario_files import shipped_scenarios

    rng = np.random.default_rng(0)
    rows = [f"{u},{i},{t}" for u in range(60) for t, i in enumerate(rng.permutation(1000)[:40])]
    (tmp_path / "pairs.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n", encoding="utf-8")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("profiles: [{name: any, population_share: 1, memory: {table_share: 0.9}}]\n", encoding="utf-8")
    pretraining = {
        "ml-100k": {"embedding_dim": 16},
        "nothing-collected": {
            "model": "spectral",
            "source": "devices",
            "collected": {"share": 0},
            "embedding_dim": 16,
            "columns": 16,
            "group_columns": 16,
        },
    }
    shipped = dict(shipped_scenarios())
    for name, keys in pretraining.items():
        scenario = {
            "data": {"path": str(tmp_path / "pairs.csv")},
            "pretraining": keys,
            "blocks": {"item_groups": "single"},
            "fleet": str(fleet),
            "evaluation": {"artifacts": 0},
        }
        shipped[name] = tmp_path / f"{name}.yaml"
        shipped[name].write_text(yaml.safe_dump(scenario), encoding="utf-8")
    monkeypatch.setattr("simulations.scenario_files.shipped_scenarios", lambda: shipped)


def commands():
    found = []
    for page in (README, ROOT / "docs" / "results.md", ROOT / "docs" / "commands.md"):
        text = page.read_text(encoding="utf-8")
        lines = [
            line for block in re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
        ]
        lines += re.findall(r"`(fl-peel [^`]+)`", text)
        found += [line.split("  #")[0].strip() for line in lines if line.startswith("fl-peel ")]
    return list(dict.fromkeys(found))


def quickstart():
    """What a newcomer types, line by line."""
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"## Quickstart\n```bash\n(.*?)```", text, re.DOTALL)
    return block.splitlines()


@pytest.mark.parametrize("command", commands())
def test_commands_and_their_options_exist(command):
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    while words and hasattr(group, "commands") and words[0] in group.commands:
        group = group.commands[words.pop(0)]
    unknown = words[0] if words and hasattr(group, "commands") and not words[0].startswith("-") else None
    assert unknown in (None, "COMMAND"), f"no such command: {command}"
    options = {name for parameter in group.params for name in parameter.opts} | {"--help", "--install-completion"}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("command", [c for c in commands() if " --set " in c])
def test_overrides_name_existing_keys(command):
    from simulations.scenario_files import shipped_scenarios

    words = shlex.split(command)[1:]
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    scenario = next((word for word in words[1:2] if word in shipped_scenarios()), "ml-100k")
    for overrides in [one.overrides for one in settings_of(changes)] if words[0] == "sweep" else [changes]:
        load_scenario(scenario, overrides)


def test_the_quickstart_is_typed_in_the_environment_that_make_run_makes():
    first, *others = quickstart()
    assert first == ". .venv/bin/activate"
    assert "VENV ?= .venv\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(others) <= set(commands())
    assert len(others) >= 3


@pytest.mark.usefixtures("data_home")
def test_the_quickstart_runs(tmp_path, monkeypatch):
    """All but its first line, on made-up data and on nodes without an engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        runner,
        "simulated",
        lambda scenario, place, on_event, *, server: server(LoopbackGrid(2), scenario, place, on_event),
    )
    # the data are too few for 1% of a table
    monkeypatch.setattr("simulations.engine.inputs.check_run", lambda *args: None)
    for line in quickstart()[1:]:
        ran = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert ran.exit_code == 0, f"{line}\n{ran.stderr}"
    for name in ("first", "federated"):
        assert (tmp_path / "out" / name / "report.html").is_file()


def test_make_run_says_what_comes_next():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (said,) = re.findall(r"^run: .*\n(?:\t.*\n)*?((?:\t@echo .*\n)+)", makefile, re.MULTILINE)
    assert "/bin/activate" in said.replace("$(BIN)/activate", "/bin/activate")
    assert "$(OUT)/report.html" in said
    for page in re.findall(r"docs/[\w/-]+\.md", said):
        assert (ROOT / page).is_file()


def test_the_figures_of_the_readme_are_those_that_were_measured():
    """Every figure before the quickstart stands on a page of results; tests/test_first_hour.py holds the others."""
    pages = ("results", "compare", "timeline", "nothing-collected")
    measured = {
        number
        for page in pages
        for number in re.findall(r"(?<![\d.])0?(\.\d{4})\b", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    }
    headline = README.read_text(encoding="utf-8").partition("## Quickstart")[0]
    shown = re.findall(r"(?<![\d.])0?(\.\d{4})\b", headline)
    assert len(shown) >= 15
    assert set(shown) - measured == set()
