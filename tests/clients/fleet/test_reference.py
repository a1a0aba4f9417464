"""The schema of fleet files and the list of their keys are what the readers of fleets read."""

import json

import jsonschema
import pytest
import yaml

from clients.fleet.budgets import BUDGETS, Clock
from clients.fleet.fleet import (
    SHIPPED_FOLDER,
    FleetDocument,
    availability_schemas,
    budget_schemas,
    fleet_parts,
    fleet_schema,
    read_document,
)
from clients.fleet.profile import Compute, DeviceProfile, Energy, Memory, Network
from fl_peel.errors import ProfileError

SCHEMA = jsonschema.Draft202012Validator(fleet_schema())


def mistakes(document):
    return [error.message for error in SCHEMA.iter_errors(json.loads(json.dumps(document)))]


def one(**keys):
    return {"profiles": [{"name": "any", "memory": {"table_share": 0.5}, **keys}]}


@pytest.mark.parametrize("path", sorted(SHIPPED_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_fleet_is_one_to_editors(path):
    assert mistakes(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


GOOD = [
    one(availability=0.8),
    one(availability={"uniform": [0.5, 1.0]}),
    one(availability={"probability": {"uniform": [0.5, 1.0]}}),
    one(availability={"diurnal": {"window_hours": 8}}),
    one(budget="constant"),
    one(budget={"process": "constant"}),
    one(
        budget={"process": "shock", "at_round": 3, "factor": 0.5, "of": {"process": "random-walk", "largest_step": 0.1}}
    ),
    one(budget={"process": "markov", "states": {"a": 1, "b": 0.5}, "transitions_per_step": [[0.5, 0.5], [0.5, 0.5]]}),
    one(compute={"samples_per_s": {"lognormal": {"median": 5000, "sigma": 1}}}, precision="int8"),
    {
        **one(),
        "clock": {"step_s": 60, "steps_per_round": 1},
        "shocks": [{"at_round": 1, "factor": 0}],
        "description": "x",
    },
]


@pytest.mark.parametrize("document", GOOD)
def test_what_is_read_is_no_mistake(document, tmp_path):
    read_document(document, where="x", folder=tmp_path)
    assert mistakes(document) == []


BAD = [
    {},
    {"profiles": []},
    one(colour="red"),
    one(memory={"table_share": 0}),
    one(memory={"table_share": 1.5}),
    one(memory={"table_share": {"normal": [0, 1]}}),
    one(population_share=-1),
    one(population_count=0),
    one(precision="int2"),
    one(availability=2),
    one(availability={"weekly": {}}),
    one(availability={"diurnal": {}}),
    one(budget="periodic"),
    one(budget={"process": "periodic", "period_hours": 0, "amplitude": 0.1}),
    one(budget={"process": "shock", "at_round": 3, "factor": 0.5, "of": "hourly"}),
    one(budget={"process": "random-walk", "largest_step": 0.1, "smallest_step": 0}),
    {**one(), "clock": {"steps_per_round": 1001}},
    {**one(), "shocks": [{"at_round": 1}]},
]


@pytest.mark.parametrize("document", BAD)
def test_what_is_refused_is_a_mistake_to_editors_too(document, tmp_path):
    with pytest.raises(ProfileError):
        read_document(document, where="x", folder=tmp_path)
    assert mistakes(document)


def test_a_registered_profile_is_none():
    assert mistakes({"profiles": [{"use": "mine", "compute": {"samples_per_s": 1}}]}) == []


def test_every_key_says_what_it_is_in_which_unit_and_what_it_is_by_default():
    parts = {part.path: {key.path.rpartition(".")[2]: key for key in part.keys} for part in fleet_parts()}
    for place, kind in {
        "profiles[]": DeviceProfile,
        "profiles[].memory": Memory,
        "profiles[].compute": Compute,
        "profiles[].network": Network,
        "profiles[].energy": Energy,
        "clock": Clock,
    }.items():
        own = {name for name in kind.model_fields if f"{place}.{name}" not in parts}
        assert parts[place].keys() == own
    assert parts[""].keys() == FleetDocument.model_fields.keys() - {"profiles", "clock", "shocks"}
    assert {f"profiles[].budget, process: {name}" for name in BUDGETS.names()} <= parts.keys()
    every = [key for part in parts.values() for key in part.values()]
    assert all(key.description for key in every)
    assert [key.path for key in every if "number" in key.type and not key.unit] == []
    assert parts["profiles[].network"]["uplink_mbps"].default == "5"
    assert parts["profiles[].memory"]["working_factor"].default == "16"
    assert (parts["clock"]["step_s"].unit, parts["clock"]["step_s"].default) == ("s", "900")
    assert parts["profiles[].memory"]["total_gb"].type == "number or distribution or null"
    assert parts["profiles[].budget, process: periodic"]["period_hours"].default is None


def test_the_parts_of_the_schema_are_schemas():
    for schema in (fleet_schema(), *budget_schemas().values(), *availability_schemas().values()):
        jsonschema.Draft202012Validator.check_schema(schema)
    assert list(budget_schemas()) == list(BUDGETS.names())
