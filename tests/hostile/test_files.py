"""A server that would read the files of its nodes: nothing that a message names is opened, and no error quotes any."""

import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest

from fl_peel import wire
from fl_peel.errors import DataError
from fl_peel.scenario.fleet_files import fleet_files
from fl_peel.scenario.scenario import Scenario
from strategies.nodes import failure
from strategies.run.run_paths import RunPaths
from strategies.server_app import serve
from tests.clients.node.test_own_data import OwnGrid, held, own  # noqa: F401
from tests.helpers.runs import node_reply
from tests.simulations.test_run import figures, served

SECRET = "root:planted-secret:19000"
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)


@pytest.fixture
def secrets(tmp_path):
    """A folder of files that are nobody's business, one of each kind that a node could be told to read."""
    folder = tmp_path / "planted-secrets"
    folder.mkdir()
    for name in ("shadow", "shadow.yaml", "shadow.csv", "shadow.json", "shadow.npy"):
        (folder / name).write_text(f"{SECRET}\n{SECRET}\n")
    for name in ("ml-100k/u.data", "nodes/0-of-2/item_group.npy", "nodes/0-of-2/users.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{SECRET}\n")
    return folder


def naming(folder, profile):
    """A fleet file that names another one, as a server sends it that leaves the other one to the node."""
    (folder / "evil.yaml").write_text(json.dumps({"profiles": [{"name": "phone", **profile}]}))
    sent = json.loads(fleet_files(str(folder / "evil.yaml")))
    (one,) = sent.values()
    one["data"] = {}
    (folder / "evil.yaml").unlink()
    return {"fleet": json.dumps({"evil.yaml": one})}


MEMORY = {"memory": {"table_share": 0.5}}
FLEETS = {
    "fleet": lambda s: ({"fleet": f"{s}/shadow"}, {}),
    "fleet, of YAML": lambda s: ({"fleet": f"{s}/shadow.yaml"}, {}),
    "fleet, one class": lambda s: ({"fleet": f"{s}/shadow.yaml:root"}, {}),
    "fleet, one of two": lambda s: ({"fleet": ["default", f"{s}/shadow.yaml"]}, {}),
    "fleet, going up": lambda s: ({"fleet": f"../{s.parent.name}/{s.name}/shadow.yaml"}, {}),
    "budget trace": lambda s: (
        {"fleet": "evil.yaml"},
        naming(s, {**MEMORY, "budget": {"process": "trace", "file": f"{s}/shadow.csv"}}),
    ),
    "availability trace": lambda s: (
        {"fleet": "evil.yaml"},
        naming(s, {**MEMORY, "availability": {"trace": {"file": f"{s}/shadow.csv"}}}),
    ),
    "table of values": lambda s: (
        {"fleet": "evil.yaml"},
        naming(
            s,
            {
                "memory": {
                    "total_gb": {"empirical": {"file": f"{s}/shadow.json", "column": "ram"}},
                    "table_share_per_gb": 0.1,
                }
            },
        ),
    ),
}
DATA = {
    "data.path": lambda s: ({"data": {"path": f"{s}/shadow.csv"}}, {}),
    "data.path, a folder": lambda s: ({"data": {"path": str(s)}}, {}),
    "data.test_path": lambda s: ({"data": {"path": f"{s}/shadow.csv", "test_path": f"{s}/shadow"}}, {}),
    "data.catalogue": lambda s: ({"data": {"name": "ml-100k", "catalogue": f"{s}/shadow"}}, {}),
    "data_dir": lambda s: ({"data": {"name": "ml-100k"}}, {"data_dir": str(s)}),
    "run_dir": lambda s: ({"data": {"name": "ml-100k"}}, {"run_dir": str(s)}),
}


def asked(node_config, payload, kind):
    """The reply of a node that was started with these words."""
    opened.clear()
    return node_reply(node_config, payload, kind)


def check_nothing_is_read(reply, tmp_path):
    """An error without a word of any file or of where one lies, and no file opened."""
    assert reply.has_error()
    for word in (SECRET, "root", "19000", str(tmp_path), "planted"):
        assert word not in reply.error.reason
    assert "\n" not in reply.error.reason
    assert not [path for path in opened if "planted-secrets" in path]
    return wire.NodeError.from_reason(reply.error.reason)


def questions(setting):
    """Messages that any node is asked, with this setting."""
    nobody = np.zeros(0, np.int64)
    yield wire.KEEP, wire.KeepRequest(setting, nobody, nobody)
    yield wire.ROUND, wire.RoundRequest(setting, 1, True, 1.0, nobody, nobody, {})


@pytest.fixture
def holder(own):  # noqa: F811
    """The scenario of nodes that hold their data, and the node config of one of them, which has said hello."""
    scenario, folder = own
    scenario = held(scenario)
    config = {"data": str(folder / "node-0.csv"), "first-device": 0}
    catalogue = (folder.parent / "items.txt").read_text().strip()
    greeted = asked(config, wire.HelloRequest(scenario.to_json(), catalogue=catalogue), wire.HELLO)
    assert wire.unpack(wire.HelloReply, greeted.content).root == ""
    return scenario, config


