"""Golden reports are recorded and compared; a difference and a failure are told by name, and by the exit code."""

import json
import subprocess

import pytest

from tests.golden import run as module
from tests.golden.entries import Entry, Session
from tests.golden.run import MADE_WITH, MOST_LINES, checkout, run


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path, tmp_path)


@pytest.fixture
def reports(tmp_path):
    return tmp_path / "reports"


def entry(report, name="one", golden=""):
    return Entry(name, lambda session: report, golden=golden)


def test_what_was_recorded_is_compared(session, reports, capsys):
    report = {"recall": 0.1, "stages": {"data": 1.0}}
    assert run([entry(report)], session, reports, record=True) == 0
    assert json.loads((reports / "one.json").read_text()) == {"recall": 0.1}
    assert run([entry({"recall": 0.1, "stages": {"data": 2.0}})], session, reports, record=False) == 0
    assert run([entry({"recall": 0.2})], session, reports, record=False) == 1
    recorded, equal, differs = capsys.readouterr().out.strip().split("in all")[:3]
    assert "recorded" in recorded
    assert "equal" in equal
    assert "1 differences\n    recall: expected 0.1, measured 0.2\n" in differs


def test_an_entry_can_have_to_equal_another(session, reports):
    same = [entry({"recall": 0.1}), entry({"recall": 0.1}, "two", golden="one")]
    assert run(same, session, reports, record=True) == 0
    assert not (reports / "two.json").exists()
    assert run([same[0], entry({"recall": 0.2}, "two", golden="one")], session, reports, record=True) == 1


def test_an_entry_that_fails_does_not_stop_the_others(session, reports, capsys):
    def fails(session):
        raise RuntimeError("no such thing")

    run([entry({"recall": 0.1}, "two")], session, reports, record=True)
    assert run([Entry("one", fails), entry({"recall": 0.1}, "two")], session, reports, record=False) == 1
    assert run([entry({}, "three")], session, reports, record=False) == 1
    out = capsys.readouterr().out
    assert "failed\n    RuntimeError: no such thing\ntwo " in out
    assert f"there is no {reports / 'three.json'}" in out


def test_the_rest_of_many_differences_is_counted(session, reports, capsys):
    run([entry({str(n): n for n in range(50)})], session, reports, record=True)
    run([entry({str(n): n + 1 for n in range(50)})], session, reports, record=False)
    lines = capsys.readouterr().out.splitlines()
    assert sum("expected" in line for line in lines) == MOST_LINES
    assert f"    and {50 - MOST_LINES} more" in lines


def test_other_versions_are_told(session, reports, capsys, monkeypatch):
    run([], session, reports, record=True)
    assert module.other_versions(reports) == []
    content = json.loads((reports / MADE_WITH).read_text()) | {"numpy": "1.0"}
    (reports / MADE_WITH).write_text(json.dumps(content))
    run([], session, reports, record=False)
    assert "recorded with numpy 1.0; here is " in capsys.readouterr().out


def test_another_commit_is_checked_out_with_this_folder_in_it(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "--quiet")
    here = tmp_path / "tests" / "golden"
    (here / "reports").mkdir(parents=True)
    (here / "gone.py").touch()
    for text in ("then", "now"):
        (tmp_path / "code.py").write_text(text)
        (here / "entries.py").write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--message", text)
    (here / "gone.py").unlink()
    for name, value in {"ROOT": tmp_path, "HERE": here}.items():
        monkeypatch.setattr(module, name, value)
    with checkout("HEAD~1") as root:
        assert (root / "code.py").read_text() == "then"
        assert {path.name: path.read_text() for path in (root / "tests" / "golden").iterdir()} == {"entries.py": "now"}
    assert not root.exists()
    assert len(git("worktree", "list").splitlines()) == 1
