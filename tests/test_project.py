"""What the files beside the code say of the project is true, and the same everywhere."""

import re
import tomllib

import pytest
import yaml

import fl_peel
from fl_peel.packages import PACKAGES
from tests.helpers.root import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_version_is_one():
    """Flower wants it in pyproject.toml itself; a Flower app runs without an installation that could be asked."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == f"{fl_peel.__version__} ({CITATION['date-released']})"
    assert PROJECT["version"] == CITATION["version"] == fl_peel.__version__


def test_the_licence_is_the_one_that_is_named():
    assert PROJECT["license"] == {"file": "LICENSE"}, "as fab-format-version 1 wants it"
    assert CITATION["license"] == "Apache-2.0"
    assert "License :: OSI Approved :: Apache Software License" in PROJECT["classifiers"]
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_paper_is_cited():
    (paper,) = CITATION["references"]
    number = "2306.10532"
    assert number in paper["url"]
    assert number in fl_peel.__doc__
    assert number in (ROOT / "README.md").read_text(encoding="utf-8")
    assert [author["family-names"] for author in paper["authors"]] == ["Zheng", "Qu", "Chen", "Zheng", "Shi", "Yin"]


def test_the_readme_opens_as_those_of_flowers_baselines_do():
    front, _, text = (ROOT / "README.md").read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")
    about = yaml.safe_load(front)
    assert list(about) == ["title", "url", "labels", "dataset"]
    assert about["title"] in " ".join(text.split())
    assert about["url"].startswith("https://arxiv.org/abs/")


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    assert (ROOT / package / "py.typed").read_bytes() == b""


def test_hooks_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    linted = re.findall(
        r"^\t\$\(BIN\)/((?:ruff|mypy|lint-imports)[^$\n]*)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE
    )
    commands = [line.replace("--check", "").strip() for line in linted]
    assert (
        [hook["entry"] for hook in hooks[0]["hooks"]]
        == commands
        == [*("ruff check", "ruff format", "mypy", "lint-imports")]
    )


def test_every_sub_package_is_in_the_table_of_rooms():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)/` \| (`.*) \|$", table, flags=re.MULTILINE))
    assert rows.keys() == {*PACKAGES}
    for package in PACKAGES:
        result = {path.parent.name for path in (ROOT / package).rglob("*/__init__.py")} - {package}
        assert result == set(re.findall(r"`(\w+)`", rows[package])) - {"scenarios"}, package


def test_the_walk_leads_through_code_that_is_there():
    """Each `path.py` `Class.function` of CONTRIBUTING.md, and each path by itself."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = text[text.index("## A walk") : text.index("## Golden reports")]
    steps = re.findall(r"^\| `([\w/]+\.py)` `([\w.]+)`", walk, flags=re.MULTILINE)
    assert len(steps) > 10
    for path, name in steps:
        assert f"def {name.rpartition('.')[2]}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)
    for path in re.findall(r"`((?:fl_peel|clients|strategies|simulations)/[\w/.]+)`", walk):
        assert (ROOT / path).exists(), path
