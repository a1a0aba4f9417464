"""Comparisons and ablations on planted data: all rows and files, no budget exceeded, nothing trained twice."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fl_peel import plugins
from fl_peel.blocks.layout import share_bytes
from fl_peel.data.interactions import UserItems
from fl_peel.errors import BudgetError, LostMachineError, ReportError, ScenarioError
from fl_peel.json_codec import from_plain
from fl_peel.pretraining import central_training
from fl_peel.ranking.bootstrap import Replicates, interval
from fl_peel.store import Store
from simulations.cli.console import read_budgets
from simulations.engine.inputs import absolute
from simulations.listing import LIST
from simulations.scenario_files import RunOptions, load_scenario
from simulations.studies import ablate as ablation
from simulations.studies import compare as comparison
from simulations.studies import study as studies
from simulations.studies.ablate import ABLATE, ablate_view, ratios_view
from simulations.studies.compare import over_peel, summary, with_intervals
from simulations.studies.compare_report import peel_over_view
from simulations.studies.schema import CompareRow
from simulations.studies.study import (
    Checkpoints,
    StudyStage,
    aggregated,
    code_behind,
    decisive,
    decisive_of_tables,
    open_study,
)
from strategies.evaluation.trials import Trial
from strategies.rivals import base as rivals
from strategies.rivals.base import (
    Request,
    block_option,
    decoded_blocks,
    device_quality,
    in_json,
    quality,
    ranked_blocks,
    replicates,
)
from strategies.rivals.compressed import Pep
from strategies.rivals.groups import PerGroup
from strategies.rivals.rule import Rule, SearchSettings
from strategies.rivals.server import CachedList, Ease, FullTable
from strategies.rivals.table_rivals import FixedTiers, MagnitudePruning, SmallerDimension, TruncatedSvd
from tests.helpers.loopback import LoopbackGrid

pytestmark = pytest.mark.usefixtures("undrawn")

FULL_BYTES = 4 * 59 * 8
"""59 of the 60 planted items were ever drawn. Header and user embedding alone take 60 of these 1,888 bytes."""
BUDGETS = (0.02, 0.3, 0.6, 1.0)
TRIALS = {"truncated-svd": 2, "pep": 2}
FEW = ["refinement.rounds=1", "blocks={item_groups: single, num_slices: 2}", "fleet=large.yaml"]
RIVALS = (
    (SmallerDimension(), ("fp32", "int8", "int4")),
    (TruncatedSvd(), ("int8",)),
    (MagnitudePruning(), ("fp16", "int8", "int4")),
    (Pep(epochs=1, rates=(0.1,), retraining=(1.0,), steps=5), ("fp16",)),
    (FixedTiers(), ("int4",)),
    (Rule(search=SearchSettings(population=4, generations=1, ranked=1)), ("int8",)),
    (PerGroup("magnitude-pruning-groups", (MagnitudePruning(),)), ("int8",)),
    (CachedList(tables=(FullTable(), PerGroup("start", (FullTable(),)))), ("fp32",)),
)
CEILINGS = (Ease(ridges=(10.0, 30.0)),)


@pytest.fixture
def counts(monkeypatch):
    """Studies run on nodes in this process; how often they start nodes, train tables, and keep what is done. With
    ``leaves``, a machine leaves in the second trial.
    """
    counted = {"simulated": 0, "pretrain": 0, "write": 0}

    def simulated(scenario, place, on_event, *, server):
        counted["simulated"] += 1

        def leaving(event):
            on_event(event)
            if (event.stage, event.done) == ("trials", 2) and counted.pop("leaves", False):
                raise LostMachineError("machine 10.0.0.2 has left")

        return server(LoopbackGrid(2), scenario, place, leaving)

    def counting(name, module):
        original = getattr(module, name)

        def call(*args, **kwargs):
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    monkeypatch.setattr(studies, "simulated", simulated)
    counting("pretrain", rivals)
    counting("pretrain", central_training)
    counting("write", Checkpoints)
    return counted


@pytest.fixture
def scenario(tiny, tmp_path):
    (tmp_path / "large.yaml").write_text("profiles: [{name: large, memory: {table_share: 1.0}, availability: 0.9}]")
    return load_scenario(tiny, FEW)


def compared(scenario, out, **kwargs):
    return comparison.compare(
        scenario, BUDGETS, out=out, rivals=RIVALS, ceilings=CEILINGS, single_budgets=[0.6], **kwargs
    )


@pytest.mark.slow
def test_a_comparison_has_every_row_and_resumes_without_retraining(scenario, tmp_path, counts):
    out = tmp_path / "out"
    counts["leaves"] = True
    result = compared(scenario, out)
    check_issue_keys(result)
    methods = {(row["method"], row["precision"]) for row in result["rows"]}
    group = ("peel", "group-exposure", "group-popularity")
    for method in (*group, "global-elastic", "popular-items", "random-blocks", "magnitude-blocks"):
        assert {(method, precision) for precision in ("fp32", "int8", "int4")} <= methods
    others = {"peel-authors", "peel-authors-groups", "peel-single-budget", *(rival.name for rival, _ in RIVALS)}
    assert others <= {method for method, _ in methods}
    aware = {row["method"] for row in result["rows"] if row["group_aware"]}
    assert aware == {*group, "peel-single-budget", "peel-authors-groups", "magnitude-pruning-groups"}
    assert {row["method"] for row in result["rows"] if row["ceiling"]} == {"cached-list"}
    for row in result["rows"]:
        if row["method"] == "cached-list":  # a byte an item, no header, whatever the budget
            assert row["stored_bytes_max"] == min(row["budget_bytes"], 59)
            assert row["trials"] == 2
            continue
        served = row["stored_bytes_max"] > 0
        assert row["trials"] == (served and TRIALS.get(row["method"], 1)) or row["method"] == "rule"
        assert 0 <= row["stored_bytes_max"] <= row["budget_bytes"]
        assert (row["stored_bytes_max"] == 0) == (row["note"] not in ("",) and row["recall@20"] == 0)
        if row["share"] == 0.02:
            assert row["recall@20"] == 0  # 37 bytes hold no header
    assert {path.name for path in out.iterdir()} == {
        LIST,
        *(f"compare.{ending}" for ending in ("json", "csv", "parquet", "html", "svg")),
        "checkpoints",
    }
    assert counts["simulated"] == 2, "once more for the machine that left"
    assert counts["write"] == 7 + len(RIVALS) + 2, "trials, rivals, a ceiling, central refinement"
    (ceiling,) = result["ceilings"]
    assert (ceiling["method"], ceiling["server_bytes"], ceiling["trials"]) == ("ease", 4 * 59 * 59, 2)
    assert {"share", "precision", "stored_bytes_max"}.isdisjoint(ceiling)

    before = dict(counts)
    again = compared(scenario, out)
    assert counts == before  # nothing was started, trained or searched
    assert without_seconds(again) == without_seconds(result)


def check_issue_keys(result):
    assert {"full_table", "rows", "refinement"} <= set(result)
    assert {"recall@20", "ndcg@20", "bytes"} <= set(result["full_table"])
    assert {"none", "start", "federated", "central"} == set(result["refinement"])
    for row in result["rows"]:
        wanted = {"method", "group_aware", "precision", "share", "stored_bytes_max", "recall@20", "ndcg@20", "seconds"}
        assert wanted <= set(row)
    assert result["full_table"]["bytes"] == FULL_BYTES
    for quality_ in result["refinement"].values():
        assert 0 < quality_["recall@20"] <= 1


def without_seconds(result):
    result = json.loads(json.dumps(result))
    result.pop("stages")
    return result


@pytest.mark.slow
def test_seeds_give_means_and_spread(scenario, tmp_path, counts):
    few = {"rivals": RIVALS[1:2], "ceilings": CEILINGS, "single_budgets": ()}
    two = comparison.compare(scenario, (0.6,), out=tmp_path / "two", seeds=2, **few)
    ones = [
        comparison.compare(scenario.model_copy(update={"seed": seed}), (0.6,), out=tmp_path / "two", **few)
        for seed in (0, 1)
    ]
    assert counts["simulated"] == 2  # the single ones were kept
    for row, first, second in zip(two["rows"], ones[0]["rows"], ones[1]["rows"], strict=True):
        a, b = first["recall@20"], second["recall@20"]
        assert row["recall@20"] == pytest.approx((a + b) / 2)
        assert row["recall@20_std"] == pytest.approx(abs(a - b) / 2**0.5)
        if row["stored_bytes_max"]:
            assert row["recall@20_interval"][0] < row["recall@20"] < row["recall@20_interval"][1]
            assert ("peel_over" in row) == (row["chosen"] and row["method"] != "peel" and row["recall@20"] > 0)
        assert row["seeds"] == 2
    (ceiling,), parts = two["ceilings"], [one["ceilings"][0] for one in ones]
    assert ceiling["recall@20"] == pytest.approx(sum(part["recall@20"] for part in parts) / 2)
    assert ceiling["trials"] == 2
    assert (
        two["full_table"]["recall@20_std"] > 0 or two["full_table"]["recall@20"] == ones[0]["full_table"]["recall@20"]
    )


def test_flower_nodes_and_central_rivals_are_measured_alike(scenario, tmp_path, counts):
    """One table for everybody, not refined nor turned: its blocks by energy, ranked on nodes and here."""
    plain = load_scenario(scenario_file(scenario, tmp_path), seed=0)
    plain = plain.model_copy(update={"refinement": plain.refinement.model_copy(update={"rounds": 0})})
    one_group = plain.user_groups.model_copy(update={"count": 1, "neighbour_weight": 0.0})
    as_trained = plain.pretraining.model_copy(update={"diversity_form": "none"})
    whole_rows = plain.blocks.model_copy(update={"num_slices": 1})  # of several slices the energy ranks items alone
    parts = {"user_groups": one_group, "pretraining": as_trained, "blocks": whole_rows}
    alone = plain.model_copy(update=parts)
    shares, precisions = (0.3, 0.6), ("fp32", "int8", "int4")
    with open_study(alone, tmp_path / "out", RunOptions()) as study:
        trial = Trial("energy", alone, shares, precisions, ("energy",))
        rows = study.trials([trial])["energy"]["rows"]
        material = comparison.material_of(study)
        layout = study.prepared().layout
        pieces = material.pretrained.items.reshape(layout.num_blocks, layout.slice_dim)
        order = np.argsort(-(pieces**2).sum(axis=1), kind="stable")
        for row in rows:
            request = Request(row["precision"], row["share"], row["budget_bytes"])
            decoded = decoded_blocks(layout, row["precision"], material.pretrained.items)
            option = block_option(request, ranked_blocks(layout, row["precision"], order, decoded), material, 0.0)
            assert int(option.stored.max()) == row["stored_bytes_max"]
            for split in ("validation", "test"):
                assert quality(option, material, split) == row[split]
            assert replicates(device_quality(option, material, "test")) == row["replicates"], (
                "the same weights, or no two are a pair"
            )


def scenario_file(scenario, folder):
    path = folder / "again.yaml"
    path.write_text(scenario.to_yaml())
    return path


def test_the_precision_of_a_method_is_chosen_on_validation():
    def row(method, precision, validation, test, aware=True, ceiling=False):
        return {
            **{"ceiling": ceiling, "trials": 3},
            **{"method": method, "group_aware": aware, "precision": precision, "share": 0.01, "seconds": 1.0},
            **{"stored_bytes_max": 10, "recall@20": test, "ndcg@20": 0.1, "validation_recall@20": validation},
        }

    rows = aggregated(
        [
            [
                row("peel", "int8", 0.30, 0.20),
                row("peel", "int4", 0.29, 0.25),  # better on test, but that is not known when choosing
                row("group-popularity", "int8", 0.2, 0.16),
                row("popular-items", "int8", 0.1, 0.10, aware=False),
                row("rule", "int8", 0.2, 0.08, aware=False),
                row("coded-groups", "int8", 0.25, 0.4),
                row("other-groups", "int8", 0.24, 0.5),  # better on test, too
                row("cached-list", "fp32", 0.9, 0.9, aware=False, ceiling=True),  # no rival
            ]
        ]
    )
    assert [r["chosen"] for r in rows] == [True, False, *[True] * 6]
    full = {"recall@20": 0.4}
    events = summary(rows, full, {"none": full, "federated": {"recall@20": 0.5}, "central": None})
    assert events["budgets"] == [
        {
            **{"share": 0.01, "precision": "int8", "recall@20": 0.20, "to_full_table": 0.5},
            **{"to_group_popularity": 0.20 / 0.16, "to_best_without_groups": 0.20 / 0.08, "rival": "rule int8"},
            **{"to_best_with_groups": 0.20 / 0.4, "rival_with_groups": "coded-groups int8"},
        }
    ]
    assert events["federated_to_none"] == 1.25
    assert "federated_to_central" not in events


def test_peel_over_each_method_has_a_paired_interval():
    """By hand: 300 devices, another method that is 5% worse on each, and one of which nothing fits."""
    rng, names = np.random.default_rng(0), ("peel", "group-popularity", "rule")
    recall = rng.beta(0.6, 2.4, 300)
    figures = np.stack([recall, 0.95 * recall + 0.01 * rng.standard_normal(300), 0 * recall], axis=1)
    sums = Replicates.from_devices(np.arange(300), figures, figures, np.ones(300, np.bool_), 1000)
    rows = [
        {
            **{"method": name, "group_aware": True, "precision": "int8", "share": 0.01, "chosen": True},
            **{"recall@20": figures[:, i].mean(), "ndcg@20": figures[:, i].mean(), "replicates": in_json(sums, i)},
        }
        for i, name in enumerate(names)
    ]
    peel, other, nothing = with_intervals(rows, 300)
    drawn = sums.means()[0]
    assert peel["recall@20_interval"] == pytest.approx(interval(drawn[0], 300))
    ratio = other["peel_over"]
    assert ratio["value"] == pytest.approx(figures[:, 0].mean() / figures[:, 1].mean())
    assert (ratio["low"], ratio["high"]) == pytest.approx(interval(drawn[0] / drawn[1], 300))
    assert ratio["high"] - ratio["low"] < 0.2 * np.subtract(*interval(drawn[0], 300)[::-1]) / figures[:, 0].mean()
    assert "peel_over" not in nothing
    assert "peel_over" not in peel
    assert not any("replicates" in row for row in (peel, other, nothing))
    more = {"stored_bytes_max": 1, "seconds": 0.0, "validation_recall@20": 0.5}
    view = peel_over_view([from_plain(CompareRow, row | more, "row") for row in (peel, other, nothing)])
    assert [row[0] for row in view.rows] == ["group-popularity"]
    assert view.rows[0][1].startswith(f"{ratio['value']:.3f} [{ratio['low']:.3f}, ")
    events = summary([row | {"stored_bytes_max": 1, "validation_recall@20": 0.5} for row in rows[:2]], rows[1], {}, 300)
    assert events["budgets"][0]["to_group_popularity_interval"] == [ratio["low"], ratio["high"]]
    assert events["budgets"][0]["to_full_table_interval"] == [ratio["low"], ratio["high"]]
    elsewhere = with_intervals([rows[0], rows[1] | {"share": 0.05}], 300)
    assert "peel_over" not in elsewhere[1], "of another budget"
    unchosen = with_intervals([rows[0], rows[1] | {"chosen": False}], 300)
    assert "peel_over" not in unchosen[1]


def test_what_is_significant_alone_may_not_be_among_many():
    """Others that are worse by 2.3 standard errors each: p is .02, and with four of them .08."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(300)
    noise -= noise.mean()
    others = 0.4 + 0.02 * noise - 2.3 * 0.02 * noise.std(ddof=1) / 300**0.5
    figures = np.stack([np.full(300, 0.4), *[others] * 4], axis=1)
    sums = Replicates.from_devices(np.arange(300), figures, figures, np.ones(300, np.bool_), 1000)
    rows = [
        {
            **{"method": name, "group_aware": True, "precision": "int8", "share": 0.01, "chosen": True},
            **{"recall@20": figures[:, i].mean(), "ndcg@20": figures[:, i].mean(), "replicates": in_json(sums, i)},
        }
        for i, name in enumerate(("peel", *"abcd"))
    ]
    more = {"stored_bytes_max": 1, "seconds": 0.0, "validation_recall@20": 0.5}

    def starred(rows):
        typed_rows = [from_plain(CompareRow, row | more, "row") for row in with_intervals(rows, 300)]
        return [cells[1].endswith("*") for cells in peel_over_view(typed_rows).rows]

    assert starred(rows[:2]) == [True]
    assert starred(rows) == [False] * 4
    alone, among = (with_intervals(some, 300)[1]["p_holm"] for some in (rows[:2], rows))
    assert among == pytest.approx(4 * alone)

    # so in the leaderboard, and in an ablation, whose full tables count once for all budgets
    board = [row | {"method": row["method"].replace("peel", "peel-full")} for row in rows]
    assert over_peel(board[:2], 300)[1]["p_holm"] == pytest.approx(alone)
    assert over_peel(board, 300)[1]["p_holm"] == pytest.approx(4 * alone)
    names = [ablation.BASELINE, *"abcd"]
    figures_of = [{key: value for key, value in row.items() if key != "method"} for row in rows]
    lines = [
        {**row, "part": name, "setting": "", "share": share, "start_full": figures_of[0], "refined_full": row}
        for share in (0.01, 0.05)
        for name, row in zip(names, figures_of, strict=True)
    ]
    varied = ablation.over_scenario([{"rows": lines}], 300)
    assert "p_holm" not in varied[0]
    assert varied[1]["p_holm"] == varied[6]["refined_full_p_holm"] == pytest.approx(16 * alone)
    assert varied[1]["start_full_p_holm"] == 1.0, "nothing changed"


