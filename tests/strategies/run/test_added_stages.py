"""Stages of installed packages: clear, counted, masked and noised, resumed, and refused where they do not fit."""

from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import ClassVar

import numpy as np
import pytest

from fl_peel import plugins, wire
from fl_peel.array_specs import ArraySpec
from fl_peel.contracts import StageContract
from fl_peel.device_storage import device_splits
from fl_peel.errors import FieldError, ScenarioError
from fl_peel.figures import Figure
from fl_peel.privacy.noise_plan import make_plan
from fl_peel.scenario.scenario import Scenario
from fl_peel.steps import Stage, find_stage
from fl_peel.steps.base import NoisedPart, StepTerms, SumField
from simulations.engine.inputs import check_plug_ins
from strategies.figures.schema import from_json, to_json
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid, let_through
from tests.helpers.runs import figures, node_reply, served
from tests.strategies.rounds.test_channels import LEAST, in_mode
from tests.strategies.rounds.test_clear_steps import AT_HOME, SPECTRAL, changed, fleet
from tests.strategies.rounds.test_noised_steps import LOCAL, private
from tests.strategies.run.test_checkpoints import Stopped


@dataclass(frozen=True)
class Items(Stage):
    """How many devices have each item; sent is a column of tables, which they do not look at."""

    groups: int = 2

    name: ClassVar[str] = "items"
    after: ClassVar[str] = "refinement"
    noised: ClassVar = (NoisedPart("owners", "items", 0.2, None),)

    def sent(self, tables):
        return {"tables": np.stack([table[:, 0] for table in tables])}

    def sent_arrays(self, terms, part):
        return {"tables": ArraySpec((self.groups, terms.num_items), dtypes=("float32",))}

    def sums(self, terms):
        return (SumField("items", (terms.num_items,), counts=True),)

    def contribute(self, devices, sent, part, terms, opened):
        counts = terms.count_items(devices.contributed)
        return {"items": counts if opened is None else np.where(opened, counts, 0)}

    def num_rows(self, terms):
        return terms.num_items

    def contributors(self, devices, sent, terms):
        return terms.count_items(devices.contributed)

    def figures(self, sums, tables):
        yield Figure(float(sum(table.sum() for table in tables)), name="table")
        for item, owners in enumerate(sums["items"].tolist()):
            yield Figure(float(owners), name="owners", where={"item": item})


class TestItems(StageContract):
    stage = Items


@dataclass(frozen=True)
class Devices(Items):
    """How many devices have any item."""

    name: ClassVar[str] = "devices"
    after: ClassVar[str] = "joining"
    noised: ClassVar = (NoisedPart("presence", "devices", 0.2),)
    counts_alone: ClassVar[str] = "devices"

    def sums(self, terms):
        return (SumField("devices", (1,), counts=True),)

    def contribute(self, devices, sent, part, terms, opened):
        return {"devices": np.array([(devices.contributed.counts() > 0).sum()]) * terms.one}

    def figures(self, sums, tables):
        return [Figure(float(sums["devices"][0]), name="devices")]


class TestDevices(StageContract):
    stage = Devices


