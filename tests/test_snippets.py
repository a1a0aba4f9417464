"""What the how-to pages tell a reader to do is done, and works; the tutorial is typed by tests/test_first_hour.py."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_peel import plugins
from simulations import runner
from simulations.cli.main import app
from tests.helpers.root import ROOT
from tests.helpers.without_ray import simulated

HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PAGES = [ROOT / "docs" / "tutorial.md", *HOW_TO]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, whose modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def typed(monkeypatch):
    """Runs a line: ``fl-peel`` in this process, on nodes without an engine; anything else in bash."""

    monkeypatch.setattr(runner, "simulated", simulated)

    def run(line):
        words, _, target = line.partition(" > ")
        if not words.startswith("fl-peel "):
            in_shell(line)
            return
        ran = CliRunner().invoke(app, shlex.split(words)[1:], catch_exceptions=False)
        assert ran.exit_code == 0, f"{line}\n{ran.stderr}"
        if target:
            with open(target.strip(), "w", encoding="utf-8") as file:
                file.write(ran.stdout)

    return run


@pytest.mark.usefixtures("api")
@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_page_works_as_told(page, folder, typed):
    sys.modules.pop("my_package", None)
    done = follow(page, folder, typed)
    assert done > 0 or page.stem == "extend"


@pytest.mark.parametrize("part", ["A stage of a run", "A section of the report"])
def test_a_part_is_added_in_forty_lines(part):
    text = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
    assert len(text.split(f"## {part}\n")[1].split("\n## ")[0].splitlines()) <= 40


@pytest.mark.usefixtures("api")
def test_names_of_the_package_that_extends_are_known(folder, typed, monkeypatch):
    """As if it were installed: its entry points are those of its pyproject.toml."""
    page = ROOT / "docs" / "how-to" / "extend.md"
    follow(page, folder, typed)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    installed = project["tool"]["setuptools"]["py-modules"]  # setuptools guesses one module, and refuses two
    assert all((folder / f"{name}.py").is_file() for name in installed)
    groups = project["project"]["entry-points"]
    assert {value.partition(":")[0] for named in groups.values() for value in named.values()} == set(installed)
    points = [EntryPoint(name, value, group) for group, named in groups.items() for name, value in named.items()]
    real = plugins.entry_points
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [point for point in points if point.group == group] or real(group=group)
    )
    sys.modules.pop("my_package", None)
    rng = np.random.default_rng(0)
    rows = [f"{u},{i}" for u in range(40) for i in rng.permutation(60)[:12]]
    (folder / "events.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    (folder / "fleet.yaml").write_text("profiles: [{name: any, memory: {table_share: 0.9}}]\n")
    small = [
        "fleet=fleet.yaml",
        "data={path: events.csv}",
        "pretraining={embedding_dim: 8, epochs: 2, diversity_slices: 2}",
    ]
    small += ["user_groups={count: 2}", "refinement.rounds=1", "evaluation.budgets=[50%]", "evaluation.artifacts=0"]
    small += ["elasticity={rounds: 0, falls: []}", "fairness.tiers=[]", "selector=exposure"]
    changes = [*small, "evaluation.selectors=[exposure, surprising]", "stages=[lengths]"]
    words = [word for change in changes for word in ("--set", change)]
    typed(shlex.join(["fl-peel", "run", "ml-100k", "--quiet", "--out", "out", *words]))
    assert '<section id="participation">' in (folder / "out" / "report.html").read_text()
    (stage,) = json.loads((folder / "out" / "report.json").read_text())["added_stages"].values()
    assert [figure["value"] for figure in stage["figures"]] == [0, 0, 0, 40, *[0] * 12], "12 items each, 9 to train on"
    suites = {"package": "TestSurprising", "sections": "TestParticipation", "stages": "TestLengths"}
    for module, suite in ((f"test_my_{name}", suite) for name, suite in suites.items()):
        tests = getattr(importlib.import_module(module), suite)()
        for name in (name for name in dir(tests) if name.startswith("test_")):
            getattr(tests, name)()
    for name in suites:
        sys.modules.pop(f"my_{name}", None), sys.modules.pop(f"test_my_{name}", None)


def test_blocks_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('```bash\nls  # look\n\n```\n```yaml title="a.yaml"\nx: 1\n```\n```\nplain\n```\n')
    bash, yaml = snippets_of(page)
    assert (bash.commands(), yaml.title, yaml.text) == (["ls"], "a.yaml", "x: 1\n")
    page.write_text('```text title="a.yaml"\nx: 2\n```\n')
    (tmp_path / "a.yaml").write_text("x: 1\n")
    with pytest.raises(AssertionError, match=r"a\.yaml"):
        follow(page, tmp_path, os.system)


# --- Blocks of code of a document, and how a reader would run them.


_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """language: ``bash`` and ``python`` run; ``console`` is typed, and not run by tests; anything with a title is a
    file, and ``text`` with one the beginning of a file that others made.
    """

    language: str
    title: str
    text: str

    def commands(self) -> list[str]:
        """Lines to type, without comments."""
        lines = [line.split("  #")[0].strip() for line in self.text.splitlines()]
        return [line for line in lines if line]


def snippets_of(path: Path) -> list[Snippet]:
    """All blocks of a document that say their language."""
    return [Snippet(*result) for result in _BLOCK.findall(path.read_text(encoding="utf-8"))]


def follow(path: Path, folder: Path, typed: Callable[[str], None]) -> int:
    """Do what a document says, in a folder; typed: runs a line of a shell. Returns how much was run."""
    done = 0
    for snippet in snippets_of(path):
        if snippet.language == "text" and snippet.title:
            assert (folder / snippet.title).read_text(encoding="utf-8").startswith(snippet.text), snippet.title
        elif snippet.title:
            (folder / snippet.title).write_text(snippet.text, encoding="utf-8")
        elif snippet.language == "python":
            exec(compile(snippet.text, str(path), "exec"), {})
            done += 1
        elif snippet.language == "bash":
            for line in snippet.commands():
                typed(line)
                done += 1
    return done


def in_shell(line: str) -> None:
    """Type a line into bash, with this Python and its commands first on the path."""
    command = f'PATH="{Path(sys.executable).parent}:$PATH"; {line}'
    ran = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"