def test_differences_are_taken_seed_by_seed():
    def rows(peel, other):
        base = {"precision": "int8", "share": 0.01, "stored_bytes_max": 1, "seconds": 0.0, "ndcg@20": 0.0}
        return [
            base | {"method": method, "group_aware": True, "recall@20": value, "validation_recall@20": 0.5}
            for method, value in (("peel", peel), ("group-popularity", other))
        ]

    events = summary(aggregated([rows(0.3, 0.2), rows(0.5, 0.3)]), {"recall@20": 0.4}, {})
    # differences 0.1 and 0.2
    (line,) = events["budgets"]
    assert line["minus_group_popularity"] == pytest.approx(0.15)
    assert line["minus_group_popularity_std"] == pytest.approx(0.005**0.5)
    assert line["to_group_popularity"] == pytest.approx(0.4 / 0.25)


@pytest.mark.parametrize("text", ["", "one", "0%", "1.5", "101%", "1%,"])
def test_budgets_that_make_no_sense_are_refused(text):
    with pytest.raises(BudgetError, match=r"^--budgets: .* (is not a share|is not above 0)"):
        read_budgets(text)


def test_budgets_are_read_as_shares():
    assert read_budgets("1%, 0.1%,0.01") == (0.001, 0.01)
    shares = read_budgets("1KB, 1%,430B", full_table_bytes=lambda: 430_592)
    assert [share_bytes(430_592, share) for share in shares] == [430, 1000, 4305], "to the byte"
    with pytest.raises(BudgetError, match="'1KB' is not a share"):
        read_budgets("1KB")
    with pytest.raises(BudgetError, match=r"^--budgets: 2KB is not above 0 and at most 100%"):
        read_budgets("2KB", full_table_bytes=lambda: 1_999)