class Renamed(Items):
    """Registered under a name that it does not have."""


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Stages of this file are installed."""
    names = {"items": "Items", "devices": "Devices", "other": "Renamed", "none": "LEAST"}
    points = EntryPoints(EntryPoint(name, f"{__name__}:{target}", "fl_peel.stages") for name, target in names.items())
    monkeypatch.setattr(plugins, "entry_points", points.select)


@pytest.fixture
def scenario(tiny_scenario, tmp_path) -> Scenario:
    """Nothing is collected, every device is there, and hardly anything is measured besides."""
    keys = {"pretraining": SPECTRAL | {"passes": 2}, "fleet": fleet(tmp_path, AT_HOME, "home.yaml")}
    keys |= {"fairness": {"tiers": ()}, "elasticity": {"rounds": 0, "falls": ()}, "selector": "exposure"}
    keys |= {"evaluation": {"selectors": ["exposure"]}, "refinement": {"rounds": 1}}
    return changed(tiny_scenario, **keys, privacy={"min_owners": 1}, stages=["items", "devices"])


def owners_of(result) -> np.ndarray:
    """Owners of each item, as the stage has them."""
    return np.array([figure.value for figure in result.figures.select(part="added_stages", name="owners")])


def test_its_figures_are_rows_of_the_run_and_nothing_else_changes(scenario, tmp_path):
    result, _ = served(scenario, tmp_path / "run")
    splits = device_splits(scenario, "", str(tmp_path / "run"))
    assert owners_of(result).tolist() == splits.train.popularity(59).tolist()
    assert list(result.added_stages) == ["devices", "items"], "one stands after joining, one after refinement"
    row = result.figures.select(stage="items", name="owners")[3]
    assert (row.column("item"), row.column("part")) == (3, "added_stages")
    step = result.added_stages["items"].step
    assert (step.times, step.devices) == (1, 40)
    assert (step.download_bytes, step.upload_bytes) == (40 * 4 * 2 * 59, 40 * 8 * 59)
    assert {"items", "devices"} <= result.stages.keys()
    assert from_json(to_json(result)) == result
    bare, _ = served(changed(scenario, stages=[]), tmp_path / "bare")
    assert "added_stages" not in to_json(bare)
    assert "stages" not in bare.scenario
    assert figures(bare) == figures(result)
    assert bare.stage1.steps == result.stage1.steps


@pytest.mark.parametrize("mode", ["counted", "masked", "masked and counted"])
def test_sums_are_those_in_the_clear_whatever_the_channel(scenario, tmp_path, mode):
    result, _ = served(in_mode(scenario, mode), tmp_path / "run", nodes=3)
    owners = device_splits(scenario, "", str(tmp_path / "run")).train.popularity(59)
    least = LEAST if "counted" in mode else 1
    assert owners_of(result).tolist() == np.where(owners >= least, owners, 0).tolist()
    assert result.figures.select(stage="devices", name="devices")[0].value == 40


@pytest.mark.parametrize("mode", ["noised", "noised by devices", "masked and noised"])
def test_noise_comes_by_itself_and_is_accounted_for(scenario, tmp_path, mode):
    noised = changed(in_mode(scenario, mode), secure_aggregation={"dropout_share": 0.0})
    results = [served(noised, tmp_path / str(nodes), nodes)[0] for nodes in (1, 3)]
    owners = device_splits(scenario, "", str(tmp_path / "1")).train.popularity(59)
    mine = owners_of(results[0])
    if mode != "masked and noised":  # whose noise is the same on any nodes in stage 1, as elsewhere
        assert mine.tolist() == owners_of(results[1]).tolist()
    assert (mine != owners).mean() > 0.9
    rows = {row.part: row for row in results[0].privacy.accounted.releases}
    assert {"stage 1, owners", "stage 1, presence", "stage 1, counts"} <= rows.keys()
    plan, without = make_plan(noised), make_plan(changed(noised, stages=[]))
    shares = [sum(release.times * release.share for release in one.stage1) for one in (plan, without)]
    assert shares[0] == pytest.approx(shares[1]), "they share the budget of stage 1"
    assert plan.stage1_epsilon > 0


def test_noise_is_as_large_as_is_said(scenario):
    noised = private(scenario)
    wide = {release.part: release for release in make_plan(noised).stage1}
    assert wide["owners"].bound == noised.privacy.counts_norm
    assert wide["presence"].bound == 1.0
    assert wide["owners"].share == wide["presence"].share == pytest.approx(4 * wide["counts"].share)


def test_a_run_that_is_stopped_does_not_ask_again(scenario, tmp_path):
    asked = []

    def interfere(partition, message):
        kind = message.metadata.message_type
        if kind == wire.STEP:
            asked.append(wire.unpack(wire.StepRequest, message.content).step.question.name)
        if stop and kind == wire.EVALUATE:
            raise Stopped
        return let_through(partition, message)

    results = []
    for stop in (True, False):
        grid = LoopbackGrid(2, interfere)
        paths = RunPaths("", str(tmp_path / f"run-{stop}"), checkpoint_dir=str(tmp_path / "kept"))
        try:
            results.append(serve(grid, changed(scenario, evaluation={"full_tables": False}), paths))
        except Stopped:
            assert {"items", "devices"} <= set(asked)
            asked.clear()
    assert not {"items", "devices"} & set(asked)
    assert owners_of(results[0]).sum() > 0


@pytest.mark.parametrize("request_of", [wire.StepRequest, wire.SecureStepRequest])
def test_devices_answer_no_stage_that_the_scenario_does_not_name(scenario, tmp_path, request_of):
    setting = RunPaths("", str(tmp_path / "run")).setting(changed(scenario, stages=["devices"]), 40)
    if request_of is wire.StepRequest:
        request = wire.StepRequest(setting, Items(), 1, 0, 1, {}, np.zeros(0, np.uint8), 0.0)
        reply = node_reply({"simulated": True}, request, wire.STEP)
    else:
        reply = node_reply({"simulated": True}, wire.SecureStepRequest(setting, -1, 1, Items()), wire.SECURE_STEP)
    assert f"{request_of.__name__}: items is no stage of the scenario" in reply.error.reason


def test_mistakes_are_one_line(scenario, tiny_scenario):
    with pytest.raises(ValueError, match="unknown stage 'item'; did you mean 'items'"):
        changed(scenario, stages=["item"])
    with pytest.raises(ValueError, match="items is given twice"):
        changed(scenario, stages=["items", "items"])
    with pytest.raises(ValueError, match=r"a timeline has none but its own"):
        changed(scenario, data={"timeline": {}})
    with pytest.raises(ValueError, match=r"set pretraining\.source: devices"):
        changed(tiny_scenario, stages=["items"], privacy=private(scenario).privacy.model_dump())
    with pytest.raises(FieldError, match=r"is not a Stage"):
        check_plug_ins(changed(scenario, stages=["none"]))
    with pytest.raises(FieldError, match=r"is named 'items'.*register it under its own name"):
        find_stage("other")


@pytest.mark.parametrize("parts", [(), (NoisedPart("counts", "items", 0.2, None),)])
def test_a_stage_without_a_bound_of_its_own_has_no_noise(scenario, monkeypatch, parts):
    monkeypatch.setattr(Items, "noised", parts)
    with pytest.raises(ScenarioError, match="items has no noised parts with names of their own"):
        check_plug_ins(private(scenario, **LOCAL))


def test_a_step_costs_what_its_shapes_say():
    terms = replace(StepTerms(59, 0.3), dim=8)
    cost = Items().cost(terms, None, np.zeros(2, np.int64))
    assert (cost.download_bytes[0], cost.upload_bytes[0], cost.least_bytes[0]) == (472, 472, 944)
