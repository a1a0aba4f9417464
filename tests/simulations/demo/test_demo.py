"""The page to play with: what is in it, from devices and from a run's folder; mistakes are one line."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from fl_peel.errors import ArtifactError, DataError, ReportError
from fl_peel.figures import Estimate
from simulations import demo as pages
from simulations.cli.main import app
from simulations.demo import (
    DemoCurve,
    DemoDevice,
    DemoItems,
    demo_of_run,
    demo_page,
    largest_artefacts,
    script,
)
from simulations.runner import save
from simulations.scenario_files import load_scenario
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.vectors import make

pytestmark = pytest.mark.usefixtures("without_figures")
QUICK = ["refinement.rounds=0", "elasticity={rounds: 0, falls: []}", "fairness.tiers=[]"]


def device(name="a", vector="single-int8", wanted=None):
    return DemoDevice(name, (make.FOLDER / f"{vector}.peel").read_bytes(), np.array([0, 5]), wanted)


def made(devices, items=None, curve=(), **more):
    curve = DemoCurve(5, dict(curve))
    return demo_page(devices, items or DemoItems(), title="t", command="fl-peel demo", curve=curve, **more)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_artefacts_and_what_is_known_of_items_are_in_the_page():
    one, two = device("one", wanted=np.array([3])), device("two")
    ids = tuple(f"</script><b>{item}" for item in range(9))
    page = made([one, two], DemoItems(ids), curve={200: Estimate(0.2), 100: Estimate(0.1, 0.05, 0.15)})
    assert page.count("</script>") == 2  # data and module: nothing of the data ends its element
    data = data_of(page)
    assert [base64.b64decode(events["file"]) for events in data["devices"]] == [one.artefact, two.artefact]
    assert [(events["name"], events["seen"], events["wanted"]) for events in data["devices"]] == [
        ("one", [0, 5], [3]),
        ("two", [0, 5], None),
    ]
    assert data["items"] == {"ids": list(ids)}
    assert [point["bytes"] for point in data["curve"]] == [100, 200]
    assert data["curve"][1] == {"bytes": 200, "recall": 0.2, "low": None, "high": None}
    assert data["recallAt"] == 5


def test_names_are_escaped():
    page = made([device("<img src=x>")])
    assert "<img" not in page
    assert '<option value="0">&lt;img src=x&gt;</option>' in page


def test_nothing_is_loaded():
    page = made([device()])
    assert "default-src &#39;none&#39;" in page
    addresses = set(re.findall(r"https?://[^\s\"'`]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.findall(r"^\s*import\b", script(), re.MULTILINE)


def test_devices_that_hold_nothing_are_left_out():
    page = made([device("none", "no-block"), device("some")])
    assert [events["name"] for events in data_of(page)["devices"]] == ["some"]
    with pytest.raises(ReportError, match="no device stores a block"):
        made([device("none", "no-block")])
    with pytest.raises(ReportError, match="no device stores a block"):
        made([])


def test_what_is_no_artefact_is_refused():
    with pytest.raises(ArtifactError, match="not a stored embedding"):
        made([DemoDevice("a", b"PEEL", np.zeros(0, int))])


def test_without_the_script_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "SCRIPT", tmp_path / "demo.mjs")
    with pytest.raises(ReportError, match=r"demo.mjs: No such file or directory; .* install fl-peel"):
        made([device()])


# ---------------------------------------------------------------- of a run


def finished(tiny, tmp_path, *changes, with_model=False):
    """A run's folder, without the engine."""
    scenario = load_scenario(tiny, [*QUICK, *changes, "data.path=" + str(tiny.parent / "planted.csv")])
    model = tmp_path / "run" / "model"
    paths = RunPaths("", str(tmp_path / "run"), model_dir=str(model) if with_model else "")
    result = serve(LoopbackGrid(1), scenario, paths)
    save(result, scenario, tmp_path / "out", paths)
    return result


def test_of_a_run_with_the_data_it_read(tiny, tmp_path):
    result = finished(tiny, tmp_path, "blocks.item_groups=single", "selector=popularity")
    demo = demo_of_run(tmp_path / "out")
    data = data_of(demo.page)
    assert demo.lacks is None
    assert len(data["devices"]) == 2
    pairs = [line.split(",") for line in (tiny.parent / "planted.csv").read_text().split()[1:]]
    assert sorted(data["items"]["ids"]) == sorted({item for _, item in pairs})
    largest = largest_artefacts(tmp_path / "out")
    for events, (number, file) in zip(data["devices"], largest.items(), strict=True):
        assert events["name"] == f"device {number}"
        assert base64.b64decode(events["file"]) == file.read_bytes()
        assert len(set(events["seen"]) | set(events["wanted"])) == 12  # what each user has, each item once
        assert not set(events["seen"]) & set(events["wanted"])
        names = data["items"]["ids"]
        mine = {item for user, item in pairs if user == f"u{number:04}"}
        assert {names[item] for item in (*events["seen"], *events["wanted"])} == mine
    rows = [row for row in result.budgets if row.selector == "popularity"]
    assert len(rows) == 2
    assert [(point["bytes"], point["recall"]) for point in data["curve"]] == [
        (row.budget_bytes, row.recall.value) for row in sorted(rows, key=lambda row: row.budget_bytes)
    ]