def test_a_stage_is_done_anew_when_anything_it_depends_on_changes(tmp_path, monkeypatch):
    done = []

    def stage(data, content):
        splits = SimpleNamespace(train=SimpleNamespace(num_interactions=0))
        study = studies.Study(None, None, splits, data, Checkpoints(Store(tmp_path)))
        return study.stages([StudyStage("one", content, lambda study: done.append(1) or len(done), here=True)])[0]

    assert [stage("a", 1), stage("a", 1), stage("a", 2), stage("b", 1), stage("a", 1)] == [1, 1, 2, 3, 1]
    for entry in Store(tmp_path).entries():
        (entry.folder / "entry").write_bytes(b"damaged")
    assert stage("a", 1) == 4
    monkeypatch.setattr("os.fsync", lambda file: os.stat("no such file"))
    with pytest.raises(ReportError, match=r"cannot write \(.*No such file.*\); the same command goes on later"):
        stage("a", 3)


def test_the_code_of_plug_ins_decides_too(tmp_path, monkeypatch):
    """A package's, a module's, and never twice the same of what was typed into an interpreter."""
    (tmp_path / "shop").mkdir()
    for file in ("shop/__init__.py", "shop/rival.py", "single.py"):
        (tmp_path / file).write_text("thing = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = EntryPoints(
        [EntryPoint("tidal", "shop:thing", "fl_peel.budgets"), EntryPoint("gone", "nowhere:thing", "fl_peel.selectors")]
    )
    monkeypatch.setattr(plugins, "entry_points", lambda **wanted: points.select(**wanted) if wanted else points)

    def digest(*modules):
        code_behind.cache_clear()
        return code_behind(modules)

    before = digest("single")
    assert digest("single") == before
    (tmp_path / "shop" / "rival.py").write_text("thing = 2")
    after = digest("single")
    assert after != before
    (tmp_path / "single.py").write_text("thing = 2")
    assert digest("single") != after
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert digest("__main__") != digest("__main__")
    assert code_behind(("__main__",)) == code_behind(("__main__",)), "within one process it is"
    code_behind.cache_clear()


