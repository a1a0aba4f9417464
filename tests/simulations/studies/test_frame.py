"""What studies share: where a result is from, and that nothing known at the start fails at the end."""

import json
import socket
from types import SimpleNamespace

import pytest

from fl_peel.errors import BudgetError, EngineError, ScenarioError
from fl_peel.json_codec import from_plain
from simulations.report.result_files import write_results
from simulations.scenario_files import RunOptions, load_scenario
from simulations.studies import ablate as ablation
from simulations.studies import audit as auditing
from simulations.studies import compare as comparison
from simulations.studies import study as studies
from simulations.studies.ablate import population_plot
from simulations.studies.audit import AUDIT, AuditRow, AuditSettings, added_rows, audit_view, audited, chosen_rows
from simulations.studies.schema import AblateRow
from simulations.studies.study import Frame, open_study
from strategies.evaluation.trials import Trial
from strategies.run.run import Run
from strategies.run.run_paths import RunPaths
from tests.conftest import plant
from tests.helpers.loopback import LoopbackGrid

HIDDEN = "clipping: {kind: flat}, rows: all-sent, requests: group-prefix"
PRIVATE = f"privacy={{mechanism: central-gaussian, target_epsilon: 4, {HIDDEN}}}"
SECURE = "secure_aggregation={enabled: true, devices_per_group: null, min_devices: 4, neighbours: 4, threshold: 0.6}"
ROBUST = "refinement.aggregation.robust={rule: median, buckets: 4}"
LIES = "poisoning={share: 10%, kind: sign-flip, compare: [5%]}"
KINDS = {
    "private": [PRIVATE, SECURE, "privacy.answer_share=0.65"],
    "local-dp": [PRIVATE.replace("central", "local")],
    "secure-aggregation": [SECURE, "secure_aggregation.dropout_share=5%"],
    "poisoned": [ROBUST, LIES],
    "stragglers": ["refinement.deadline_s=2", "refinement.over_selection=0.5"],
}
"""The shipped scenarios' kinds, on little data."""
OPEN_ROW = "open:privacy.mechanism=local-gaussian,privacy.target_epsilon=8,privacy.clipping.kind=flat"
FEW = {"devices": 40, "rounds": 2, "share": 0.5, "attacks": ("touched-rows", "reported-class")}


@pytest.fixture
def untouched(monkeypatch, started):
    """Nothing is trained, and no engine is started."""

    def never(*args, **kwargs):
        pytest.fail("work was begun all the same")

    monkeypatch.setattr(studies, "prepare_collected", never)
    monkeypatch.setattr(studies, "simulated", never)
    monkeypatch.setattr(auditing, "simulated", never)


def compare(scenario, out, **options):
    return comparison.compare(scenario, (0.6,), out=out, rivals=(), single_budgets=(), **options)


def ablate(scenario, out, **options):
    return ablation.ablate(scenario, (0.6,), out=out, **options)


def audit(scenario, out, **options):
    return auditing.audit(scenario, out=out, settings=AuditSettings(**FEW), **options)


STUDIES = {"compare": compare, "ablate": ablate, "audit": audit}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["private", "poisoned"])
def test_every_kind_of_scenario_is_compared(tiny, tmp_path, started, kind):
    result = compare(load_scenario(tiny, KINDS[kind]), tmp_path / "out")
    assert {"peel", "group-popularity", "global-elastic"} <= {row["method"] for row in result["rows"]}
    assert len(started) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local-dp", "secure-aggregation", "stragglers"])
def test_every_kind_of_scenario_is_taken_apart(tiny, tmp_path, started, kind):
    result = ablate(load_scenario(tiny, KINDS[kind]), tmp_path / "out", parts=["collected"])
    settings = {row["setting"] for row in result["rows"] if row["part"] == "collected"}
    assert settings == {"10%", "25%", "50%", "100%"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["private", "poisoned"])
def test_every_kind_of_scenario_is_audited_where_it_can_be(tiny, tmp_path, started, kind):
    rows = ("none", "clipping", *(("tiny",) if kind == "private" else ()))
    settings = AuditSettings(**FEW, only=rows)
    result = auditing.audit(load_scenario(tiny, KINDS[kind]), out=tmp_path / "out", settings=settings)
    assert [row["mechanism"] for row in result["rows"]] == list(rows)
    assert all(set(row["attacks"]) == set(FEW["attacks"]) for row in result["rows"])