def test_of_a_run_with_item_groups_or_without_its_data(tiny, tmp_path):
    finished(tiny, tmp_path)
    demo = demo_of_run(tmp_path / "out")
    assert "items are shown by row" in demo.lacks
    assert data_of(demo.page)["devices"][0]["wanted"] is None
    (tiny.parent / "planted.csv").unlink()
    demo = demo_of_run(tmp_path / "out")
    assert demo.lacks.startswith("items are shown by number, and recall of single devices is not available: ")
    assert "planted.csv: no such file" in demo.lacks
    assert data_of(demo.page)["items"] == {}
    with pytest.raises(DataError, match=r"planted.csv: no such file"):
        demo_of_run(tmp_path / "out", tmp_path)


def test_a_model_says_what_items_are_called_and_their_groups(tiny, tmp_path):
    finished(tiny, tmp_path, with_model=True)
    demo = demo_of_run(tmp_path / "out")
    items, device = data_of(demo.page)["items"], data_of(demo.page)["devices"][0]
    pairs = [line.split(",") for line in (tiny.parent / "planted.csv").read_text().split()[1:]]
    assert demo.lacks is None
    assert sorted(items["ids"]) == sorted({item for _, item in pairs})
    assert sorted(set(items["groups"])) == list(range(6))
    assert len(set(device["seen"]) | set(device["wanted"])) == 12
    (tiny.parent / "planted.csv").unlink()
    demo = demo_of_run(tmp_path / "out")
    assert demo.lacks.startswith("recall of single devices is not available: ")
    assert data_of(demo.page)["items"] == items
    assert data_of(demo.page)["devices"][0]["wanted"] is None


@pytest.mark.parametrize("with_model", [True, False])
def test_titles_stand_in_the_page_and_in_what_export_prints(tiny, tmp_path, command_line, with_model):
    pairs = [line.split(",") for line in (tiny.parent / "planted.csv").read_text().split()[1:]]
    items = sorted({item for _, item in pairs})
    titles = "item,title\n" + "".join(f'{item},"Heat, part {item}"\n' for item in items[1:])
    (tmp_path / "titles.csv").write_text(titles)
    changes = (f"data.titles={tmp_path}/titles.csv", "blocks.item_groups=single", "selector=popularity")
    finished(tiny, tmp_path, *changes, with_model=with_model)
    shown = data_of(demo_of_run(tmp_path / "out").page)["items"]["ids"]
    assert sorted(shown) == sorted([items[0], *(f"Heat, part {item}" for item in items[1:])])
    if with_model:
        words = ["export", str(tmp_path / "out" / "model"), "--budget", "2KB", "--user-items", items[3], "--top", "3"]
        _, out, _ = command_line(*words, "--out", str(tmp_path / "me.peel"))
        assert [line.split("\t")[3] for line in out.splitlines()] == [
            f"Heat, part {line.split()[1]}" for line in out.splitlines()
        ]
        _, out, _ = command_line(*words, "--out", str(tmp_path / "me.peel"), "--json")
        assert all(one["title"] == f"Heat, part {one['id']}" for one in json.loads(out)["items"])
        side = json.loads((tmp_path / "me.items.json").read_text())
        assert side["titles"] == [None if item == items[0] else f"Heat, part {item}" for item in side["ids"]]


def test_of_a_device_the_largest_file_is_taken(tmp_path):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("device-3-int8-900", "device-3-int8-1000", "device-20-int8-50", "device-x-int8-9", "other"):
        (folder / f"{name}.peel").write_bytes(b"")
    assert {device: file.name for device, file in largest_artefacts(tmp_path).items()} == {
        3: "device-3-int8-1000.peel",
        20: "device-20-int8-50.peel",
    }


def test_the_command_writes_the_page_and_says_what_it_lacks(tiny, tmp_path):
    finished(tiny, tmp_path)
    target = tmp_path / "d" / "page.html"
    target.parent.mkdir()
    done = CliRunner().invoke(app, ["demo", str(tmp_path / "out"), "--out", str(target)])
    assert done.exit_code == 0, done.output
    assert f"page: {target}" in done.output.replace("\n", "")
    assert "note: blocks are item groups" in done.output
    assert len(data_of(target.read_text())["devices"]) == 2


def test_the_command_takes_the_folder_of_the_model_too(tiny, tmp_path):
    finished(tiny, tmp_path, with_model=True)
    done = CliRunner().invoke(app, ["demo", str(tmp_path / "out" / "model"), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "note" not in done.output
    assert len(data_of((tmp_path / "page.html").read_text())["devices"]) == 2


def test_mistakes_are_told(tiny, tmp_path):
    run = CliRunner().invoke
    assert "cannot read" in str(run(app, ["demo", str(tmp_path / "nothing")]).exception)
    assert "is a folder; give --out a file" in str(run(app, ["demo", "x", "--out", str(tmp_path)]).exception)
    finished(tiny, tmp_path, "evaluation.artifacts=0")
    with pytest.raises(ReportError, match=r"no artifacts/device-\*.peel; run again with --set evaluation.artifacts=3"):
        demo_of_run(tmp_path / "out")
    assert not (tmp_path / "demo.html").exists()