def test_rivals_that_know_no_device_are_not_measured_anew_when_refinement_changes(tiny):
    base = load_scenario(tiny, FEW)
    for change in ("refinement.rounds=9", "user_groups.count=3", "fleet=wearables", "controller.steps=7"):
        other = load_scenario(tiny, [*FEW, change])
        assert decisive_of_tables(other) == decisive_of_tables(base), change
        assert decisive(other) != decisive(base), change
    for change in ("pretraining.epochs=9", "data.validation_share=0.2", "engine.device=torch-cpu", "seed=3"):
        assert decisive_of_tables(load_scenario(tiny, [*FEW, change])) != decisive_of_tables(base), change


def test_whatever_a_fleet_file_says_decides_too(tiny, tmp_path):
    """The file, one class of it, and the files that it names."""
    (tmp_path / "trace.csv").write_text("memory_bytes\n400\n")
    (tmp_path / "traced.yaml").write_text("profiles: [{name: a, memory: {budget: {trace: trace.csv}}}]")
    for fleet, file in (("fleet.yaml", "fleet.yaml"), ("fleet.yaml:large", "fleet.yaml"), ("traced.yaml", "trace.csv")):
        scenario = absolute(load_scenario(tiny, [f"fleet={fleet}"]))
        before = decisive(scenario)
        assert decisive(scenario) == before
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
        assert decisive(scenario) != before, fleet


