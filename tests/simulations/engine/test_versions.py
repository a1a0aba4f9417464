"""What a report says of its environment: whether it is the locked one, and which code libraries run."""

import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simulations import resumable as module
from simulations.resumable import REQUIREMENTS, environment, locked, versions
from tests.helpers.root import ROOT

HEADER = "# by a tool\n--extra-index-url https://example.org/whl\n"


def test_the_lock_satisfies_pyproject():
    """Every dependency is locked once, to a version that is allowed."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    result = locked(ROOT / REQUIREMENTS)
    assert len(wanted) > 10
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in result, f"{name} is not in {REQUIREMENTS}: make lock"
        assert requirement.specifier.contains(result[name]), f"{name} {result[name]} is not allowed: make lock"


def test_the_lock_names_every_version_once():
    lines = [line for line in (ROOT / REQUIREMENTS).read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^=\s]+", line) for line in lines)
    assert len(locked(ROOT / REQUIREMENTS)) == len(lines)


def test_an_environment_is_as_locked_or_says_where_not(tmp_path):
    numpy, torch = version("numpy"), version("torch")
    lock = tmp_path / REQUIREMENTS
    lock.write_text(f"{HEADER}numpy=={numpy}\ntorch=={torch}  # for a processor\n")
    same = environment(lock)
    assert re.fullmatch("[0-9a-f]{16}, as locked", same)
    lock.write_text(f"{HEADER}torch=={torch}\nnumpy==1.0\n")
    other = environment(lock)
    assert other.endswith(f", not as locked: numpy {numpy} for 1.0")
    assert other[:16] == same[:16]  # of what is installed
    lock.write_text(f"numpy=={numpy}\nno-such-package==3.1\n")
    assert environment(lock).endswith(", not as locked: no-such-package none for 3.1")
    assert environment(lock)[:16] != same[:16]


def test_without_a_lock_file_there_is_nothing_to_compare_with(tmp_path):
    assert environment(tmp_path / REQUIREMENTS) == "none here"
    assert locked(tmp_path / REQUIREMENTS) == {}


@pytest.mark.parametrize("events", ["pinned", "native: numpy X86_V4"])
def test_a_report_names_both(events, monkeypatch):
    monkeypatch.setattr(module, "code_paths", lambda: events)
    result = versions()
    assert result["code"] == events
    assert result["lock"] == environment(ROOT / REQUIREMENTS)
