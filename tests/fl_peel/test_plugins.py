"""The one look-up of plug-ins: what it finds, and what it says when it does not."""

import os
from importlib.metadata import EntryPoint

import pytest

from fl_peel import plugins
from fl_peel.errors import FieldError
from fl_peel.plugins import Registry, did_you_mean


class Tool:
    """What the registry below is of."""


class Hammer(Tool):
    pass


def saw():
    return Hammer()


def broken():
    raise RuntimeError("no luck\ntoday")


NAIL = "a nail"

TOOLS = Registry("tool", "tests.tools", {"hammer": f"{__name__}:Hammer", "own": Tool}, reserved=("none",))


@pytest.fixture
def install(monkeypatch):
    """Register things of this file as if packages had."""

    def installed(*points):
        result = [EntryPoint(name, f"{__name__}:{what}", "tests.tools") for name, what in points]
        monkeypatch.setattr(plugins, "entry_points", lambda group: result if group == "tests.tools" else [])

    installed()
    return installed


def test_names_are_reserved_ones_then_shipped_ones_then_added_ones(install):
    install(("saw", "saw"), ("axe", "saw"))
    assert TOOLS.names() == ("none", "hammer", "own", "axe", "saw")


def test_what_is_named_by_its_place_is_imported_when_it_is_asked_for(install):
    install(("saw", "saw"))
    assert TOOLS.get("hammer") is Hammer
    assert TOOLS.get("own") is Tool
    assert TOOLS.get("saw") is saw
    assert all(isinstance(TOOLS.make(name, Tool), Tool) for name in ("hammer", "own", "saw"))


def test_a_name_is_checked_without_an_import(install):
    install(("lost", "nowhere"))
    assert [TOOLS.check(name) for name in ("none", "hammer", "lost")] == ["none", "hammer", "lost"]
    with pytest.raises(
        FieldError, match=r"^unknown tool 'hamer'; did you mean 'hammer'\? known: none, hammer, own, lost$"
    ):
        TOOLS.check("hamer")


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("lost", f"the tool 'lost' of {__name__}:nowhere cannot be imported: AttributeError: "),
        ("broken", f"the tool 'broken' of {__name__}:broken cannot be made: RuntimeError: no luck today"),
        ("nail", f"the tool 'nail' of {__name__}:NAIL is not a Tool; subclass {__name__}.Tool"),
        ("hammer", "the tool 'hammer' is registered more than once"),
        ("none", "the tool 'none' is registered more than once"),
        ("zzz", "unknown tool 'zzz'; known: none, hammer, "),
    ],
)
def test_every_mistake_is_one_line(install, name, output):
    install(("lost", "nowhere"), ("broken", "broken"), ("nail", "NAIL"), ("hammer", "saw"), ("none", "saw"))
    with pytest.raises(FieldError) as caught:
        TOOLS.make(name, Tool)
    assert str(caught.value).startswith(output)
    assert "\n" not in str(caught.value)


def test_a_guess_comes_with_everything_known():
    assert did_you_mean("rouns", ["rounds", "seed"]) == "did you mean 'rounds'? known: rounds, seed"
    assert did_you_mean("xyz", ["rounds", "seed"]) == "known: rounds, seed"


def test_entry_points_of_the_backport_are_plug_ins_too(monkeypatch):
    """Once importlib_metadata is imported, Python's own look-up answers with that package's class."""
    backport = pytest.importorskip("importlib_metadata")  # mlflow and OpenTelemetry bring it
    points = [backport.EntryPoint("saw", f"{__name__}:saw", "tests.tools")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "tests.tools" else [])
    assert TOOLS.get("saw") is saw
    assert isinstance(TOOLS.make("saw", Tool), Hammer)


def test_what_is_installed_is_read_once_and_again_when_more_is(monkeypatch, tmp_path):
    reads = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: reads.append(group) or [])
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(3):
        assert TOOLS.names() == TOOLS.names()
    assert reads == ["tests.tools"]
    (tmp_path / "saws-1.0.dist-info").mkdir()
    os.utime(tmp_path, ns=(0, 1))  # clocks of folders are coarse
    TOOLS.names()
    assert len(reads) == 2
