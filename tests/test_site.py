"""The site has every page, made from the code as it is; links that would leave it are text."""

import os
import re
import subprocess
import sys
import time

import pytest
import yaml
from site_pages import (
    OPTIONAL,
    commands_page,
    fleet_page,
    messages_page,
    pages,
    python_page,
    relinked,
    scenario_page,
)

import fl_peel
from clients.fleet.fleet import fleet_parts
from fl_peel.scenario.reference import keys_of, scenario_schema
from fl_peel.steps import STEPS
from tests.helpers.browser import browser, needs_chromium
from tests.helpers.root import ROOT

MKDOCS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def targets(nav):
    for entry in nav:
        for target in entry.values():
            if isinstance(target, list):
                yield from targets(target)
            else:
                yield target


def test_every_page_is_in_the_nav_once():
    named = list(targets(MKDOCS["nav"]))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(named) == len(set(named))
    assert there | {*pages()} | {*OPTIONAL} == {*named} | {*OPTIONAL}
    assert MKDOCS["strict"] is True


def test_every_key_of_a_fleet_is_on_its_page():
    page = fleet_page()
    assert "## profiles[].memory\n" in page
    value = "number or distribution, Mbit/s; > 0; default `5`"
    assert f"| `uplink_mbps` | {value} | Bandwidth from the device to the server. |" in page
    assert "## profiles[].budget, process: random-walk\n" in page
    assert page.count("\n## ") == len(fleet_parts())


def test_every_key_of_a_scenario_has_a_row():
    page = scenario_page()
    for key in keys_of(scenario_schema()):
        part, _, name = key.path.rpartition(".")
        assert f"\n## {part or 'At the top'}\n" in page
        rows = [row for row in page.splitlines() if row.startswith(f"| `{name}` |")]
        assert any(key.unit in row and key.type.replace("<", "&lt;") in row for row in rows), key.path
    assert "[docs/" not in page
    assert "](../privacy.md)" in page


def test_messages_are_those_of_the_steps():
    page = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    assert page == messages_page(), "make docs writes it anew"
    assert [name for name in STEPS if f"\n| `{name}` |" not in page] == []
    assert "| sizes (G)<br>first (G, K)<br>second (G, K (K + 1) / 2)<br>items (G, I) | G | sizes 0.01; 1<br>" in page
    assert "| table (I, K), under a mechanism weights (I) | columns (I, K) | I | columns 0.69; 1 |" in page


def test_every_command_and_option_is_there():
    page = commands_page()
    for heading in ("## fl-peel", "### fl-peel run", "#### fl-peel scenarios show", "#### fl-peel profiles sample"):
        assert f"{heading}\n" in page
    assert "| `--dry-run` | Only estimate bytes, memory and time of the run" in page


def test_every_public_name_is_there():
    page = python_page()
    names = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, flags=re.MULTILINE))
    assert names == set(fl_peel.__all__) - {"__version__"}


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("engine.md", "[wire.py](../fl_peel/wire.py)", "`wire.py`"),
        ("engine.md", "[`wire.py`](../fl_peel/wire.py#L3)", "`wire.py`"),
        ("engine.md", "[how](method.md#terms)", None),
        ("how-to/extend.md", "[c](../method.md)", None),
        ("how-to/extend.md", "[c](../../Makefile)", "`c`"),
        ("how-to/extend.md", "[c](../nothing.md)", None),
        ("index.md", "![p](figures/a.svg)", None),
        ("index.md", "[RunResult](strategies/figures/schema.py)", "`RunResult`"),
        ("index.md", "[paper](https://arxiv.org/x) [here](#limits)", None),
    ],
)
def test_links_stay_within_the_site(place, text, expected):
    """None: as it was."""
    assert relinked(text, place) == (text if expected is None else expected)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that `make docs` writes; strict, so that a warning is an error."""
    pytest.importorskip("mkdocstrings", reason="make docs installs what the site is made with")
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_what_is_made(site):
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "Base class of all budget processes" in page
    notebook = (site / "notebooks" / "quickstart.html").read_text(encoding="utf-8")
    assert notebook.count("<table") >= 3
    assert 'src="data:image/png;base64,' in notebook


HITS = "[...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)"


@pytest.mark.slow
@needs_chromium
def test_pages_opened_as_files_are_searched_without_a_network(site, tmp_path):
    """From a page in a folder, whose index lies above it."""
    with browser(tmp_path) as shown:

        def hits():
            shown.open(site / "how-to" / "extend.html")
            shown.tell("document.querySelector('[data-md-component=search-query]').focus()")
            shown.ask("Input.insertText", text="diversity regularizer")
            for _ in range(100):
                if listed := shown.tell(HITS):
                    return listed
                time.sleep(0.1)
            return []

        # on a busy machine the page may miss what is typed at once
        assert any("method.html" in hit for hit in hits() or hits() or hits())
        assert [address for address in shown.loaded if not address.startswith(("file:", "data:"))] == []
        assert shown.complaints == []
