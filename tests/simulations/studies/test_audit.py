"""The audit: views are what devices really send, rows run under their own scenario, files hold what was measured."""

import dataclasses
import json
from contextlib import chdir
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.attacks import attack_names, load_attack
from fl_peel.errors import LostMachineError, ScenarioError
from fl_peel.exchange.counters import ClassCounts, RoundCounts
from fl_peel.figures import Estimate
from fl_peel.scenario.scenario import Scenario
from simulations.report.result_files import write_results
from simulations.scenario_files import load_scenario
from simulations.studies import audit as module
from simulations.studies.audit import (
    AUDIT,
    AuditRow,
    AuditSettings,
    _require_replay,
    added_rows,
    attacked,
    attacks_on,
    audit,
    audit_verdicts,
    audit_view,
    audited,
    chosen_rows,
    compared,
    control,
)
from simulations.studies.observer import Observer, TapGrid, figures_of
from simulations.studies.schema import AttackFigures, AuditedRow, AuditResult
from strategies.evaluation.trials import Trial, run_trial
from strategies.nodes import Nodes
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.runs import hosted_by
from tests.helpers.without_ray import simulated
from tests.strategies.rounds.test_clear_steps import AT_HOME, SPECTRAL, changed

SETTINGS = AuditSettings(devices=40, rounds=2, share=0.5, attacks=("touched-rows", "reported-class"))


def observed(scenario: Scenario, run_dir, *, num_nodes: int = 2, count: int = 40, sums_only: bool = False):
    """A real run with an observer beside it, and all that crossed the network in it."""
    grid = LoopbackGrid(num_nodes)
    paths = RunPaths("", str(run_dir))
    observer = Observer(scenario, "", str(run_dir), num_nodes, count, 99, sums_only)
    tap = TapGrid(grid, observer)
    nodes = Nodes(tap, tuple(grid.get_node_ids()), 60.0)
    trial = Trial("row", scenario, (0.5,), ("int8",), ("controller",))
    result = run_trial(Run(scenario, paths, nodes), trial)
    return observer, grid, result


def replies_of_round(grid: LoopbackGrid, server_round: int) -> list[wire.RoundReply]:
    """What the real nodes answered; a request comes right before its reply."""
    result = []
    for i, (kind, content) in enumerate(grid.crossed):
        if kind == wire.ROUND:
            request = wire.unpack(wire.RoundRequest, content)
            if request.server_round == server_round:
                result.append(wire.unpack(wire.RoundReply, grid.crossed[i + 1][1]))
    return result


def test_views_of_all_devices_add_up_to_what_the_nodes_sent(tiny_scenario, tmp_path):
    """Updates and counts of single devices, summed: the same integers as the real nodes' sums, in every round."""
    observer, grid, _ = observed(tiny_scenario, tmp_path / "run", num_nodes=3)
    watched = observer.watched()
    assert watched.devices.tolist() == list(range(40))
    for server_round in (1, 2):
        for group in range(watched.num_groups):
            mine = [observer.views[d][server_round - 1] for d in watched.devices[watched.groups == group].tolist()]
            ours = sum(np.rint(view.update * 2**24).astype(np.int64) for view in mine)
            theirs = np.zeros_like(ours)
            counts = np.zeros(len(ours), np.int64)
            for reply in replies_of_round(grid, server_round):
                if group in reply.groups:
                    content = reply.groups[group]
                    theirs[content["rows"]] += content["sums"]
                    theirs[content["wide_rows"]] += content["wide_sums"]
                    counts[content["rows"]] += content["row_examples"]
            assert np.array_equal(ours, theirs)
            assert theirs.any()
            assert sum(view.per_row("row_examples") for view in mine).tolist() == counts.tolist()


STAGE1 = ["stage1-rows", "stage1-vector", "stage1-group"]


def nothing_collected(tiny_scenario, tmp_path, **parts) -> Scenario:
    (tmp_path / "home.yaml").write_text(AT_HOME)
    spectral = SPECTRAL | {"count_exponent": None, "value_exponent": None, "passes": 3}
    base = changed(tiny_scenario, pretraining=spectral, fleet=str(tmp_path / "home.yaml"), refinement={"rounds": 0})
    return changed(changed(base, privacy={"min_owners": 1}), **parts)  # every sum is opened


