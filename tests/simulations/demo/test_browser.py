"""The page in a real browser: it is dragged, typed at, narrowed and darkened, and shows what Python computes."""

from __future__ import annotations

import numpy as np
import pytest

from fl_peel.blocks.layout import BlockLayout
from fl_peel.blocks.ranked_blocks import rank_blocks
from fl_peel.blocks.resizing import ElasticEmbedding
from fl_peel.figures import Estimate
from simulations.demo import DemoCurve, DemoDevice, DemoItems, demo_page
from tests.helpers.browser import needs_chromium

pytestmark = [needs_chromium, pytest.mark.slow]
NUM_ITEMS, TOP = 240, 20
IDS = tuple(f"film {item}, a title that is rather longer than a telephone is wide" for item in range(NUM_ITEMS))


def devices():
    """Three devices whose blocks are of item groups, in four slices; of the third no held-out items are known."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(NUM_ITEMS) % 60).astype(np.int32)
    layout = BlockLayout(groups, 16, 4)
    table = rng.normal(size=(NUM_ITEMS, 16)).astype(np.float32)
    ranked = rank_blocks(layout, "int8", rng.random(layout.num_blocks), table)
    result = []
    for number in range(3):
        items = rng.permutation(NUM_ITEMS)
        elastic = ElasticEmbedding(ranked, rng.normal(size=16).astype(np.float32), items[:20], 1)
        wanted = items[20:40] if number < 2 else None
        result.append((elastic, DemoDevice(f"phone {number}", elastic.at(6000).to_bytes(), items[:20], wanted)))
    return groups, result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    groups, result = devices()
    file = tmp_path_factory.mktemp("demo") / "demo.html"
    text = demo_page(
        [device for _, device in result],
        DemoItems(IDS, tuple(groups.tolist())),
        title="A run",
        command="fl-peel demo",
        curve=DemoCurve(TOP, {500: Estimate(0.1, 0.08, 0.12), 3000: Estimate(0.2)}),
    )
    file.write_text(text)
    return file, result


@pytest.fixture
def page(made, chromium):
    chromium.complaints.clear()
    chromium.loaded.clear()
    chromium.open(made[0])
    yield chromium
    assert chromium.complaints == []
    assert set(chromium.loaded) == {made[0].as_uri()}


SHOWN = """(() => ({
  budget: Number(document.getElementById('budget').dataset.bytes),
  bytes: document.getElementById('bytes').textContent,
  stored: document.getElementById('stored').textContent,
  kept: document.getElementById('kept').textContent,
  items: document.getElementById('items').textContent,
  recall: document.getElementById('recall').textContent,
  best: [...document.querySelectorAll('#best .name')].map((e) => e.firstChild.textContent),
  hits: [...document.querySelectorAll('#best li')].map((e) => e.querySelector('.hit') !== null),
  told: document.getElementById('told').textContent,
  picture: document.getElementById('blocks').toDataURL(),
  now: document.querySelector('#chart line[stroke-dasharray]').getAttribute('x1'),
}))()"""


def by_python(elastic, device, budget):
    """What the page must show."""
    stored = elastic.at(budget)
    rows, _ = stored.scores()
    best = elastic.top_n(budget, TOP)
    hits = np.isin(best, device.wanted) if device.wanted is not None else np.zeros(len(best), bool)
    size = len(elastic.at(6000).blocks)
    recall = "–" if device.wanted is None else f"{hits.sum() / len(device.wanted):.3f} {hits.sum()} of 20"
    return {
        "stored": f"{len(stored.to_bytes()):,} B",
        "kept": f"{len(stored.blocks)} of {size}",
        "items": f"{len(rows)} of {NUM_ITEMS}",
        "recall": recall,
        "best": [IDS[item] for item in best[:10]],
        "hits": hits[:10].tolist(),
    }


def check(page, made, number):
    """That the page shows what Python computes for a device; returns what it shows."""
    shown = page.tell(SHOWN)
    elastic, device = made[1][number]
    wanted = by_python(elastic, device, shown["budget"])
    assert {key: shown[key] for key in wanted} == wanted
    return shown


def test_dragging_the_budget_changes_what_is_shown(page, made):
    small = check(page, made, 0)
    assert small["budget"] == 500  # the smallest of the run
    page.drag("#budget", 0.2, 0.8)
    large = check(page, made, 0)
    assert large["budget"] > 1000
    assert {key for key in small if small[key] == large[key]} <= {"recall", "hits"}
    page.drag("#budget", 0.8, 1.2)
    whole = check(page, made, 0)
    assert whole["kept"].split()[0] == whole["kept"].split()[-1]
    page.drag("#budget", 0.98, -0.2)
    least = check(page, made, 0)
    assert least["kept"].startswith("1 of ")


def test_keys_move_the_budget(page, made):
    before = check(page, made, 0)["budget"]
    page.tell("document.getElementById('budget').focus()")
    for _ in range(5):
        page.press("ArrowRight", 39)
    assert before < check(page, made, 0)["budget"] < 1.1 * before
    page.press("End", 35)
    assert check(page, made, 0)["budget"] == len(made[1][0][1].artefact)


def test_another_device_and_a_budget_of_the_run(page, made):
    choose = "(number) => { const e = document.getElementById('device'); e.value = number;"
    choose += " e.dispatchEvent(new Event('change')); }"
    for number in (1, 2, 0):
        page.tell(f"({choose})({number})")
        check(page, made, number)
        page.tell("document.querySelectorAll('#chips button')[1].click()")
        shown = check(page, made, number)
        assert shown["budget"] == 3000
        pressed = page.tell("[...document.querySelectorAll('#chips button')].map((b) => b.ariaPressed)")
        assert pressed == ["false", "true"]
    assert "recall" in shown["told"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390, 320])
def test_it_fits_any_width_in_light_and_dark(chromium, made, width, dark):
    chromium.open(made[0], width, 844, dark=dark)
    chromium.drag("#budget", 0.3, 0.7)
    check(chromium, made, 0)
    assert chromium.tell("document.documentElement.scrollWidth <= innerWidth")
    paper = chromium.tell("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)")
    assert chromium.complaints == []


COLORS = """(() => {
  const { width, height } = document.getElementById('blocks');
  const pen = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  pen.drawImage(document.getElementById('blocks'), 0, 0);
  const pixels = pen.getImageData(0, 0, width, height).data;
  const found = {};
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i + 3] === 255) { const c = pixels.slice(i, i + 3).join(); found[c] = (found[c] ?? 0) + 1; }
  }
  return found;
})()"""


NUMBERS = """(name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1)
  .match(/../g).map((two) => parseInt(two, 16)).join()"""


def test_the_map_is_drawn_in_the_colours_of_the_legend(page, made):
    page.tell("document.querySelectorAll('#chips button')[1].click()")
    kept = int(check(page, made, 0)["kept"].split()[0])
    light = page.tell(COLORS)
    accent, warm, faint = (page.tell(f"({NUMBERS})('{name}')") for name in ("--accent", "--warm", "--faint"))
    assert min(light.get(color, 0) for color in (accent, warm, faint)) > 0
    held = (light[accent] + light[warm]) / (light[accent] + light[warm] + light[faint])
    whole = len(made[1][0][0].at(6000).blocks)
    assert held == pytest.approx(kept / whole, abs=0.1)  # edges of cells are blended
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.tell("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert accent not in page.tell(COLORS)  # drawn anew as the scheme changes


def test_everything_that_is_moved_has_a_name(page):
    names = page.tell(
        "[...document.querySelectorAll('select, input')].map((e) => e.labels.length ? e.labels[0].textContent : null)"
    )
    assert names == ["Device", "Memory budget"]
    assert page.tell("document.getElementById('blocks').ariaLabel").endswith("blocks stored")
    assert page.tell("document.getElementById('budget').ariaValueText") == "500 B of 6.0 KB"