def test_the_guard_sees_what_is_opened(secrets):
    (secrets / "shadow").read_text()
    np.fromfile(secrets / "shadow", np.uint8)
    assert [path for path in opened if path.endswith("planted-secrets/shadow")]


@pytest.mark.parametrize("place", FLEETS)
def test_a_node_with_its_own_data_opens_no_file_of_a_fleet(holder, secrets, tmp_path, place):
    scenario, config = holder
    keys, changes = FLEETS[place](secrets)
    changed = Scenario.model_validate(json.loads(scenario.to_json()) | keys)
    setting = replace(wire.RunSetting(changed.to_json(), str(secrets), str(secrets), num_devices=40), **changes)
    for kind, payload in questions(setting):
        error = check_nothing_is_read(asked(config, payload, kind), tmp_path)
        assert (error.code, error.place) == ("ProfileError", "fleet")


@pytest.mark.parametrize("place", FLEETS)
def test_nor_does_one_that_is_simulated(tiny_scenario, secrets, tmp_path, place):
    keys, changes = FLEETS[place](secrets)
    changed = Scenario.model_validate(json.loads(tiny_scenario.to_json()) | keys)
    setting = replace(wire.RunSetting(changed.to_json(), "", str(tmp_path / "run")), **changes)
    for kind, payload in questions(setting):
        reply = asked({"simulated": True}, payload, kind)
        assert check_nothing_is_read(reply, tmp_path).code == "ProfileError"


@pytest.mark.parametrize("config", [{}, {"data-dir": "there"}, {"data-dir": "there", "run-dir": "state"}])
@pytest.mark.parametrize("place", DATA)
def test_a_node_that_is_not_simulated_opens_no_data_of_a_message(secrets, tmp_path, monkeypatch, config, place):
    monkeypatch.chdir(tmp_path)
    keys, changes = DATA[place](secrets)
    scenario = Scenario.model_validate({"name": "hostile", **keys})
    setting = replace(wire.RunSetting(scenario.to_json(), "", str(tmp_path / "run")), **changes)
    reasons = [check_nothing_is_read(asked(config, payload, kind), tmp_path) for kind, payload in questions(setting)]
    if place.startswith("data."):
        reasons.append(
            check_nothing_is_read(asked(config, wire.HelloRequest(scenario.to_json()), wire.HELLO), tmp_path)
        )
        assert {error.place for error in reasons} <= {"data.path", "data.test_path", "data.catalogue"}
    else:
        lacks = "node config" if "run-dir" not in config else "data"  # with folders of its own it looks there
        assert {error.place for error in reasons} == {lacks}


def test_what_is_wrong_with_a_nodes_own_file_stays_there(holder, tmp_path, caplog):
    """It is for the node's log; the server is told of which kind the mistake is."""
    scenario, config = holder
    data = tmp_path / "planted-secrets.csv"
    data.write_text(f"user,item,timestamp\n1,2,3\n1,2,{SECRET}\n")
    config = config | {"data": str(data)}
    with caplog.at_level(logging.ERROR):
        reply = asked(config, wire.HelloRequest(scenario.to_json(), catalogue="a\nb"), wire.HELLO)
    assert check_own(reply, tmp_path) == wire.NodeError("DataError", "data")
    assert SECRET in caplog.text
    shown = failure(reply, "node 0")
    assert isinstance(shown, DataError)
    why = "A data set cannot be found, fetched, verified or read"
    assert str(shown) == f"data: {why}; node 0 has the whole line in its log"


def check_own(reply, tmp_path):
    opened.clear()
    return check_nothing_is_read(reply, tmp_path)


def test_what_no_node_foresees_stays_there_too(holder, secrets, tmp_path, monkeypatch):
    def fails(cohort, request):
        raise OSError(13, SECRET, str(secrets / "shadow"))

    scenario, config = holder
    monkeypatch.setattr("clients.client_app.checked", fails)
    setting = RunPaths("", "").setting(scenario, 40)
    kind, payload = next(questions(setting))
    reply = asked(config, payload, kind)
    assert reply.error.code == wire.NODE_FAILED
    assert SECRET not in reply.error.reason
    assert str(tmp_path) not in reply.error.reason


def test_a_fleet_that_is_sent_gives_the_figures_of_the_simulation(own, tmp_path):  # noqa: F811
    """Nodes that are not simulated, and a fleet file of which they have the content alone."""
    scenario, folder = own
    simulated, _ = served(scenario, tmp_path / "simulated")
    grid = OwnGrid(folder, simulated=False)
    paths = RunPaths("", str(tmp_path / "server"))
    paths.setting(scenario)
    (tmp_path / "fleet.yaml").unlink()
    deployed = serve(grid, held(scenario), paths)
    assert figures(deployed) == figures(simulated)


def test_a_mistake_in_a_message_is_said_whole(holder):
    scenario, config = holder
    setting = wire.RunSetting(scenario.to_json(), "", "", num_devices=40, fleet="{]")
    kind, payload = next(questions(setting))
    error = wire.NodeError.from_reason(asked(config, payload, kind).error.reason)
    assert error == wire.NodeError("MessageError", "", "the setting's fleet holds no fleet files")