def test_views_of_stage_1_add_up_to_what_the_nodes_sent(tiny_scenario, tmp_path):
    """Each watched device says its part of every step; without any round there are devices to watch, too."""
    scenario = nothing_collected(tiny_scenario, tmp_path)
    observer, grid, _ = observed(scenario, tmp_path / "run", num_nodes=3)
    observer.finish()
    views = [observer.view(device) for device in range(40)]
    steps = [step.step for step in views[0].steps]
    assert steps == ["counts", "pass", "pass", "pass", "choice", "vectors", "groups", "moments", "groups"]
    replies = {}
    for i, (kind, content) in enumerate(grid.crossed):
        if kind == wire.STEP:
            step = wire.unpack(wire.StepRequest, content).step.name
            replies.setdefault(step, []).append(wire.unpack(wire.StepReply, grid.crossed[i + 1][1]).sums)
    items = sum(view.steps[0].reply["items"] for view in views)
    assert items.tolist() == sum(one["items"] for one in replies["counts"]).tolist()
    moments = [one.reply for view in views for one in view.of_step("moments")]
    for name in ("sizes", "first"):
        assert sum(one[name] for one in moments).tolist() == sum(one[name] for one in replies["moments"]).tolist()
    for view in views:
        mine = observer.watched().splits.train.row(view.device)
        assert np.flatnonzero(view.steps[1].reply["norms"]).tolist() == sorted(mine.tolist())
    result = attacked(observer, [*STAGE1, "stage1-choice"], 0)
    assert result["stage1-rows"]["advantage"] == result["stage1-group"]["advantage"] == 1
    assert result["stage1-vector"]["advantage"] > 0.5
    assert result["stage1-choice"]["auc"] > 0.6


@pytest.mark.slow
def test_under_masks_stage_1_is_one_sum_of_all_that_stayed(tiny_scenario, tmp_path):
    secure = {"enabled": True, "min_devices": 3, "dropout_share": 0.1, "neighbours": 16}
    scenario = nothing_collected(tiny_scenario, tmp_path, secure_aggregation=secure)
    observer, _, _ = observed(scenario, tmp_path / "run", sums_only=True)
    observer.finish()
    first, second = (observer.view(device).steps for device in (0, 1))
    assert 30 < first[0].num_devices < 40
    both = [(one, two) for one, two in zip(first, second, strict=True) if one.reply and two.reply]
    assert len(both) > 5
    assert all(one.reply is two.reply for one, two in both)
    assert first[0].reply["items"].max() > 1
    result = attacked(observer, STAGE1, 0)
    assert max(abs(result[name]["advantage"]) for name in STAGE1) < 0.2  # who dropped out has nothing in the sum
    parts = {part[0].request.step.name: part[0].devices for part in observer.stage1._parts()}
    found = observer.stage1.absences()
    assert found.devices == len(np.setxor1d(parts["counts"], parts["moments"])) > 0
    assert found.f1 > found.popularity_f1, "of few absent devices the difference of counts tells much"
    assert observer.watched().accomplices.any()


def test_unmasked_words_of_a_device_are_its_own(tiny_scenario, tmp_path):
    secure = {"enabled": True, "masked": False, "min_devices": 3}
    scenario = nothing_collected(tiny_scenario, tmp_path, secure_aggregation=secure)
    observer, _, _ = observed(scenario, tmp_path / "run")
    observer.finish()
    result = attacked(observer, STAGE1, 0)
    assert result["stage1-rows"]["advantage"] > 0.95
    assert result["stage1-group"]["advantage"] == 1


def test_attacks_are_on_the_stages_that_a_scenario_has(tiny_scenario, tmp_path):
    scenario = nothing_collected(tiny_scenario, tmp_path)
    assert {load_attack(name).stage for name in attacks_on(scenario)} == {"stage 1"}
    assert {load_attack(name).stage for name in attacks_on(tiny_scenario)} == {"refinement"}
    assert attacks_on(changed(scenario, refinement={"rounds": 1})) == attack_names()
    chosen_rows(scenario, clip_norm=1.0, only=["none", "secure aggregation"])
    own = changed(scenario, secure_aggregation={"enabled": True, "min_devices": 3})
    rows = chosen_rows(own, clip_norm=1.0, only=["none", own.name])
    assert [row.scenario.secure_aggregation.enabled for row in rows] == [False, True]