@pytest.mark.parametrize("study", STUDIES)
def test_where_a_result_is_from(tiny, tmp_path, monkeypatch, study):
    """Without the work: what the frame adds to figures."""
    frame = Frame.from_scenario(load_scenario(tiny, seed=3), {"out": tmp_path / "out", "command": f"fl-peel {study}"})
    written = []
    monkeypatch.setattr("simulations.studies.study.write_results", lambda *files: written.append(files))
    kind = SimpleNamespace(name="audit", contents=lambda content: {"audit.json": content})
    result = frame.written({"figure": 1}, kind)
    assert written == [(tmp_path / "out", {"audit.json": result})]
    assert list(result) == ["figure", "scenario", "seed", "versions", "command"]
    assert (result["seed"], result["command"]) == (3, f"fl-peel {study}")
    assert result["scenario"]["fleet"] == str(tmp_path / "fleet.yaml")  # absolute
    assert "command" not in Frame.from_scenario(tiny, {"out": tmp_path / "out"}).written({}, kind)


def test_seeds_are_those_from_the_scenarios_on(tiny, tmp_path):
    frame = Frame.from_scenario(load_scenario(tiny, seed=3), {"out": tmp_path / "out"})
    assert frame.by_seed(2, lambda study: study.scenario.seed) == {3: 3, 4: 4}


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["evaluation.top_n=5"], "evaluation.top_n: 5 is not 20, the list length of studies; leave it out"),
        (["data.validation_share=0"], "data.validation_share: no device has a validation item, and studies"),
        (["data.test_share=0"], "data.test_share: no device has a test item, and studies report metrics on"),
        (["blocks.count=60"], "blocks.count: 60 is not in 1..59, the number of items"),
        (["fleet=[poor.yaml]"], "device profile poor: budget 18 B is below one block"),
    ],
)
def test_what_no_study_can_measure_is_refused_before_any_work(tiny, tmp_path, untouched, study, changes, line):
    (tmp_path / "poor.yaml").write_text("profiles: [{name: poor, memory: {table_share: 0.01}}]\n")
    with pytest.raises((ScenarioError, BudgetError)) as caught:
        STUDIES[study](load_scenario(tiny, changes), tmp_path / "out")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "changes", "line"),
    [
        ("compare", [PRIVATE, "pretraining.collected.share=50%"], "privacy.group_epsilon: devices whose data is not"),
        ("compare", [PRIVATE, "fairness.exclude_below=60%"], "fairness.exclude_below: refines once more"),
        ("ablate", [PRIVATE, "privacy.noise_multiplier=1"], "privacy.noise_multiplier: 1 spends epsilon"),
    ],
)
def test_an_epsilon_that_cannot_be_had_is_refused_before_pretraining(tiny, tmp_path, untouched, study, changes, line):
    with pytest.raises(ScenarioError) as caught:
        STUDIES[study](load_scenario(tiny, changes), tmp_path / "out")
    assert str(caught.value).startswith(line)


@pytest.mark.slow
def test_an_audits_rows_are_all_possible_before_the_first_runs(tiny, tmp_path, untouched):
    settings = AuditSettings(**FEW, only=("none", "open"))
    with pytest.raises(ScenarioError, match=r"^privacy\.rows: touched reveals which rows"):
        auditing.audit(load_scenario(tiny), out=tmp_path / "out", settings=settings, rows=[OPEN_ROW])


def test_a_ray_cluster_that_does_not_answer_is_found_before_pretraining(tiny, tmp_path, untouched):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(EngineError, match=r"^engine\.ray_address: no Ray cluster answers"):
        compare(load_scenario(tiny, [f"engine.ray_address={address}"]), tmp_path / "out")


