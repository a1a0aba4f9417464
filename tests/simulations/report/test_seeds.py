"""Several seeds of one scenario, files of single devices, and the commands for both, on nodes without an engine."""

import json

import numpy as np
import pyarrow.parquet
import pytest

from fl_peel import wire
from fl_peel.ranking.bootstrap import interval
from simulations.listing import LIST
from simulations.report.run_files import read_report
from strategies.figures.per_device import PerDevice
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.simulations.conftest import QUICK

pytestmark = pytest.mark.usefixtures("undrawn")


def quick(*words):
    return [*words, *(word for change in QUICK for word in ("--set", change))]


def test_single_devices_are_those_of_the_report_and_only_where_asked_for(tiny, tmp_path, command_line, grids):
    code, _, err = command_line(*quick("run", tiny, "--per-device", "--out", tmp_path / "a"))
    assert code == 0, err
    report, result = read_report(tmp_path / "a"), PerDevice.read(tmp_path / "a" / "per-device.parquet")
    assert report.command.endswith("--per-device")
    assert result.devices.tolist() == list(range(40))
    budgets = [f"{row.share * 100:.4g}% {row.precision} {row.selector}" for row in report.budgets]
    assert result.tables == ("global", "start", "refined", *budgets, "own budget")
    recall, ndcg = result.means()
    full = report.full_table
    expected = [full.globally, full.start, full.refined, *report.budgets]
    assert recall[:-1] == pytest.approx([one.recall.value for one in expected], abs=1e-8)
    assert ndcg[:-1] == pytest.approx([one.ndcg.value for one in expected], abs=1e-8)
    by_class = {name: row.devices for name, row in report.device_classes.items()}
    assert {name: result.classes.count(name) for name in by_class} == by_class
    assert np.bincount(result.groups).tolist() == [row.devices for row in report.user_groups]
    low, high = interval(result.replicates(("refined",), 1000)[0, 0], 40)
    assert (low, high) == pytest.approx(full.refined.recall.ends, abs=1e-8)
    table = pyarrow.parquet.read_table(tmp_path / "a" / "per-device.parquet")
    assert table.column_names[:6] == ["device", "class", "group", "test_items", "recall@20 global", "ndcg@20 global"]

    code, shown, err = command_line(*quick("run", tiny, "--json", "--out", tmp_path / "a"))
    assert (code, json.loads(shown)) == (0, json.loads((tmp_path / "a" / "report.json").read_text()))
    assert err.splitlines()[-1] == f"report: {tmp_path / 'a' / 'report.html'}"
    assert not (tmp_path / "a" / "per-device.parquet").exists(), "that of the run before"
    events = []
    for grid in grids:
        replies = [content for kind, content in grid.crossed if kind == f"reply to {wire.EVALUATE}"]
        events.append(sum(len(wire.unpack(wire.EvaluateReply, reply).single.devices) for reply in replies))
    assert events[0] > 0
    assert events[1] == 0


def test_files_of_single_devices_do_not_depend_on_nodes(tiny_scenario, tmp_path):
    evaluation = tiny_scenario.evaluation.model_copy(update={"per_device": True})
    scenario = tiny_scenario.model_copy(update={"evaluation": evaluation})
    files = []
    for nodes in (1, 3):
        serve(LoopbackGrid(nodes), scenario, RunPaths("", str(tmp_path / str(nodes))))
        files.append((tmp_path / str(nodes) / "per-device.parquet").read_bytes())
    assert files[0] == files[1]