def test_watching_changes_nothing(tiny_scenario, tmp_path):
    _, _, watched = observed(tiny_scenario, tmp_path / "a")
    _, _, alone = observed(tiny_scenario, tmp_path / "b", count=2)
    for part in ("test", "validation"):
        assert watched["rows"][0][part] == alone["rows"][0][part]


def test_under_secure_aggregation_a_group_answers_as_one(tiny_scenario, tmp_path):
    secure = changed(tiny_scenario, secure_aggregation={"enabled": True, "min_devices": 3})
    observer, _, _ = observed(secure, tmp_path / "run", sums_only=True)
    watched = observer.watched()
    first, second = watched.devices[watched.groups == 0][:2].tolist()
    assert observer.views[first][0].reply is observer.views[second][0].reply
    assert observer.views[first][0].num_devices == int((watched.groups == 0).sum())


@pytest.fixture(scope="module")
def observer(planted_home, tmp_path_factory):
    """What is seen of the tiny scenario on two nodes."""
    with chdir(planted_home):
        return observed(load_scenario("tiny.yaml"), tmp_path_factory.mktemp("run"))[0]


def test_a_quarter_are_accomplices_of_every_group(tiny, observer):
    watched = observer.watched()
    for group in range(watched.num_groups):
        mine = watched.accomplices[watched.groups == group]
        assert mine.sum() == len(mine) // 4


def test_attacks_find_counts_and_nothing_is_in_the_candidates(tiny, observer):
    """Counts say it all of items that devices held; knowing the server's ranking alone says nothing."""
    result = attacked(observer, ["reported-counts", "reported-class"], 0)
    assert result["reported-counts"]["advantage"] > 0.9
    assert result["reported-counts"]["auc"] > 0.95
    assert result["reported-class"]["advantage"] == 1
    ceilings = {one.figures["join.ceiling"] for views in observer.views.values() for one in views}
    assert len(ceilings) > 1  # what a lone device says when it joins
    assert abs(control(observer, 0)["auc"] - 0.5) < 0.1


def test_truth_is_of_the_devices_own_node(tiny_scenario, tmp_path):
    observer, _, _ = observed(tiny_scenario, tmp_path / "run")
    watched = observer.watched()
    node = hosted_by(tiny_scenario, tmp_path / "run", 1, 2)
    assert watched.classes[1::2].tolist() == node.classes.tolist()
    assert watched.groups[1::2].tolist() == node.state("r").groups.tolist()
    assert watched.splits.train.row(3).tolist() == node.splits.train.row(1).tolist()


def test_figures_have_names():
    counts = dataclasses.replace(
        RoundCounts.nothing(1), classes=ClassCounts.unstacked(np.arange(len(ClassCounts.names()))[None]), slowest_us=5
    )
    figures = figures_of(wire.RoundReply({}, counts))
    assert figures["classes.0.budget_bytes"] == 1
    assert figures["loss"] == 0
    assert figures["slowest_us"] == 5


def test_rows_start_without_protection_and_end_with_the_scenarios_own():
    bare = load_scenario("ml-100k")
    names = [row.name for row in chosen_rows(bare, clip_norm=0.7, epsilons=(2.0,))]
    assert names[:3] == ["none", "clipping", "hidden rows and requests"]
    assert "central DP, epsilon 2" in names
    shipped = load_scenario("private")
    last = chosen_rows(bare, clip_norm=0.7, epsilons=())[-1]
    assert last.name == "private"
    for section in ("privacy", "secure_aggregation", "controller"):
        assert getattr(last.scenario, section) == getattr(shipped, section)
    own = load_scenario("ml-100k", ["privacy={mechanism: central-gaussian, target_epsilon: 3, clipping: {kind: flat}}"])
    rows = chosen_rows(own, clip_norm=0.7, epsilons=())
    assert rows[0].scenario.privacy == bare.privacy
    assert rows[1].scenario.privacy.clipping.norm == 1.0  # the scenario's, not the option's
    assert rows[-1].scenario == own