def test_a_study_of_devices_that_can_hold_nothing_ends_with_its_first_trial(tiny, tmp_path, started, monkeypatch):
    """Not when all the others are done and it turns out that there is nothing to compare them with."""
    scenario = load_scenario(tiny)
    trials = [Trial(name, scenario, (0.6,), ("int8",), ("popularity",), full_tables=True) for name in ("one", "two")]
    tried = []

    def too_small(run, trial):
        tried.append(trial.name)
        raise BudgetError("fleet: some device can hold no block; raise its budget")

    monkeypatch.setattr("strategies.evaluation.trials.run_trial", too_small)
    with (
        open_study(scenario, tmp_path / "out", RunOptions()) as study,
        pytest.raises(BudgetError, match="fleet: some device can hold no block"),
    ):
        study.trials(trials)
    assert tried == ["one"]
    assert not list((tmp_path / "out" / "checkpoints").glob("one-*"))


@pytest.mark.slow
def test_a_selector_that_is_a_rival_too_makes_both_methods(tiny, tmp_path, started):
    result = compare(load_scenario(tiny, ["selector=popularity"]), tmp_path / "out")
    mine = {(row["method"], row["precision"]): row["recall@20"] for row in result["rows"]}
    for precision in ("fp32", "int8", "int4"):
        assert mine["peel", precision] == mine["group-popularity", precision]
        assert ("global-elastic", precision) in mine
    assert result["summary"]["budgets"][0]["to_group_popularity"] == 1


def test_the_collected_shares_of_an_ablation_spend_a_part_of_epsilon(tiny, tmp_path):
    """Where fewer are collected, the others answer which group they are in; all of it within the target."""
    scenario = load_scenario(tiny, [PRIVATE])
    with open_study(scenario, tmp_path / "out", RunOptions()) as study:
        result = {v.setting: v.scenario.privacy for v in ablation.variations(study, (0.6,)) if v.part == "collected"}
    assert {name: privacy.group_epsilon for name, privacy in result.items()} == {
        **{"10%": 0.4, "25%": 0.4, "50%": 0.4},
        "100%": None,
    }
    assert {privacy.target_epsilon for privacy in result.values()} == {4.0}


def test_an_ablation_varies_the_noise_of_stage_1(tiny, tmp_path):
    """Each epsilon and none; several user groups pay for their answer, and nobody chooses in the clear."""
    base = load_scenario("nothing-collected-private", ["privacy.target_epsilon=4"])
    assert [v.setting for v in ablation.noises(load_scenario("nothing-collected"))] == []
    result = {v.setting: v.scenario.privacy for v in ablation.noises(base)}
    assert list(result) == [*(f"epsilon {epsilon:g}" for epsilon in ablation.EPSILONS), "none"]
    assert result["epsilon 8"].target_epsilon == 8
    assert not result["none"].noised
    spectral = ["pretraining.model=spectral", "pretraining.source=devices", "user_groups.count=1"]
    scenario = load_scenario(tiny, [PRIVATE, *spectral, "privacy.target_epsilon=8"])
    with open_study(scenario, tmp_path / "out", RunOptions()) as study:
        every = ablation.variations(study, (0.6,))
    groups = {v.setting: v.scenario.privacy.group_epsilon for v in every if v.part == "user groups"}
    assert groups == {"1": None, "4": 0.8}
    assert {v.scenario.pretraining.source for v in every if v.part == "collected"} == {"devices"}


def test_an_ablation_varies_the_number_of_devices_under_noise(tiny, tmp_path, monkeypatch):
    """Synthetic ones, with noise and without; only where there is noise."""
    monkeypatch.setattr(ablation, "POPULATIONS", (60, 200_000))
    monkeypatch.setattr(ablation.Population, "write", lambda people, folder: folder.mkdir(parents=True))
    spectral = ["pretraining.model=spectral", "pretraining.source=devices", "user_groups.count=1"]
    scenario = load_scenario(tiny, [PRIVATE, *spectral])
    with open_study(scenario, tmp_path / "out", RunOptions()) as study:
        result = {variation.setting: variation.scenario for variation in ablation.populations(study)}
    assert list(result) == ["60, epsilon 4", "60, no noise", "200,000, epsilon 4", "200,000, no noise"]
    assert [one.privacy.delta for one in result.values() if one.privacy.noised] == [1e-5, 5e-7]
    assert result["60, no noise"].data.path == str(tmp_path / "out" / "checkpoints" / "population-60-0")
    assert not result["60, no noise"].privacy.noised
    full = {f"{when}_full_{metric}@20": 0.1 for when in ("start", "refined") for metric in ("recall", "ndcg")}
    more = {"share": 0.6, "recall@20": 0.1, "ndcg@20": 0.1, "user_groups": 1, "smallest_group": 1, "blocks": 1}
    plain = [{"part": "population", "setting": name, **more, **full} for name in result]
    rows = [from_plain(AblateRow, row, "row") for row in plain]
    assert population_plot(rows) is not None
    assert population_plot(rows[:2]) is None
    with open_study(load_scenario(tiny), tmp_path / "two", RunOptions()) as study:
        assert ablation.populations(study) == []


