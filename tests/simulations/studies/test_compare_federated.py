"""Comparisons where nothing is collected: all rows and files, kept stages, nothing that rivals know nothing of."""

import json

import numpy as np
import pytest

from fl_peel.errors import ScenarioError
from simulations.listing import LIST
from simulations.scenario_files import RunOptions, load_scenario
from simulations.studies import compare as comparison
from simulations.studies import study as studies
from simulations.studies.compare_report import COMPARE, leaderboard_view
from strategies.rivals.bpr import BprSetting, FedAvgBpr
from strategies.rivals.fcf import Fcf, FcfSetting
from strategies.rivals.federated import Effort, Popularity
from strategies.rivals.groups import PerGroup
from strategies.rivals.hetefedrec import HeteFedRec, HeteSetting
from strategies.rivals.pfedrec import PFedRec, PFedRecSetting
from strategies.rivals.table_rivals import UniformWidth

NOTHING = [
    "pretraining={model: spectral, source: devices, columns: 8, passes: 2, embedding_dim: 8, collected: {share: 0}}",
    "blocks={item_groups: single, num_slices: 2}",
    "refinement.rounds=1",
]
BUDGETS = (0.1, 0.6, 0.9)
METHODS = (
    Popularity(),
    FedAvgBpr(grid=(BprSetting(0.1, 0.01, 0.2), BprSetting(0.05, 0.01, 0.2))),
    Fcf(grid=(FcfSetting(1.0, 1.0, 0.02),)),
    PFedRec(grid=(PFedRecSetting(1.0, 10.0, 0.0, 0.1),)),
    HeteFedRec(grid=(HeteSetting(BprSetting(0.1, 0.01, 0.2), 1.0, 1.0),)),
)
EFFORT = Effort(rounds=10, every=5)
RIVALS = (
    (PerGroup("uniform-width-groups", UniformWidth().settings()), ("int8",)),
    (comparison.GROUP_LIST, ("fp32",)),
)


def compared(tiny, out, *, changes=(), methods=METHODS, rivals=(), **kwargs):
    scenario = load_scenario(tiny, [*NOTHING, *changes])
    return comparison.compare_federated(
        scenario, BUDGETS, out=out, methods=methods, rivals=rivals, effort=EFFORT, **kwargs
    )


@pytest.mark.slow
def test_a_leaderboard_has_every_row_and_resumes_without_retraining(tiny, tmp_path, started, monkeypatch):
    out = tmp_path / "out"
    result = compared(tiny, out)
    rows = result["rows"]
    assert {row["method"] for row in rows} == {"peel", "peel-stage-1", "peel-full", *(m.name for m in METHODS)}
    by_place = {(row["method"], row["share"], row["precision"]): row for row in rows}
    assert len(by_place) == len(rows) == 3 * 3 + 2 + 1 + 4 * 2 + 3 * 3
    for row in rows:
        if row["share"] < 1:
            assert row["stored_bytes_max"] <= row["budget_bytes"]
            assert (row["stored_bytes_max"] == 0) == (row["recall@20"] == 0)
        assert row["bytes_down_mean"] >= row["stored_bytes_mean"]
        assert row["bytes_up_mean"] > 0
    full = by_place["peel-full", 1.0, "fp32"]
    assert full["recall@20"] == result["full_table"]["recall@20"]
    assert full["bytes_up_mean"] > by_place["peel-stage-1", 1.0, "fp32"]["bytes_up_mean"]
    assert by_place["peel", 0.9, "int8"]["bytes_up_mean"] == full["bytes_up_mean"]
    assert full["trials"] == 15
    assert "to_peel" not in full
    stage1, popular = by_place["peel-stage-1", 1.0, "fp32"], by_place["popularity", 1.0, "fp32"]
    for row in (stage1, popular, by_place["hetefedrec", 0.9, "fp32"], by_place["peel", 0.9, "int8"]):
        assert row["to_peel"]["value"] == pytest.approx(row["recall@20"] / full["recall@20"])
        assert row["to_peel"]["low"] <= row["to_peel"]["value"] <= row["to_peel"]["high"]
        assert row["recall@20_interval"][0] < row["recall@20"] < row["recall@20_interval"][1]
    assert popular["to_peel"]["low"] < popular["to_peel"]["high"]
    assert "replicates" not in (out / "compare.json").read_text()
    fedavg = by_place["fedavg-bprmf", 1.0, "fp32"]
    assert (fedavg["trials"], fedavg["rounds"]) == (2, fedavg["rounds"])
    assert fedavg["bytes_down_mean"] > full["bytes_down_mean"]
    assert len(result["tuning"]["0"]["fedavg-bprmf"]["tried"]) == 2
    assert by_place["hetefedrec", 0.9, "fp32"]["note"].endswith("columns")
    assert {path.name for path in out.iterdir()} == {
        LIST,
        *(f"compare.{ending}" for ending in ("json", "csv", "parquet", "html", "svg")),
        "checkpoints",
    }
    assert json.loads((out / "compare.json").read_text())["rows"][0]["method"] == "peel"
    assert "hetefedrec" in (out / "compare.html").read_text()

    def dying(*args, **kwargs):
        raise AssertionError("trained anew")

    monkeypatch.setattr(comparison, "tuned", dying)
    again = compared(tiny, out)
    assert len(started) == 1
    assert again["rows"] == rows

    view = leaderboard_view(COMPARE.read(result, "it").rows)
    shown = [row for row in rows if row["chosen"] and row["stored_bytes_max"]]
    assert len(view.rows) == len(shown)
    best = max(shown, key=lambda row: row["validation_recall@20"])
    ((line, column),) = view.best
    assert (view.rows[line][0], view.rows[line][column]) == (best["method"], f"{best['validation_recall@20']:.4f}")
    for method, share in {(row["method"], row["share"]) for row in rows}:
        same = [row for row in rows if (row["method"], row["share"]) == (method, share)]
        (chosen,) = (row for row in same if row["chosen"])
        assert chosen["validation_recall@20"] == max(row["validation_recall@20"] for row in same)