def test_rows_of_ones_own():
    row = added_rows(load_scenario("ml-100k"), ["tight:privacy.clipping.kind=flat,privacy.clipping.norm=0.1"])[0]
    assert (row.name, row.scenario.privacy.clipping.norm) == ("tight", 0.1)
    for text in ("tight", "tight:privacy.clippin.kind=flat", ":a=1"):
        with pytest.raises(ScenarioError, match="--row"):
            added_rows(load_scenario("ml-100k"), [text])


def test_an_audit_says_what_the_strongest_attack_gains():
    def row(mechanism, view, **advantages):
        attacks = {
            name: AttackFigures(secret="train items", advantage=Estimate(*figures), devices=9, candidates=9)
            for name, figures in advantages.items()
        }
        recall = Estimate(0.1)
        return AuditedRow(
            mechanism=mechanism, view=view, epsilon=None, share=0.01, attacks=attacks, recall=recall, ndcg=recall
        )

    bare = row("none", "one device", norm=(0.2, 0.1, 0.3), rows=(0.9, 0.8, 1.0))
    masked = row("secure aggregation", "sums over a user group", norm=(0.01, -0.02, 0.04), rows=(-0.1, -0.2, 0.0))
    noised = row("local DP", "one device", norm=(0.1, 0.05, 0.15))
    most, least = (
        "Most leaks under none, where the server sees one device: the strongest of 2 attacks, rows, guesses train "
        "items with an advantage of 0.9000 [0.8000, 1.0000] over chance (1: certainty): significantly better than "
        "chance.",
        "Least leaks under secure aggregation, where the server sees sums over a user group: the strongest of 2 "
        "attacks, norm, guesses train items with an advantage of 0.0100 [-0.0200, 0.0400] over chance (1: certainty): "
        "not significantly better than chance.",
    )
    rows = (masked, bare, replace(bare, mechanism="as much as none"), noised)
    result = AuditResult(rows=rows, settings={}, collected_share=1.0)
    assert audit_verdicts(result) == (most, least)
    assert audit_verdicts(replace(result, rows=(bare,))) == (most,)
    assert audit_verdicts(replace(result, rows=())) == ()


@pytest.mark.slow
def test_an_audit_from_rows_to_files(tiny_scenario, tmp_path):
    """Noise is really in the run of a noised row: its canary says so, and its update is not the unprotected one's."""
    noised = tiny_scenario.model_dump(mode="json")
    noised["privacy"] = {
        "mechanism": "local-gaussian",
        "target_epsilon": 1.0,
        "rows": "all-sent",
        "clipping": {"kind": "flat"},
    }
    rows = [AuditRow("none", tiny_scenario), AuditRow("local", Scenario.model_validate(noised))]
    paths = RunPaths("", str(tmp_path / "run"))
    results = audited(Run.connect(LoopbackGrid(2), tiny_scenario, paths), rows, SETTINGS, list(SETTINGS.attacks or ()))
    assert [row["mechanism"] for row in results] == ["none", "local"]
    assert all(0 <= row["validation recall@20"] <= 1 for row in results)
    assert results[0]["epsilon"] is None
    assert results[0]["canary"]["epsilon_accounted"] is None
    assert results[0]["canary"]["epsilon_low"] > 5
    assert results[1]["epsilon"] == pytest.approx(1.0, rel=0.01)
    assert results[1]["canary"]["epsilon_low"] <= results[1]["canary"]["epsilon_accounted"]
    assert set(results[0]["attacks"]) == set(SETTINGS.attacks or ())
    touched = [row["attacks"]["touched-rows"]["auc"] for row in results]
    assert touched[0] > touched[1] + 0.1
    events = compared(results, 40)
    assert "to_none" not in events[0]
    assert events[1]["to_none"]["value"] == pytest.approx(results[1]["recall@20"] / results[0]["recall@20"])
    assert events[0]["recall@20_interval"][0] < events[0]["recall@20"] < events[0]["recall@20_interval"][1]
    assert not any("to_none" in row for row in compared(results[1:], 40)), "nothing to compare with"
    result = {
        "rows": events,
        "settings": {"devices": 40, "rounds": 2},
        "collected_share": 1.0,
        "scenario": tiny_scenario.model_dump(mode="json"),
        "seed": 0,
        "versions": {},
    }
    written = write_results(tmp_path / "out", AUDIT.contents(result))
    assert {path.name for path in written} == {
        f"audit.{ending}" for ending in ("json", "csv", "parquet", "html", "svg")
    }
    kept = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert kept["rows"][1]["attacks"]["touched-rows"].keys() >= {"advantage", "auc", "advantage_low", "f1", "random_f1"}
    assert len(audit_view(AUDIT.read(kept, "it")).rows) == 2


