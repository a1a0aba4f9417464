"""Names say what they name: the cheap half of it, which a machine can see (CONTRIBUTING.md has the rest)."""

import ast
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

from fl_peel.packages import PACKAGES
from tests.helpers.root import ROOT

UNCLEAR = {"found", "told", "said", "begun", "beside"}
"""Participles that say nothing of the value that they would name."""
CONVENTIONAL = {"__init__", "base", "contracts", "page", "reference", "report", "schema", "settings"}
"""Files that lie in several folders of a package, the same thing of each."""
NAMED_AFTER = ("simulations/cli/", "simulations/report/sections/")
"""Folders whose files are named after what they are for: a command, a section."""


@cache
def trees():
    """Every file of the four packages by its path, parsed once."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def nodes(*kinds):
    """(place, node) of every node of these kinds."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield f"{path}:{getattr(node, 'lineno', 1)}", node


def names(node):
    """Names that a node gives to values."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    if isinstance(node, ast.arg):
        return {node.arg}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return {node.attr}
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return {node.name}
    return set()


def stem(name):
    """A file's name without what a participle or a plural adds to its words."""
    return tuple(re.sub(r"(?<=..)(?:n?ing|n?ed|es|s|e)$", "", word) for word in name.split("_"))


def test_the_walk_sees_names():
    """Without this, a walk that finds nothing would pass every test below."""
    tree = ast.parse("def f(told): found = 1; x.said = 2\nclass A: of: int")
    assert {name for node in ast.walk(tree) for name in names(node)} == {"told", "found", "said", "of"}
    assert stem("prepare") == stem("preparing") == stem("prepared") != stem("report")
    assert stem("kept_rounds") != stem("kept_steps")
    assert stem("plan") == stem("planned")
    assert "fl_peel/errors.py" in trees()


def test_no_value_has_a_name_that_says_nothing():
    kinds = (ast.Name, ast.arg, ast.Attribute, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
    assert [place for place, node in nodes(*kinds) if names(node) & UNCLEAR] == []


def test_constructors_say_what_they_take():
    """``from_scenario``, ``from_rows``; not ``of`` or ``by``."""
    functions = nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    assert [place for place, node in functions if node.name.strip("_") in {"of", "by", *UNCLEAR}] == []


def test_one_name_is_one_class():
    places = defaultdict(list)
    for place, node in nodes(ast.ClassDef):
        places[node.name].append(place)
    assert {name: some for name, some in places.items() if len(some) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_one_name_is_one_file(package):
    files = [Path(path) for path in trees() if path.startswith(f"{package}/") and not path.startswith(NAMED_AFTER)]
    counts = Counter(path.stem for path in files)
    assert sorted(name for name, count in counts.items() if count > 1 and name not in CONVENTIONAL) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_its_neighbours_participle(package):
    stems = defaultdict(set)
    for path in trees():
        if path.startswith(f"{package}/") and not path.startswith((*NAMED_AFTER, "fl_peel/blocks/stored.py")):
            stems[stem(Path(path).stem)].add(Path(path).stem)
    assert [sorted(some) for some in stems.values() if len(some) > 1] == []


def test_docstrings_are_sentences():
    """None opens with "Of": what it is or does comes first."""
    documented = nodes(ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    fragments = [place for place, node in documented if re.match(r"Of\b", ast.get_docstring(node) or "")]
    texts = nodes(ast.Expr)  # of constants and fields, too
    values = [(place, node.value.value) for place, node in texts if isinstance(node.value, ast.Constant)]
    fragments += [place for place, text in values if isinstance(text, str) and re.match(r"Of\b", text)]
    assert sorted(set(fragments)) == []
