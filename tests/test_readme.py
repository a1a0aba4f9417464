"""Every snippet of the README runs, and every command it names exists."""

import re
import shlex

import numpy as np
import pytest
import typer
import yaml

from clients.fleet.fleet import fleet_from_mapping
from fl_peel.weighting.statistics import BlockStatistics
from simulations.cli.main import app
from simulations.scenario_files import load_scenario
from tests.helpers.root import ROOT

README = ROOT / "README.md"


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_fleet_of_the_readme_is_valid():
    (text,) = snippets("yaml")
    fleet = fleet_from_mapping(yaml.safe_load(text))
    assert fleet.names == ("watch", "phone")


def test_the_selector_of_the_readme_ranks_blocks():
    (text,) = [snippet for snippet in snippets("python") if "def " in snippet]
    scope = {}
    exec(text, scope)
    ones = np.ones(3, np.float32)
    statistics = BlockStatistics(np.array([1, 0, 0], np.float32), ones, ones, ones, ones)
    weights = scope["most_shown_per_interaction"](statistics, 0, 0)
    assert weights[1] == weights[2] > weights[0]


@pytest.mark.engine
@pytest.mark.usefixtures("api")
def test_the_python_of_the_readme_runs(data_home, capsys):
    (text,) = [snippet for snippet in snippets("python") if "import run" in snippet]
    exec(text, {})
    shares = {line.split()[0] for line in capsys.readouterr().out.splitlines() if "popularity" in line}
    assert shares == {"1.0%", "2.5%", "5.0%", "10.0%", "25.0%"}


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    """The ml-100k scenario on made-up data: small, but with room for a block in 1% of the table."""
    from simulations.scenario_files import shipped_scenarios

    rng = np.random.default_rng(0)
    rows = [f"{u},{i},{t}" for u in range(60) for t, i in enumerate(rng.permutation(1000)[:40])]
    (tmp_path / "pairs.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n", encoding="utf-8")
    scenario = tmp_path / "ml-100k.yaml"
    scenario.write_text(
        yaml.safe_dump(
            {
                "data": {"path": str(tmp_path / "pairs.csv")},
                "pretraining": {"embedding_dim": 16},
                "blocks": {"item_groups": "single"},
                "fleet": "ml-tiny",
            }
        ),
        encoding="utf-8",
    )
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("profiles: [{name: any, population_share: 1, memory: {table_share: 0.9}}]\n", encoding="utf-8")
    scenario.write_text(scenario.read_text().replace("ml-tiny", str(fleet)), encoding="utf-8")
    scenario.write_text(scenario.read_text() + "evaluation: {artifacts: 0}\n", encoding="utf-8")
    shipped = shipped_scenarios() | {"ml-100k": scenario}
    monkeypatch.setattr("simulations.scenario_files.shipped_scenarios", lambda: shipped)


def commands():
    lines = [
        line
        for block in re.findall(r"```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
    ]
    inline = re.findall(r"`(fl-peel [^`]+)`", README.read_text(encoding="utf-8"))
    return [line.split("  #")[0].strip() for line in [*lines, *inline] if line.startswith("fl-peel ")]


@pytest.mark.parametrize("command", commands())
def test_commands_and_their_options_exist(command):
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    while words and hasattr(group, "commands"):
        assert words[0] in group.commands, f"no such command: {command}"
        group = group.commands[words.pop(0)]
    options = {name for parameter in group.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("command", [c for c in commands() if " --set " in c])
def test_overrides_name_existing_keys(command):
    words = shlex.split(command)[1:]
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    if not any("surprising" in override for override in overrides):  # the reader's own selector
        load_scenario("ml-100k", overrides)