@pytest.mark.slow
def test_rivals_start_from_the_tables_of_peels_groups(tiny, tmp_path, started):
    """Whole tables of the groups' start give the lists of PEEL before its rounds; ``data.refit`` is left out."""
    result = compared(tiny, tmp_path / "out", methods=METHODS[:1], rivals=RIVALS, changes=["data.refit=true"])
    assert not any(scenario.data.refit for scenario in started)
    assert len(started) == 2
    by_place = {(row["method"], row["share"]): row for row in result["rows"] if row["chosen"]}
    start = by_place["peel-stage-1", 1.0]
    for share in BUDGETS:
        cached, uniform = by_place["cached-list", share], by_place["uniform-width-groups", share]
        assert (cached["ceiling"], uniform["ceiling"], uniform["group_aware"]) == (True, False, True)
        assert cached["stored_bytes_max"] <= cached["budget_bytes"]
        assert 44 < uniform["stored_bytes_max"] <= uniform["budget_bytes"]
        assert uniform["peel_over"]["value"] == pytest.approx(
            by_place["peel", share]["recall@20"] / uniform["recall@20"]
        )
        assert uniform["bytes_up_mean"] == start["bytes_up_mean"]
        assert (
            uniform["bytes_down_mean"]
            == start["bytes_down_mean"] - start["stored_bytes_mean"] + uniform["stored_bytes_mean"]
        )
    for key in ("recall@20", "ndcg@20", "validation_recall@20"):
        assert by_place["cached-list", 0.9][key] == pytest.approx(start[key], abs=1e-6)
    again = compared(tiny, tmp_path / "out", methods=METHODS[:1], rivals=RIVALS, changes=["data.refit=true"])
    assert len(started) == 2
    assert again["rows"] == result["rows"]


def test_some_methods_are_asked_for_by_name():
    chosen = comparison.some_federated(["fcf", "uniform-width-groups", "cached-list"])
    assert [method.name for method in chosen["methods"]] == ["fcf"]
    assert [rival.name for rival, _ in chosen["rivals"]] == ["uniform-width-groups", "cached-list"]
    with pytest.raises(ScenarioError, match=r"^--rivals: unknown pep; choose from popularity, .*cached-list"):
        comparison.some_federated(["fcf", "pep"])


def test_rivals_meet_the_scenarios_devices(tiny, tmp_path, started):
    """The same devices, there in the same rounds, with the fleet's memory."""
    from clients.fleet.fleet import load_fleet

    scenario = load_scenario(tiny, [*NOTHING, "refinement.cohort_share=0.5"])
    with studies.open_study(scenario, tmp_path / "out", RunOptions()) as study:
        world = comparison.federated_context(study)
        assert world.present(3).size == 20
        assert not np.array_equal(world.present(3), world.present(4))
        fleet = load_fleet(scenario.fleet)
        classes = fleet.classes(scenario.seed, np.arange(40))
        small, large = (world.memory[classes == fleet.names.index(name)] for name in ("small", "large"))
        assert small.max() < large.min()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("pretraining.collected.share=0.5", "pretraining.collected.share"),
        ("secure_aggregation.enabled=true", "secure_aggregation.enabled"),
        ("poisoning={share: 0.1}", "poisoning.share"),
    ],
)
def test_what_rivals_know_nothing_of_is_refused_at_the_start(tiny, tmp_path, started, change, key):
    with pytest.raises(ScenarioError, match=rf"^{key}: .*set it to "):
        compared(tiny, tmp_path / "out", changes=[change])
    assert not started
    assert not (tmp_path / "out").exists()


def test_the_other_comparison_says_where_to_go(tiny, tmp_path, started):
    with pytest.raises(ScenarioError, match=r"collect nothing \(pretraining.collected.share: 0"):
        comparison.compare(load_scenario(tiny, NOTHING), BUDGETS, out=tmp_path / "out")


@pytest.mark.slow
def test_the_command_line_prints_it(tiny, tmp_path, started, monkeypatch):
    from typer.testing import CliRunner

    from simulations.cli.main import app

    original = comparison.compare_federated
    monkeypatch.setattr(
        comparison,
        "compare_federated",
        lambda *args, **kw: original(*args, **kw, methods=METHODS[:2], rivals=(), effort=EFFORT),
    )
    command = ["compare", str(tiny), "--budgets", "60%", "--out", str(tmp_path / "out")]
    for change in NOTHING:
        command += ["--set", change]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert "Leaderboard" in ran.output
    assert "fedavg-bprmf" in ran.output
    events = json.loads((tmp_path / "out" / "compare.json").read_text())["command"]
    assert events.startswith("fl-peel compare ")
