"""The page about models: its snippet runs, and its commands exist with these options."""

import re
import shlex

import pytest
import typer

from simulations.cli.main import app
from tests.helpers.blocks import layout_of
from tests.helpers.models import saved
from tests.helpers.root import ROOT

PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    layout = layout_of("single", 400, 400, 64, 1, 0)
    for seed, name in enumerate("ab"):
        ids = tuple(str(number + 1) for number in range(400))
        saved(tmp_path / "out" / name / "model", seed, layout=layout, ids=ids)
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(text, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 12
    assert printed[-2].endswith("bytes to read")


@pytest.mark.parametrize(
    "command",
    [line for line in PAGE.splitlines() if line.startswith("fl-peel ")] + ["fl-peel serve-device out/a/model"],
)
def test_its_commands_exist(command):
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    assert words[0] in group.commands
    options = {name for parameter in group.commands[words[0]].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
