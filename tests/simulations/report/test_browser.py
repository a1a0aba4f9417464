"""The page of a run in a real browser: wide and narrow, light and dark, with its script and without."""

import re
from dataclasses import replace

import pytest

from simulations.report.run_files import run_page
from tests.helpers.browser import needs_chromium
from tests.simulations.report.test_report import Page, run_result

pytestmark = [needs_chromium, pytest.mark.slow]
SHOWN = "(selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility()).length"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(run_page(run_result()).html(run_result()))
    return path


@pytest.fixture
def page(file, chromium):
    chromium.complaints.clear()
    chromium.loaded.clear()
    chromium.open(file)
    yield chromium
    assert not chromium.complaints
    assert set(chromium.loaded) <= {file.absolute().as_uri()}


@pytest.mark.parametrize(("width", "form"), [(1300, ".wide"), (390, ".tall")])
def test_nothing_is_wider_than_the_page_and_one_form_of_each_figure_is_shown(page, file, width, form):
    page.open(file, width)
    assert page.tell("document.documentElement.scrollWidth") <= width
    assert page.tell(f"({SHOWN})('figure svg')") == page.tell(f"({SHOWN})('{form} svg')") == 7
    wide = "[...document.querySelectorAll('table')].filter((one) => one.scrollWidth > one.parentElement.clientWidth)"
    assert page.tell(f"{wide}.every((one) => getComputedStyle(one.parentElement).overflowX === 'auto')")
    assert bool(page.tell(f"{wide}.length")) is (width == 390)  # tables scroll in themselves
    cell = "document.querySelector('#budgets tbody tr').cells[2].getBoundingClientRect()"
    assert page.tell(f"{cell}.right") < width, "recall is seen without scrolling"


@pytest.mark.parametrize(
    ("dark", "paper", "ink"), [(False, "255, 255, 255", "34, 34, 34"), (True, "22, 22, 22", "230, 230, 230")]
)
def test_page_and_figures_are_dark_where_that_is_wanted(page, file, dark, paper, ink):
    page.open(file, dark=dark)
    assert page.tell("getComputedStyle(document.body).backgroundColor") == f"rgb({paper})"
    assert page.tell("getComputedStyle(document.body).color") == f"rgb({ink})"
    behind = "getComputedStyle(document.querySelector('#budgets-patch_1 path')).fill"
    assert page.tell(behind) == f"rgb({paper})"


def column(place: int) -> str:
    return f"[...document.querySelectorAll('#budgets tbody tr')].map((row) => row.cells[{place}].textContent)"


def test_tables_are_sorted_up_and_down(page):
    press = "document.querySelectorAll('#budgets th button')[2].click()"  # of recall
    page.tell(press)
    assert [cell[:6] for cell in page.tell(column(2))] == ["0.0500", "0.1000", "0.1500", "0.2100"]
    page.tell(press)
    assert [cell[:6] for cell in page.tell(column(2))] == ["0.2100", "0.1500", "0.1000", "0.0500"]
    assert page.tell("document.querySelector('#budgets th[aria-sort]').ariaSort") == "descending"
    page.tell("document.querySelectorAll('#budgets th button')[6].click()")  # of bytes
    assert page.tell(column(6)) == ["10.0", "10.0", "50.0", "50.0"]


def test_a_budget_slides(page):
    events = "document.querySelector('#budget output').innerText"
    assert page.tell(events).startswith("1%, 10.0 KB")
    page.tell("document.querySelector('#share').focus()")
    page.press("ArrowRight", 39)
    assert page.tell(events).split("\n")[:3] == [
        "5%, 50.0 KB",
        "int8 controller: Recall@20 0.2100 [0.1900, 0.2400], 0.840 [0.790, 0.900] relative to best, "
        "1.050 [1.000, 1.110] relative to global",
        "fp32 controller: Recall@20 0.1000 [0.0800, 0.1300], 0.400 [0.350, 0.460] relative to best, "
        "0.500 [0.450, 0.560] relative to global",
    ]
    assert page.tell("document.querySelectorAll('#budgets tr.at').length") == 2
    assert page.tell("document.querySelectorAll('.wide .tip.at').length") == 2


def test_points_say_what_they_are(page):
    place = page.tell(
        "(() => { const tip = document.querySelector('.wide .tip'); tip.scrollIntoView({ block: 'center' });"
        " const box = tip.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    assert page.tell("document.querySelector('.words').hidden")
    page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    assert page.tell("document.querySelector('.words').innerText").startswith("int8: 0.1500 [0.1300, 0.1800] at 1%")
    assert not page.tell("document.querySelector('.words').hidden")


def test_grey_lines_are_switched_off_and_on(page, tmp_path):
    """By style alone: what is drawn of it, and its points."""
    one = run_result()
    precisions = ("int4", "fp16", "int2", "a", "b", "c")
    many = tuple(replace(row, precision=name) for row in one.budgets for name in (*precisions, row.precision))
    (tmp_path / "many.html").write_text(run_page(replace(one, budgets=many)).html())
    page.loaded.clear()
    page.open(tmp_path / "many.html")
    drawn = "[...document.querySelectorAll('.wide .series')].filter("
    drawn += "(one) => getComputedStyle(one).display !== 'none').length"
    all_of_them = page.tell(drawn)
    assert all_of_them >= 2 * 2  # lines, points
    page.tell("document.querySelectorAll('.key input').forEach((input) => input.click())")
    assert page.tell(drawn) == 0
    page.tell("document.querySelectorAll('.key input').forEach((input) => input.click())")
    assert page.tell(drawn) == all_of_them
    page.loaded.clear()


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.,]*\d|\d", text))


def test_without_its_script_the_page_has_every_number(page, file, tmp_path):
    page.ask("Emulation.setScriptExecutionDisabled", value=True)
    page.open(file)
    bare = page.ask("Page.getFrameTree")  # the page is there, and nothing has run
    assert bare["frameTree"]["frame"]["url"] == file.absolute().as_uri()
    page.ask("Emulation.setScriptExecutionDisabled", value=False)
    without = re.sub(r"<script>.*?</script>", "", file.read_text(), flags=re.DOTALL)
    page.open(file)
    shown = page.tell(
        "document.body.innerText + [...document.querySelectorAll('.tip')].map((tip) => tip.dataset.words)"
    )
    assert numbers(shown) - {"11"} <= numbers(Page(without).text)
    assert "<title>int8: 0.1500" in without
    assert len(re.findall(r"<script>.*?</script>", file.read_text(), flags=re.DOTALL)[0]) < 6000