@pytest.mark.slow
def test_an_ablation_measures_every_part_and_runs_equals_once(tiny, tmp_path, counts):
    (tmp_path / "large.yaml").write_text("profiles: [{name: large, memory: {table_share: 1.0}}]")
    scenario = load_scenario(tiny, FEW)
    out = tmp_path / "out"
    seen = []
    result = ablation.ablate(scenario, (0.3, 0.6), out=out, on_event=seen.append)
    parts = {row["part"] for row in result["rows"]}
    wanted = {"diversity", "controller", "grouping", "refinement", "slices", "item groups", "user groups", "collected"}
    wanted |= {"neighbours", "refinement and neighbours"}
    assert parts == wanted | {ablation.BASELINE}
    by_name = {(row["part"], row["setting"]): row for row in result["rows"] if row["share"] == 0.6}
    base = by_name[ablation.BASELINE, ""]
    for same in (
        ("controller", "on"),
        ("item groups", "single"),
        ("collected", "100%"),
        ("diversity", "principal axes"),
    ):
        assert by_name[same]["recall@20"] == base["recall@20"]
    assert by_name["grouping", "off"]["recall@20"] == by_name["user groups", "1"]["recall@20"]
    assert by_name["controller", "on"]["to_scenario"] == {"value": 1, "low": 1, "high": 1}, "paired: the same devices"
    tight = {row["setting"]: row for row in result["rows"] if row["share"] == 0.3}
    random, scenario_row = tight["off, random"], tight[""]
    ratio = random["to_scenario"]
    assert ratio["value"] == pytest.approx(random["recall@20"] / scenario_row["recall@20"])
    assert ratio["low"] < ratio["value"] < ratio["high"]
    started = by_name["refinement", "off"]["refined_full_to_scenario"]
    assert started["value"] == pytest.approx(base["start_full_recall@20"] / base["refined_full_recall@20"])
    assert base["recall@20_interval"][0] < base["recall@20"] < base["recall@20_interval"][1]
    assert base["start_full_recall@20_interval"][0] < base["start_full_recall@20"]
    assert not any("to_scenario" in row for row in result["rows"] if row["part"] == ablation.BASELINE)
    assert "replicates" not in (out / "ablate.json").read_text()
    assert by_name["user groups", "4"]["smallest_group"] >= scenario.user_groups.min_size
    assert by_name["slices", "4"]["blocks"] == 4 * 59
    assert all(row["stored_bytes_max"] <= row["budget_bytes"] for row in result["rows"])
    ran = [event.text for event in seen if event.stage == "trials"]
    assert len(ran) == len(set(ran))
    assert "grouping: off" in ran
    assert "user groups: 1" not in ran
    assert {path.name for path in out.iterdir()} == {
        LIST,
        *(f"ablate.{ending}" for ending in ("json", "csv", "parquet", "html", "svg")),
        "checkpoints",
    }
    view = ablate_view(ABLATE.read(result, "it"))
    assert len(view.rows) == len(by_name)
    ratios = {row[:2]: row[2:] for row in ratios_view(ABLATE.read(result, "it")).rows}
    assert len(ratios) == len(by_name) - 1
    assert ratios["controller", "on"][1] == "1.000 [1.000, 1.000]"
    assert view.rows[0][-1] == f"{base['refined_full_recall@20']:.4f}"
    ablation.ablate(scenario, (0.3, 0.6), out=out)
    assert counts["simulated"] == 1

    with pytest.raises(ScenarioError, match=r"^--parts: 'nothing' is not a part of the method; choose from diversity"):
        ablation.ablate(scenario, (0.6,), out=out, parts=["nothing"])


