"""Callbacks of docs/trackers.md for W&B and Trackio: what they are told, and with the libraries where there are any."""

import importlib.util
import re
import sqlite3
import sys
import types

import pytest

from fl_peel import Callback
from fl_peel.errors import EngineError
from simulations import runner
from tests.helpers.root import ROOT
from tests.helpers.runs import run
from tests.simulations.conftest import QUICK

PAGE = (ROOT / "docs" / "trackers.md").read_text(encoding="utf-8")
LIBRARIES = {"WandB": "wandb", "Trackio": "trackio"}


def callback(name):
    """The class that the page has under a heading of its own."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f"class {name}(" in code]
    scope = {}
    exec(code, scope)
    return scope[name]


class Figures(Callback):
    """What any callback is told."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        if event.figures:
            self.events.append({**event.figures, "step": event.step})


@pytest.fixture(params=LIBRARIES)
def stub(request, monkeypatch):
    """The callback's name, how its library was begun, and what it was told; the library only notes it."""
    started, events = [], []

    def init(**how):
        started.append(how)
        return types.SimpleNamespace(log=events.append, finish=lambda **how: events.append(("finished", how)))

    monkeypatch.setitem(sys.modules, LIBRARIES[request.param], types.SimpleNamespace(init=init))
    return request.param, started, events


def test_they_are_told_what_every_callback_is_told(tiny, without_engine, stub):
    name, started, events = stub
    figures = Figures()
    result = run(tiny, overrides=QUICK, seed=3, callbacks=[figures, callback(name)("mine")])
    assert [(how["project"], how["name"], how["config"]["seed"]) for how in started] == [("mine", "tiny-seed-3", 3)]
    assert started[0].get("mode") == ("offline" if name == "WandB" else None)
    assert events == [*figures.events, ("finished", {})]
    assert {"validation/recall_at_20": result.history[0].recall}.items() <= next(
        one for one in events if "validation/recall_at_20" in one
    ).items()
    assert events[-2]["test/recall_at_20/50pct"] == result.budgets[0].recall.value


def test_a_run_that_fails_is_told_as_one(tiny, monkeypatch, without_engine, stub):
    name, _, events = stub
    engine = runner.simulated

    def failing(*args, **kwargs):
        engine(*args, **kwargs)
        raise EngineError("pulled the plug")

    monkeypatch.setattr(runner, "simulated", failing)
    with pytest.raises(EngineError, match="plug"):
        run(tiny, overrides=QUICK, callbacks=[callback(name)("mine")])
    assert events[-1] == ("finished", {"exit_code": 1} if name == "WandB" else {})
    assert name == "WandB" or events[-2] == {"failed": 1}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed; the stub has noted it")
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_a_run_without_an_account(tiny, tmp_path, monkeypatch, without_engine):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb-files"))
    (tmp_path / "wandb-files").mkdir()
    run(tiny, overrides=QUICK, callbacks=[callback("WandB")("mine")])
    (file,) = (tmp_path / "wandb-files").glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"validation/recall_at_20" in content
    assert b"test/recall_at_20/50pct" in content


@pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None, reason="trackio is not installed; the stub has noted it"
)
@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_a_run(tiny, tmp_path, monkeypatch, without_engine):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run(tiny, overrides=QUICK, callbacks=[callback("Trackio")("mine")])
    (file,) = (tmp_path / "trackio").rglob("mine*.db")
    with sqlite3.connect(file) as base:
        rows = "\n".join(str(row) for row in base.execute("select * from metrics"))
    assert "validation/recall_at_20" in rows
    assert "test/recall_at_20/50pct" in rows