@pytest.mark.slow
def test_seeds_are_runs_of_their_own_and_one_page_of_all(tiny, tmp_path, command_line):
    out = tmp_path / "out"
    code, shown, err = command_line(*quick("run", tiny, "--seeds", 2, "--seed", 3, "--out", out))
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == [
        *(LIST, "seed-3", "seed-4", "seeds.csv", "seeds.html", "seeds.json", "seeds.parquet"),
    ]
    reports = [read_report(out / f"seed-{seed}") for seed in (3, 4)]
    assert [report.seed for report in reports] == [3, 4]
    alone = tmp_path / "alone"
    command_line(*quick("run", tiny, "--per-device", "--seed", 4, "--out", alone))
    assert read_report(alone).budgets == reports[1].budgets, "as if it had been run by itself"
    result = json.loads((out / "seeds.json").read_text())
    assert result["seeds"] == [3, 4]
    assert result["command"].endswith("--seeds 2")
    row = next(row for row in result["rows"] if row["table"] == "refined")
    recalls = [report.full_table.refined.recall.value for report in reports]
    assert row["recall"]["by_seed"] == pytest.approx(recalls, abs=1e-8)
    assert row["recall"]["value"] == pytest.approx(np.mean(recalls), abs=1e-8)
    assert row["recall"]["seeds_std"] == pytest.approx(np.std(recalls, ddof=1), abs=1e-8)
    assert row["recall"]["low"] < row["recall"]["value"] < row["recall"]["high"]
    code, shown_again, err = command_line(
        *quick("run", tiny, "--seeds", 2, "--seed", 3, "--json", "--out", tmp_path / "o")
    )
    assert (code, json.loads(shown_again)["rows"]) == (0, result["rows"])
    assert "report: " in err
    full = [report.full_table for report in reports]
    means = {name: np.mean([getattr(one, name).recall.value for one in full]) for name in ("start", "refined")}
    assert result["strongest"] in ("global", *means)
    ratio = row["to_global"]
    base = np.mean([report.full_table.globally.recall.value for report in reports])
    assert ratio["value"] == pytest.approx(means["refined"] / base, abs=1e-7)
    same = next(row for row in result["rows"] if row["table"] == "global")["to_global"]
    assert (same["value"], same["low"], same["high"], same["seeds_std"]) == (1.0, 1.0, 1.0, 0.0)
    assert "1% int8" not in shown
    assert "100% int8 popularity" in shown
    assert (out / "seeds.html").read_text().count("<script") == 1  # its own


@pytest.mark.slow
def test_diff_on_the_command_line(tiny, tmp_path, command_line):
    for name, more in (("a", []), ("b", ["--set", "blocks.precision=int4"]), ("c", ["--set", "data.test_share=0.3"])):
        assert command_line(*quick("run", tiny, "--per-device", "--out", tmp_path / name), *more)[0] == 0
    code, shown, err = command_line(
        *("diff", tmp_path / "a", tmp_path / "b", "--json-file", tmp_path / "d.json", "--html", tmp_path / "d.html")
    )
    assert (code, err) == (0, "")
    assert "blocks.precision" in shown
    assert "Not compared, since not in all runs" in shown
    plain = json.loads((tmp_path / "d.json").read_text())
    assert {row["table"] for row in plain["rows"]} == {"global", "start", "refined", "own budget", "50%", "100%"}
    assert "b − a" in shown, "columns have the names of the runs"
    (same,) = next(row for row in plain["rows"] if row["table"] == "global")["others"]
    assert (same["difference"]["low"], same["difference"]["high"], same["p"]) == (0.0, 0.0, 1.0)
    assert "<svg" in (tmp_path / "d.html").read_text()
    code, shown, err = command_line("diff", tmp_path / "a", tmp_path / "b", "--json")
    assert (code, json.loads(shown)) == (0, plain)
    assert "Not compared, since not in all runs" in err
    code, _, err = command_line("diff", tmp_path / "a", tmp_path / "c")
    assert code == 2
    assert err.count("\n") == 1
    assert "its devices or test items differ" in err
    code, _, err = command_line("diff", tmp_path / "a", tmp_path / "b", "--json-file", tmp_path)
    assert (code, err) == (2, f"fl-peel: error: {tmp_path}: is a folder; give --json-file a file\n")


@pytest.mark.parametrize(("option", "value"), [("--per-device", None), ("--seeds", 2)])
def test_without_a_folder_there_is_nowhere_to_write(tiny, command_line, option, value):
    words = [option] if value is None else [option, value]
    code, _, err = command_line("run", tiny, *words)
    assert code == 2
    assert err.endswith("needs an output folder; give --out\n")