def test_budgets_below_one_block_serve_nothing(scenario, tmp_path, counts):
    with open_study(scenario, tmp_path / "out", RunOptions()) as study:
        # header 44, 4 columns of the user 8, block of 4 columns in int8: 2 + 4 + 2 -> 60 bytes are 3.178% of 1,888
        rows = study.trials([Trial("t", scenario, (0.0317, 0.0318), ("int8",), ("popularity",))])["t"]["rows"]
    assert [row["budget_bytes"] for row in rows] == [59, 60]
    assert [row["stored_bytes_max"] for row in rows] == [0, 60]
    assert [row["note"] for row in rows] == ["nothing fits in this budget", ""]
    assert rows[0]["test"]["recall@20"] == 0 < rows[1]["test"]["recall@20"]


def test_a_fleet_with_one_budget_has_it(scenario, tmp_path):
    from clients.fleet.fleet import load_fleet

    with open_study(scenario, tmp_path / "out", RunOptions()) as study:
        fleet = load_fleet(comparison.single_budget_fleet(study, 0.6))
        budgets = fleet.budget_bytes(0, np.arange(50), 3.0, full_table_bytes=1920)
        assert budgets.tolist() == [1152] * 50
        there = fleet.available(0, np.arange(4000), 1.0).mean()
        assert there == pytest.approx(0.9, abs=0.12)  # as of 40 devices in one round