def test_shares_of_which_nobody_consents_are_no_variation(tiny, tmp_path):
    plant(tmp_path / "planted.csv", users_per_group=2, items_per_group=12, per_user=8, noise=0.0)
    scenario = load_scenario(tiny, ["user_groups.min_size=1", "blocks.num_slices=1"])
    with open_study(scenario, tmp_path / "out", RunOptions()) as study:
        result = [v.setting for v in ablation.variations(study, (0.6,)) if v.part == "collected"]
    assert result == ["25%", "50%", "100%"]


def rows_of(scenario, **options):
    return [row.name for row in chosen_rows(scenario, clip_norm=1.0, epsilons=(2.0,), **options)]


def test_rows_that_a_scenario_cannot_have_are_refused_unless_nobody_wants_them(tiny):
    robust = load_scenario(tiny, [ROBUST])
    line = r"^hidden rows and requests: refinement\.aggregation\.robust\.rule: median .*; or choose other rows"
    with pytest.raises(ScenarioError, match=line):
        chosen_rows(robust, clip_norm=1.0)
    assert rows_of(robust, only=["clipping", "none"]) == ["none", "clipping"]


def test_every_row_opens_the_sums_that_the_scenario_opens(tiny):
    scenario = load_scenario(tiny, ["privacy.min_owners=3"])
    rows = chosen_rows(scenario, clip_norm=1.0, only=["none", "clipping", "secure aggregation", "local DP, epsilon 8"])
    assert [row.scenario.privacy.min_owners for row in rows] == [3] * 4


@pytest.mark.parametrize("only", [[], ["nothing"]])
def test_rows_that_are_not_there_are_refused(tiny, only):
    with pytest.raises(ScenarioError, match=r"^--only: no row '.*'; choose from none, clipping, hidden rows"):
        rows_of(load_scenario(tiny), only=only)


def test_two_rows_of_one_name_are_refused(tiny):
    scenario = load_scenario(tiny)
    for texts in (["none:seed=1"], ["mine:seed=1", "mine:seed=2"]):
        with pytest.raises(ScenarioError, match=r"^--row (none|mine): a row with this name exists; give another$"):
            rows_of(scenario, added=added_rows(scenario, texts))
    assert rows_of(scenario, added=added_rows(scenario, ["mine:seed=1"]))[-1] == "mine"


def test_rows_without_a_round_show_nothing_and_are_refused(tiny):
    with pytest.raises(ScenarioError, match=r"^refinement\.rounds: 0 in row 'none' shows a server nothing; set 1"):
        rows_of(load_scenario(tiny, ["refinement.rounds=0"]))


def test_where_no_sum_is_ever_opened_nothing_was_seen(tiny, tmp_path):
    """20 devices of a group are fewer than the 30 that a sum must be of: a finding, with its recall and its note."""
    scenario = load_scenario(tiny, [SECURE, "secure_aggregation.min_devices=30"])
    settings = AuditSettings(**FEW)
    paths = RunPaths("", str(tmp_path / "run"))
    run = Run.connect(LoopbackGrid(2), scenario, paths)
    (row,) = audited(run, [AuditRow("sums", scenario)], settings, list(FEW["attacks"]))
    assert (row["attacks"], row["control"]) == ({}, None)
    assert row["note"].startswith("no sum was opened")
    assert row["recall@20"] > 0
    result = {
        **{"rows": [row], "settings": {"devices": 40, "rounds": 2}, "collected_share": 1.0, "seed": 0, "versions": {}},
        "scenario": scenario.model_dump(mode="json"),
    }
    write_results(tmp_path / "out", AUDIT.contents(result))
    kept = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert len(audit_view(AUDIT.read(kept, "it")).rows) == 1
