"""Nodes that have their own interactions: files of their own, a shared catalogue, a server that has nothing."""

import csv
import json
import logging
from itertools import pairwise

import pytest

from fl_peel.data.readers import checked_catalogue
from fl_peel.device_storage import device_splits
from fl_peel.errors import DataError, EngineError, FlPeelError
from fl_peel.scenario.scenario import Scenario
from simulations.scenario_files import load_scenario
from strategies.nodes import Nodes
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.helpers.loopback import LoopbackGrid
from tests.helpers.root import ROOT
from tests.helpers.runs import figures, served

NOTHING = (
    "pretraining.model=spectral",
    "pretraining.source=devices",
    "pretraining.collected.share=0",
    "pretraining.columns=8",
    "pretraining.passes=2",
)
BOUNDS = (0, 13, 14, 40)
"""Of the devices of three nodes; one of them has a single one."""


class OwnGrid(LoopbackGrid):
    """Each node has a file of its own, and a folder."""

    def __init__(self, folder, bounds=BOUNDS, **config):
        super().__init__(len(bounds) - 1)
        self._folder, self._bounds, self._config = folder, bounds, config

    def _answer(self, message):
        partition = self._partition[message.metadata.dst_node_id]
        own = {"data": str(self._folder / f"node-{partition}.csv"), "first-device": self._bounds[partition]}
        self.node_config = {"simulated": True} | own | self._config
        return super()._answer(message)


@pytest.fixture
def own(tiny, tmp_path):
    """The planted interactions, taken apart; returns the scenario of a simulation of them, and the folder of parts."""
    rows = list(csv.DictReader((tmp_path / "planted.csv").open()))
    (tmp_path / "items.txt").write_text("".join(f"{item}\n" for item in sorted({row["item"] for row in rows})))
    take_apart(rows, tmp_path / "apart", BOUNDS)
    return load_scenario(tiny, [*NOTHING, f"data.catalogue={tmp_path / 'items.txt'}"]), tmp_path / "apart"


def take_apart(rows, folder, bounds):
    folder.mkdir()
    users = sorted({row["user"] for row in rows})
    for number, (start, stop) in enumerate(pairwise(bounds)):
        mine = set(users[start:stop])
        lines = [f"{row['user']},{row['item']}" for row in rows if row["user"] in mine]
        (folder / f"node-{number}.csv").write_text("user,item\n" + "\n".join(lines) + "\n")


def held(scenario):
    """The same scenario for nodes that have the data."""
    content = json.loads(scenario.to_json())
    content["data"]["path"] = None
    return Scenario.model_validate(content)


def test_items_that_the_catalogue_lacks_are_left_out_and_told_of_where_they_lie(own, tmp_path, caplog):
    scenario, folder = own
    file = folder / "node-1.csv"
    user = file.read_text().splitlines()[1].split(",")[0]
    with file.open("a") as more:
        more.write(f"{user},unheard of\n")
    with caplog.at_level(logging.WARNING):
        deployed = serve(OwnGrid(folder), held(scenario), RunPaths("", str(tmp_path / "server")))
    assert "node-1.csv: 1 items with 1 interactions are not in the catalogue and left out" in caplog.text
    simulated, _ = served(scenario, tmp_path / "simulated")
    assert figures(deployed) == figures(simulated)


def hello(folder, scenario, run_dir, bounds=BOUNDS, **config):
    grid = OwnGrid(folder, bounds, **config)
    return serve(grid, scenario, RunPaths("", str(run_dir)))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"data": "/nowhere/mine.csv"}, "node config: data: /nowhere/mine.csv: no such file; start the node with"),
        ({"first-device": -1}, "node config: first-device: -1 is not a device number"),
        ({"first-device": 0}, "node 0 hosts 13 devices from number 0 on, where node 1 leaves off before 1; start"),
    ],
)
def test_a_node_that_is_started_wrongly_is_one_line(own, tmp_path, config, line):
    scenario, folder = own
    with pytest.raises(EngineError, match=line):
        hello(folder, held(scenario), tmp_path / "server", **config)


def test_own_data_and_data_of_the_scenario_do_not_mix(own, tmp_path):
    scenario, folder = own
    with pytest.raises(EngineError, match="start the node without data in its --node-config"):
        hello(folder, scenario, tmp_path / "server")
    with pytest.raises(EngineError, match="start the node with data in its --node-config"):
        served(held(scenario), tmp_path / "other")


def test_a_simulation_needs_interactions(own, tmp_path):
    with pytest.raises(DataError, match=r"data: has only a catalogue, .* give data\.name or data\.path"):
        device_splits(held(own[0]), "", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("pretraining", {"source": "collected", "collected": {"share": 1}}, "without name and path no interaction"),
        ("pretraining", {"collected": {"share": 0.5}}, "without name and path no interaction leaves a device"),
        ("evaluation", {"per_device": True}, "are for simulations, which have all interactions"),
        ("data", {"min_rating": 3}, "leave out timeline and min_rating"),
    ],
)
def test_what_needs_interactions_is_refused_where_nodes_hold_them(own, key, value, line):
    content = json.loads(held(own[0]).to_json())
    content[key] |= value
    with pytest.raises(ValueError, match=line):
        Scenario.model_validate(content)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "items:1: there is no item; write one id a line"),
        ("a\n\nb\n", "items:2: there is no item"),
        ("a\nb\na\n", "items:3: item a is there twice; leave one out"),
    ],
)
def test_a_catalogue_that_is_none_is_one_line(text, line):
    with pytest.raises(DataError, match=line):
        checked_catalogue(text, "items")


def test_a_node_none_of_whose_items_is_known_is_one_line(own, tmp_path):
    scenario, folder = own
    (folder / "node-1.csv").write_text("user,item\nu0013,unheard of\n")
    with pytest.raises(FlPeelError, match=r"node-1\.csv: none of its items is in the catalogue, which begins"):
        hello(folder, held(scenario), tmp_path / "server")


def test_whoever_comes_back_with_other_devices_is_not_taken(own, tmp_path):
    scenario, folder = own
    grid = OwnGrid(folder)
    content = (tmp_path / "items.txt").read_text().strip()
    nodes = Nodes.connect(grid, held(scenario).to_json(), root=str(ROOT), timeout_s=60, catalogue=content)
    nodes.patience_s = 1.0
    assert [nodes.hosted(partition, 40).tolist() for partition in range(3)] == [
        list(range(13)),
        [13],
        list(range(14, 40)),
    ]
    assert nodes.partitions_of(nodes.hosted(2, 40)).tolist() == [2] * 26
    before = nodes.ids
    grid._partition = {node + 100_000: partition for node, partition in grid._partition.items()}
    grid._config = {"first-device": 5}
    nodes.begin()
    assert nodes.ids[2] == before[2]  # from 14 on, not from 5
    grid._config = {}
    nodes._refused.clear()
    nodes.begin()
    assert nodes.ids == tuple(node + 100_000 for node in before)