def test_the_data_decides_too():
    from fl_peel.data.interactions import Splits
    from simulations.resumable import data_digest

    items = UserItems(np.array([0, 2]), np.array([1, 2], np.int32))
    other = UserItems(np.array([0, 2]), np.array([1, 3], np.int32))
    assert data_digest(Splits(items, items, items, 9)) != data_digest(Splits(items, other, items, 9))
    assert data_digest(Splits(items, items, items, 9)) != data_digest(Splits(items, items, items, 10))


@pytest.mark.engine
def test_the_command_line_compares_on_ray_beside_packages_with_the_names_of_ours(own_folders, tiny, tmp_path):
    """Neither it nor Ray's workers look in the working directory; test_engines.py has those of one machine."""
    out = tmp_path / "out"
    words = ["compare", str(tiny), "--budgets", "60%", "--rivals", "cached-list", "--out", str(out)]
    for change in ("refinement.rounds=1", "blocks={item_groups: single, num_slices: 2}", "engine.backend=ray"):
        words += ["--set", change]
    command = [Path(sys.executable).with_name("fl-peel"), *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=own_folders)
    assert ran.returncode == 0, ran.stderr
    assert "Recall@20 by budget" in ran.stdout
    result = json.loads((out / "compare.json").read_text())
    check_issue_keys(result)
    assert result["command"].startswith("fl-peel compare ")
    assert all(row["stored_bytes_max"] <= row["budget_bytes"] for row in result["rows"])


def test_some_rivals_are_asked_for_by_name():
    chosen, ceilings = comparison.some(["cached-list", "pep", "item-neighbours"]).values()
    assert [rival.name for rival, _ in chosen] == ["pep", "cached-list"]
    assert [one.name for one in ceilings] == ["item-neighbours"]
    with pytest.raises(ScenarioError, match=r"^--rivals: unknown nobody; choose from smaller-dimension, .*ease"):
        comparison.some(["pep", "nobody"])