def test_recall_is_measured_with_the_larger_budgets_of_the_run(tiny_scenario, tmp_path, monkeypatch):
    """As a run does: a list that was cut for the smallest budget alone would lack what devices skip to."""
    shares = []

    def spied(run, trial):
        shares.append(trial.shares)
        return run_trial(run, trial)

    monkeypatch.setattr("simulations.studies.audit.run_trial", spied)
    settings = replace(SETTINGS, share=0.6)
    paths = RunPaths("", str(tmp_path / "audit"))
    run = Run.connect(LoopbackGrid(2), tiny_scenario, paths)
    result = audited(run, [AuditRow("none", tiny_scenario)], settings, ["touched-rows"])
    assert shares == [(0.6, 1.0)]  # the scenario's 50% is smaller
    assert result[0]["share"] == 0.6


def test_noise_that_does_not_repeat_cannot_be_audited(tiny):
    scenario = load_scenario(
        tiny, ["privacy={mechanism: central-gaussian, target_epsilon: 8, clipping: {kind: flat}, noise_source: system}"]
    )
    with pytest.raises(ScenarioError, match=r"privacy\.noise_source: system does not repeat noise"):
        _require_replay(AuditRow("noised", scenario))


@pytest.fixture
def started(monkeypatch):
    """Rows that were run, on nodes in this process; the second of the first try is stopped, and of the third one a
    machine leaves.
    """
    rows = []

    def spied(run, trial):
        rows.append(trial.name)
        if rows == ["none", "clipping"]:
            raise KeyboardInterrupt
        if rows == ["none", "clipping", "clipping", "none", "clipping"]:
            raise LostMachineError("machine 10.0.0.2 has left")
        return run_trial(run, trial)

    monkeypatch.setattr(module, "run_trial", spied)
    monkeypatch.setattr(module, "simulated", simulated)
    return rows


@pytest.mark.slow
def test_an_audit_that_is_stopped_goes_on_with_the_next_row(tiny, tmp_path, started):
    settings = replace(SETTINGS, only=("none", "clipping"))
    with pytest.raises(KeyboardInterrupt):
        audit(load_scenario(tiny), out=tmp_path / "out", settings=settings)
    events = []
    result = audit(load_scenario(tiny), out=tmp_path / "out", settings=settings, on_event=events.append)
    assert started == ["none", "clipping", "clipping"]
    assert (events[0].stage, events[0].text) == ("none", "resumed from an earlier run")
    whole = audit(load_scenario(tiny), out=tmp_path / "out", settings=settings, fresh=True)
    assert started[3:] == ["none", "clipping", "clipping"], "fresh: all anew, and the second once more elsewhere"
    assert json.dumps(result) == json.dumps(whole)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["scenario", "options", "data", "version"])
def test_a_row_that_is_kept_of_something_else_is_told_and_done_anew(what, tiny, tmp_path, started, monkeypatch):
    monkeypatch.setattr(module, "audited", lambda *asked: [asked[-1]({"mechanism": "none"}, 1.0)])
    settings, events, changes = replace(SETTINGS, only=("none",)), [], []
    monkeypatch.setattr(module, "compared", lambda rows, num_devices: rows)
    monkeypatch.setattr("simulations.studies.study.write_results", lambda *_: [])
    monkeypatch.setattr(module, "AUDIT", SimpleNamespace(name="audit", contents=lambda content: {}))
    audit(load_scenario(tiny), out=tmp_path / "out", settings=settings)
    if what == "scenario":
        changes = ["refinement.rounds=1"]
    elif what == "options":
        settings = replace(settings, rounds=1)
    elif what == "data":
        changes = ["data.test_share=30%"]
    else:
        monkeypatch.setattr(module, "versions", lambda: {"numpy": "9.9"})
    for number, text in enumerate(
        ("of another scenario, data, fleet, options or version", "resumed from an earlier run")
    ):
        audit(load_scenario(tiny, changes), out=tmp_path / "out", settings=settings, on_event=events.append)
        assert text in events[number].text
