"""Every command exists that the README and the docs name; tests/test_first_hour.py types what the README says."""

import re
import shlex

import pytest
import typer

from simulations.cli.main import app
from simulations.scenario_files import load_scenario
from simulations.sweep_space import settings_of
from tests.helpers.root import ROOT

README = ROOT / "README.md"


def commands():
    """Each as it is typed, and the page that has it first."""
    result = {}
    for page in (README, *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"```(?:bash|console)?\n(.*?)```", text, re.DOTALL)
        lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`(fl-peel [^`]+)`", text)
        typed = [re.split("  #| > ", line)[0].strip() for line in lines if line.startswith("fl-peel ")]
        result = dict.fromkeys(typed, page.stem) | result
    return result


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


OWN = ("extend", "contents")
"""Pages whose overrides name what a package of one's own adds."""


@pytest.mark.parametrize("command", [line for line, page in commands().items() if "--set" in line and page not in OWN])
def test_overrides_name_existing_keys(command):
    from simulations.scenario_files import shipped_scenarios

    words = shlex.split(command)[1:]
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    scenario = next((word for word in words[1:2] if word in shipped_scenarios()), "ml-100k")
    varied = words[0] == "sweep" and "--search" not in words
    for overrides in [one.overrides for one in settings_of(changes)] if varied else [changes]:
        load_scenario(scenario, overrides)


def test_the_quickstart_is_typed_in_the_environment_that_make_run_makes():
    first, *others = quickstart()
    assert first == ". .venv/bin/activate"
    assert "VENV ?= .venv\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(others) <= set(commands())
    assert len(others) >= 2


def test_make_run_says_what_comes_next():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (output,) = re.findall(r"^run: .*\n(?:\t.*\n)*?((?:\t@echo .*\n)+)", makefile, re.MULTILINE)
    assert "/bin/activate" in output.replace("$(BIN)/activate", "/bin/activate")
    assert "$(OUT)/report.html" in output
    for page in re.findall(r"docs/[\w/-]+\.md", output):
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
