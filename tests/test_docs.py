"""Every file, module and name of ours that the documents and docstrings tell of is there."""

import importlib
import re

import pytest

from fl_peel.packages import PACKAGES
from tests.helpers.root import ROOT

DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
GROUPS = {
    group
    for path in SOURCES
    for group in re.findall(
        r'Registry(?:\[[^\]]*\])?\(\s*"[^"]*",\s*"(fl_peel\.\w+)"', path.read_text(encoding="utf-8")
    )
}
"""Of entry points."""
ROOMS = "|".join(PACKAGES)
PATH = re.compile(rf"(?<![\w/.-])((?:{ROOMS}|tests|docs)/[\w/.-]*\w)")
DOTTED = re.compile(rf"(?<![\w/.-])((?:{ROOMS})(?:\.\w+)+)(?![\w/*])")


def resolves(dotted):
    """Whether a dotted name is a module, or leads from one to something in it."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            result = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(result, part):
                return False
            result = getattr(result, part)
        return True
    return False


def name(path):
    return path.relative_to(ROOT).as_posix()


def links(path):
    """Targets of a document's links to our own files, as it writes them."""
    result = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    return [link for link in result if "://" not in link]


def test_the_readme_leads_to_every_page():
    pending, reached = [ROOT / "README.md"], set()
    while pending:
        path = pending.pop()
        reached.add(path)
        targets = {(path.parent / link).resolve() for link in links(path) if link.endswith(".md")}
        pending += [target for target in targets if target not in reached]
    assert set(DOCUMENTS) - reached == set()


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_what_a_document_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    assert [link for link in links(path) if not (path.parent / link).exists()] == []
    assert [result for result in PATH.findall(text) if not (ROOT / result).exists()] == []
    assert [result for result in DOTTED.findall(text) if result not in GROUPS and not resolves(result)] == []


@pytest.mark.usefixtures("api")
def test_where_the_changelog_says_that_a_path_went_it_is():
    moves = re.findall(rf"`((?:{ROOMS})[\w.]+)` is `((?:{ROOMS})[\w.]*)`", (ROOT / "CHANGELOG.md").read_text())
    assert len(moves) >= 15
    assert [new for _, new in moves if not resolves(new)] == []
    assert [old for old, _ in moves if resolves(old)] == []


@pytest.mark.usefixtures("api")
def test_what_comments_and_docstrings_refer_to_is_there():
    lost = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        roles = re.findall(rf":\w+:`~?((?:{ROOMS})\.[\w.]+)`", text)
        paths = re.findall(rf"`((?:{ROOMS}|docs)/[\w/.-]*\w)`", text)
        lost |= {(name(path), result) for result in roles if not resolves(result)}
        lost |= {(name(path), result) for result in paths if not (ROOT / result).exists()}
        lost |= {
            (name(path), result) for result in re.findall(r"\bdocs/[\w-]+\.md", text) if not (ROOT / result).exists()
        }
    assert lost == set()


def test_a_lost_name_is_seen():
    assert PATH.findall("see `clients/work.py`, [x](../fl_peel/wire.py)") == ["clients/work.py"]
    assert DOTTED.findall('`clients.contracts.X` and "fl_peel.budgets"') == ["clients.contracts.X", "fl_peel.budgets"]
    assert [resolves(name) for name in ("fl_peel.wire", "fl_peel.errors.DataError")] == [True, True]
    assert [resolves(name) for name in ("clients.contracts", "fl_peel.errors.Nothing")] == [False, False]
    assert {"fl_peel.api", "fl_peel.attacks", "fl_peel.budgets", "fl_peel.mechanisms"} <= GROUPS
